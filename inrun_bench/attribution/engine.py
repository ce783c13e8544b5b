"""InRunShapley: the value of each training sample during the one training run that happens anyway."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from inrun_bench.attribution.capture import Capture, Site
from inrun_bench.attribution.ledger import Entry, Ledger
from inrun_bench.attribution.probes import PROBES, Probe, Step
from inrun_bench.attribution.updates import LinearUpdate, check_optimizer, linear_update
from inrun_bench.attribution.validation import ValidationLoss

__all__ = ["InRunShapley"]


class InRunShapley:
    """In-Run Data Shapley (arXiv 2406.11011) of one training run.

    At every step, each sample of the batch gets a score: its share of the fall of the validation loss which that step
    brought, to the chosen order. A sample's value is the sum of its scores. Training itself is untouched.

    Parameters
    ----------
    model : torch.nn.Module
        Every trained parameter must belong to a layer with a ghost rule
        (:func:`inrun_bench.attribution.supported_layers`).
    optimizer : torch.optim.SGD
        Over the model's parameters; without momentum.
    n_samples : int
        Size of the training set; sample indices lie in ``0 .. n_samples - 1``.
    order : {"first", "second", "integrated"} or Probe
        See :mod:`inrun_bench.attribution.probes` for what each costs and how far it is off.
    validation : callable, optional
        Returns the validation loss, a scalar, as a deterministic function of the model's present weights. Given here,
        the loss after a step serves as the loss before the next. To judge each step by validation samples of its
        own, give it to :meth:`step` instead.

    Attributes
    ----------
    ledger : Ledger
        Scores by sample and by step, and the accounts ``optimizer`` and ``residual``.

    Examples
    --------
    >>> import torch
    >>> x, y = torch.randn(40, 8), torch.randint(3, (40,))
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> loss_fn = torch.nn.functional.cross_entropy
    >>> inrun = InRunShapley(model, optimizer, n_samples=30, order="integrated")
    >>> for index in torch.randperm(30).split(10):
    ...     with inrun.step(index, validation=lambda: loss_fn(model(x[30:]), y[30:])):
    ...         loss_fn(model(x[index]), y[index]).backward()
    ...         optimizer.step()
    ...         optimizer.zero_grad()
    >>> inrun.values().shape
    (30,)
    >>> abs(inrun.ledger.accounts["residual"]) < 1e-4
    True
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        n_samples: int,
        order: str | Probe = "integrated",
        *,
        validation: Callable[[], Tensor] | None = None,
    ) -> None:
        probe: Probe
        if isinstance(order, str):
            if order not in PROBES:
                raise ValueError(f"order must be one of {', '.join(map(repr, PROBES))} or a Probe, got {order!r}")
            probe = PROBES[order]()
        else:
            probe = order
        if n_samples < 1:
            raise ValueError(f"n_samples must be at least 1, got {n_samples}")
        check_optimizer(optimizer)
        self.probe = probe
        self.n_samples = n_samples
        self.ledger = Ledger(n_samples)
        self._optimizer = optimizer
        self._validation = validation
        self._capture = Capture(model, self._receive)
        self._handles: list[Any] = [
            optimizer.register_step_pre_hook(self._before_optimizer_step),
            optimizer.register_step_post_hook(self._after_optimizer_step),
        ]
        self._open: _OpenStep | None = None
        self._known_loss: tuple[list[int], float] | None = None

    def values(self) -> NDArray[np.float64]:
        """Return the value of each sample so far, float64 [n_samples], in nats of validation loss."""
        return self.ledger.values

    def detach(self) -> None:
        """Take all hooks off the model and the optimiser; the ledger stays."""
        self._capture.remove()
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def step(
        self, index: Sequence[int] | NDArray[np.int64] | Tensor, validation: Callable[[], Tensor] | None = None
    ) -> Iterator[None]:
        """Score one training step: its forward and backward pass and ``optimizer.step()`` belong in the with-block.

        Parameters
        ----------
        index : int [batch]
            Which training samples the batch holds, in the order of the batch dimension; each at most once.
        validation : callable, optional
            Returns the validation loss, a scalar, for this step; the engine's own where None.

        Raises
        ------
        ValueError
            If an index is out of range or repeated, or a layer's batch dimension is not that of `index`.
        RuntimeError
            If steps are nested, or the block ends without ``optimizer.step()``.
        FloatingPointError
            If a score is not finite.

        Notes
        -----
        If the block is left by an exception, nothing is written to the ledger.
        """
        if self._open is not None:
            raise RuntimeError("a step is already open; steps must not be nested")
        closure = validation or self._validation
        if closure is None:
            raise ValueError("no validation loss: pass validation= to step() or to InRunShapley()")
        batch = _checked_index(index, self.n_samples)
        loss = ValidationLoss(closure, list(self._capture.parameters.values()))
        opened = _OpenStep(batch, loss, self._present_weights())
        if validation is None and self._known_loss and self._known_loss[0] == self._versions():
            opened.loss_before = self._known_loss[1]
        if not self.probe.late:
            self._aim(opened, Step(loss, self._read_update(), opened.before))
        self._open, self._capture.watching = opened, True
        try:
            yield
            self._capture.watching = False
            entry = self._settle(opened)
            self.ledger.record(entry)
            self._known_loss = None if validation else (self._versions(), opened.loss_after)
        finally:
            self._open, self._capture.watching = None, False

    def _receive(self, site: Site, a: Tensor, b: Tensor) -> None:
        """Score one layer's backward pass at once, or keep it until the probe is known."""
        opened = self._open
        if opened is None or not self._capture.watching:
            return
        if len(a) != len(opened.index):
            raise ValueError(
                f"index names {len(opened.index)} samples, but layer {site.name!r} saw a batch of {len(a)}; "
                "the first dimension of every layer's input must be the batch's"
            )
        if opened.probe is None:
            opened.kept.append((site, a, b))
        else:
            opened.scores = opened.scores + site.score(a, b, opened.probe)

    def _before_optimizer_step(self, *_: Any) -> None:
        """Note what the optimiser is about to do, while gradients and old weights are still there."""
        opened = self._open
        if opened is None:
            return
        if opened.update is not None:
            raise RuntimeError("optimizer.step() was called twice in one step; open one step for each")
        self._capture.watching = False
        opened.update = self._read_update()
        opened.before = [w.clone() for w in opened.before]  # the optimiser changes weights in place
        if self.probe.late:
            opened.gradient = [
                torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self._capture.parameters.values()
            ]

    def _after_optimizer_step(self, *_: Any) -> None:
        if self._open is not None:
            self._open.after = self._present_weights()

    def _settle(self, opened: _OpenStep) -> Entry:
        """Compute what is missing when the step has been taken, and return the page for the ledger."""
        if opened.update is None or opened.after is None:
            raise RuntimeError("the step ended without optimizer.step(); it must be called inside the with-block")
        step = Step(opened.validation, opened.update, opened.before, opened.gradient, opened.after)
        if opened.probe is None:
            self._aim(opened, step)
            assert opened.probe is not None
            for site, a, b in opened.kept:
                opened.scores = opened.scores + site.score(a, b, opened.probe)
        if opened.loss_before is None:
            opened.loss_before = step.validation.value(step.before)
        opened.loss_after = step.validation.value()
        empty = 0.0 if step.update.empty is None else opened.loss_before - step.validation.value(step.base)
        scores = torch.as_tensor(opened.scores).expand(len(opened.index)).cpu().numpy()
        if not np.isfinite(scores).all():
            culprit = opened.index[int(np.flatnonzero(~np.isfinite(scores))[0])]
            raise FloatingPointError(f"step {len(self.ledger.steps)}: the score of sample {culprit} is not finite")
        return Entry(opened.index, scores, empty, opened.loss_before - opened.loss_after)

    def _aim(self, opened: _OpenStep, step: Step) -> None:
        direction, loss = self.probe.direction(step)
        opened.probe = dict(zip(self._capture.parameters, direction, strict=True))
        opened.loss_before = loss if opened.loss_before is None else opened.loss_before

    def _read_update(self) -> LinearUpdate:
        return linear_update(self._optimizer, self._capture.parameters)

    def _present_weights(self) -> list[Tensor]:
        return [p.detach() for p in self._capture.parameters.values()]

    def _versions(self) -> list[int]:
        return [p._version for p in self._capture.parameters.values()]


class _OpenStep:
    """What is known of the step under way."""

    def __init__(self, index: NDArray[np.int64], validation: ValidationLoss, before: list[Tensor]) -> None:
        self.index = index
        self.validation = validation
        self.before = before
        self.after: list[Tensor] | None = None
        self.gradient: list[Tensor] | None = None
        self.update: LinearUpdate | None = None
        self.probe: dict[str, Tensor] | None = None
        self.kept: list[tuple[Site, Tensor, Tensor]] = []
        self.scores: Tensor | float = 0.0
        self.loss_before: float | None = None
        self.loss_after = float("nan")


def _checked_index(index: Sequence[int] | NDArray[np.int64] | Tensor, n_samples: int) -> NDArray[np.int64]:
    array = index.detach().cpu().numpy() if isinstance(index, Tensor) else np.asarray(index)
    if array.ndim != 1 or len(array) == 0 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"index must be a non-empty one-dimensional array of integers, got {array.dtype} of shape {array.shape}"
        )
    outside = array[(array < 0) | (array >= n_samples)]
    if len(outside):
        raise ValueError(f"index {outside[0]} is out of range: samples are numbered 0 .. {n_samples - 1}")
    numbers, counts = np.unique(array, return_counts=True)
    if len(numbers) < len(array):
        raise ValueError(f"index {numbers[counts > 1][0]} is repeated: a batch holds each sample at most once")
    return array.astype(np.int64)
