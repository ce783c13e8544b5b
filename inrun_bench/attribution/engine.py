"""InRunShapley: the value of each training sample during the one training run that happens anyway."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from inrun_bench.attribution.capture import BatchAxis, Capture, Term
from inrun_bench.attribution.late import ROUNDED, Late, LateChoice
from inrun_bench.attribution.ledger import Entry, Ledger, Pages
from inrun_bench.attribution.probes import PROBES, Probe, Step, scaled
from inrun_bench.attribution.received import Watcher
from inrun_bench.attribution.scores import Scores, check_sum
from inrun_bench.attribution.step import Index, OpenStep
from inrun_bench.attribution.updates import check_optimizer, is_linear, read_update
from inrun_bench.attribution.validation import ValidationLoss, moved_to

__all__ = ["InRunShapley", "OpenStep"]

Closure: TypeAlias = Callable[[], Tensor]

ONLY = "validation"  # the name of the one validation set, where it has none
CHECKED_STEPS, CHECKED_EVERY = 3, 100  # the scores' sum is checked in the first steps and now and then

logger = logging.getLogger(__name__)


class InRunShapley:
    """In-Run Data Shapley (arXiv 2406.11011) of one training run.

    At every step, each sample of the batch gets a score: its share of the fall of the validation loss which that step
    brought, to the chosen order. A sample's value is the sum of its scores.

    Parameters
    ----------
    model : torch.nn.Module
        Layers with ghost rules (:func:`inrun_bench.attribution.supported_layers`) are fastest; other layers and bare
        parameters are followed operation by operation, exact as well. Layers that couple samples (batch norm in training
        mode) are refused.
    optimizer : torch.optim.Optimizer
        Any optimiser that treats each weight alone (SGD with and without momentum, Adam, AdamW, RMSprop, Adagrad, ..., or
        one of your own); others (LBFGS, Muon, Shampoo, ...) are refused.
    n_samples : int
        Size of the training set; sample indices lie in ``0 .. n_samples - 1``.
    order : {"first", "second", "integrated", "midpoint", "trapezoid"} or Probe
        See :mod:`inrun_bench.attribution.probes` for what each costs and how far it is off.
    validation : callable, or mapping of str to callable, optional
        Returns the validation loss, a scalar in nats, as a deterministic function of the model's present weights; a
        mapping names several validation sets, each of which gets values of its own. Given here, the loss after a step is
        that before the next and is not computed twice. To judge each step by validation samples of its own, give it to
        :meth:`step` instead.
    labels : sequence [n_samples], optional
        The group of each sample (class, domain, source), whose totals the ledger keeps step by step.
    pages : Pages, or mapping of str to Pages, optional
        Where the ledger keeps whole steps: in memory where None; ``ParquetPages(folder)`` streams them to disk.
    rules : {"auto", "project", "weight-gradient"}
        How linear maps and convolutions are scored where the probe is known in time. ``"auto"`` picks by
        :mod:`inrun_bench.attribution.costs`; ``"project"`` leaves training's own arithmetic as it is, to the last bit.
    late : {"auto", "keep", "split", "jvp"}
        What is done where the probe comes late; see :mod:`inrun_bench.attribution.late`.
    memory_budget : int, optional
        Bytes that ``late="auto"`` may keep from a step's backward pass until its probe is known; a quarter of what is
        free where None.
    batch_axis : int, or mapping of str to (int, None or "folded")
        Which axis of layers' inputs and outputs numbers the samples, for all layers or by layer name. None: a layer sees
        positions and no samples; ``"folded"``: its first axis numbers samples and positions, samples slowest.

    Attributes
    ----------
    ledgers : dict of str to Ledger
        One a validation set: scores by sample and by step, and the accounts ``optimizer`` and ``residual``.
    choices : dict
        What was picked automatically: the rule of each layer and how late probes are served.

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
        validation: Closure | Mapping[str, Closure] | None = None,
        labels: Sequence[Any] | NDArray[Any] | None = None,
        pages: Pages | Mapping[str, Pages] | None = None,
        rules: str = "auto",
        late: LateChoice = "auto",
        memory_budget: int | None = None,
        batch_axis: BatchAxis | Mapping[str, BatchAxis] = 0,
    ) -> None:
        if n_samples < 1:
            raise ValueError(f"n_samples must be at least 1, got {n_samples}")
        _check_choice("rules", rules, ("auto", "project", "weight-gradient"))
        _check_choice("late", late, get_args(LateChoice))
        check_optimizer(optimizer)
        self.probe = _probe(order)
        self.n_samples = n_samples
        self._model, self._optimizer = model, optimizer
        self._labels, self._pages = labels, pages
        self._validation = None if validation is None else _named(validation)
        self._ledgers = self._new_ledgers(self._validation or {ONLY: None})
        axes = batch_axis if isinstance(batch_axis, Mapping) else ({} if batch_axis == 0 else {"": batch_axis})
        self._capture = Capture(model, self._receive, axes, rules)
        self._watcher = Watcher(self._capture.parameters)
        self._late = Late(late, memory_budget)
        self._losses: dict[str, ValidationLoss] = {}
        if self._validation:
            self._losses = {
                name: ValidationLoss(closure, self._parameters, remember=True)
                for name, closure in self._validation.items()
            }
        self._handles: list[Any] = [
            optimizer.register_step_pre_hook(self._before_optimizer_step),
            optimizer.register_step_post_hook(self._after_optimizer_step),
        ]
        self._open: OpenStep | None = None
        self._pending: _Pending | None = None
        self._by_element = False  # gradients were seen to be changed element by element
        self._steps = 0

    @property
    def ledgers(self) -> dict[str, Ledger]:
        """One ledger a validation set."""
        self._close_pending()
        return dict(self._ledgers)

    @property
    def ledger(self) -> Ledger:
        """The ledger of the one validation set."""
        self._close_pending()
        return self._ledgers[self._only()]

    @property
    def choices(self) -> dict[str, Any]:
        """What was picked automatically: ``rules`` by layer, ``late`` and the bytes kept for it."""
        return {"rules": dict(self._capture.chosen), **self._late.choices}

    def values(self, validation: str | None = None) -> NDArray[np.float64]:
        """Return the value of each sample so far, float64 [n_samples], in nats of validation loss.

        Parameters
        ----------
        validation : str, optional
            Which validation set's, where there are several.
        """
        name = self._only() if validation is None else validation
        if name not in self._ledgers:
            raise ValueError(f"validation must be one of {', '.join(map(repr, self._ledgers))}, got {validation!r}")
        values = self._ledgers[name].values
        if self._pending is not None:  # booked when the loss to which it led is known
            np.add.at(values, self._pending.index, self._pending.accounts[name].scores)
        return values

    def detach(self) -> None:
        """Take all hooks off the model and the optimiser; the ledgers stay."""
        self._close_pending()
        self._capture.remove()
        self._watcher.remove()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the ledgers, to be saved with the model and the optimiser; see :meth:`load_state_dict`."""
        return {
            "steps": self._steps,
            "by_element": self._by_element,
            "copying": self._watcher.copying,
            "ledgers": {name: ledger.state_dict() for name, ledger in self.ledgers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken: with model and optimiser restored as well, the values of the resumed
        run are those of an uninterrupted one, to the last bit.
        """
        if self._open is not None:
            raise RuntimeError("a step is open; restore the state between steps")
        names = state["ledgers"].keys()
        if self._validation is None and names != self._ledgers.keys():
            self._ledgers = self._new_ledgers(names)
        if names != self._ledgers.keys():
            raise ValueError(
                f"the state is of validation sets {', '.join(map(repr, names))}; "
                f"this engine has {', '.join(map(repr, self._ledgers))}"
            )
        for name, ledger in self._ledgers.items():
            ledger.load_state_dict(state["ledgers"][name])
        self._pending = None
        self._steps, self._by_element, self._watcher.copying = state["steps"], state["by_element"], state["copying"]

    @contextmanager
    def step(
        self,
        index: Index | None = None,
        validation: Closure | Mapping[str, Closure] | None = None,
        losses: Closure | None = None,
    ) -> Iterator[OpenStep]:
        """Score one training step: its forward and backward passes and ``optimizer.step()`` belong in the with-block.

        Parameters
        ----------
        index : int [batch], optional
            Which training samples the batch holds, in the order of the batch axis; each at most once. None where the batch
            comes in parts, each announced by :meth:`OpenStep.batch`.
        validation : callable, or mapping of str to callable, optional
            Returns the validation loss, a scalar, for this step; the engine's own where None.
        losses : callable, optional
            Returns each sample's contribution to the loss that is differentiated, [batch], for instance
            ``lambda: cross_entropy(model(x), y, reduction="none") / len(x)``. Only ``late="jvp"`` needs it, and
            ``late="auto"`` may use it.

        Yields
        ------
        OpenStep

        Raises
        ------
        ValueError
            If an index is out of range or repeated, a layer's batch axis cannot be found, or the scores do not add up.
        RuntimeError
            If steps are nested, or the block ends without ``optimizer.step()``.
        FloatingPointError
            If a score is not finite.

        Notes
        -----
        If the block is left by an exception, nothing is written to the ledger. A step that a ``GradScaler`` skips, since
        gradients overflowed, is not booked either.
        """
        if self._open is not None:
            raise RuntimeError("a step is already open; steps must not be nested")
        self._capture.check_parameters()
        opened = OpenStep(self.n_samples, self._capture.show, self._losses_of(validation), losses)
        try:
            with self._capture.watching():
                self._begin(opened)
                if index is not None:
                    opened.batch(index)
                self._open = opened
                yield opened
            if opened.update is None and self._overflowed(opened):
                logger.info("step %d: gradients overflowed and the optimiser was not stepped; nothing booked", self._steps)
                return
            self._settle(opened)
        finally:
            self._open = None
            self._watcher.end()
            for loss in opened.losses.values():
                loss.forget_copies()

    def _begin(self, opened: OpenStep) -> None:
        """Aim the probe if it can be known by now, and say what the backward pass shall do with its terms."""
        opened.before = self._present_weights()
        self._warn_of_changed_weights()
        linear = is_linear(self._optimizer)
        opened.early = linear and not self.probe.late and not self._by_element and self._late.wanted == "auto"
        if not opened.early:
            opened.way = self._late.choose(opened.per_sample is not None, linear, self._parameters)
        if opened.early or opened.way == "split":
            probe = self.probe if opened.early else PROBES["first"]()
            update = read_update(self._optimizer, self._capture.parameters)
            directions = [probe.direction(Step(loss, update, opened.before)) for loss in opened.losses.values()]
            common = _common(update.slope)
            opened.factor = 1.0 if common is None else common
            opened.known = [self._by_name(v if common is not None else scaled(v, update.slope)) for v in directions]
            opened.losses_before = [loss.value() for loss in opened.losses.values()]
        self._capture.aim(opened.known if opened.early else None, opened.scores)
        self._watcher.begin()

    def _receive(self, term: Term) -> None:
        """Score one layer's backward pass at once, or keep it until the probe is known."""
        opened = self._open
        if opened is None:
            return
        opened.scores.keys |= term.keys
        if opened.known is not None:
            opened.scores.add(term, opened.known)
        if opened.way in ("keep", "split"):
            self._late.keep(opened.kept, term, rounded=opened.way == "split")

    def _before_optimizer_step(self, *_: Any) -> None:
        """Note what the optimiser is about to do, while gradients and old weights are still there."""
        opened = self._open
        if opened is None:
            return
        if opened.update is not None:
            raise RuntimeError("optimizer.step() was called twice in one step; open one step for each")
        if not opened.index:
            raise ValueError("the step has no index: give one to step(), or announce its parts by batch()")
        self._capture.show(None)
        opened.received = self._watcher.compare()
        unscale = getattr(self._optimizer, "grad_scale", None)  # fused optimisers undo a GradScaler themselves
        opened.unscaled = 1.0 if unscale is None else 1.0 / float(unscale)
        gradients = [None if p.grad is None else p.grad.detach() * opened.unscaled for p in self._parameters]
        self._check_seen(opened, gradients)
        if opened.early:
            self._scale(opened, gradients)
        update = read_update(self._optimizer, self._capture.parameters, gradients)
        if not opened.early:
            opened.gradient = [
                torch.zeros_like(p) if g is None else g.clone()
                for p, g in zip(self._parameters, gradients, strict=True)
            ]
        if not opened.early or update.empty is not None:
            opened.before = [w.clone() for w in opened.before]  # the optimiser changes weights in place
            for loss in opened.losses.values():
                loss.copied(opened.before)
        opened.update = update

    def _after_optimizer_step(self, *_: Any) -> None:
        if self._open is not None:
            self._open.after = self._present_weights()

    def _scale(self, opened: OpenStep, gradients: Sequence[Tensor | None]) -> None:
        """Bring the scores of an early probe to the gradient that the optimiser receives, and check their sum."""
        assert opened.received is not None
        assert opened.known is not None
        ratio = opened.received.common
        total = opened.scores.total(len(opened.index))
        opened.scores.check_finite(total, opened.index, self._steps)
        directions = [list(known.values()) for known in opened.known]
        if ratio is None or not opened.received.known:
            if ratio is None and self._steps == 0:
                raise ValueError(
                    "gradients were changed element by element between the backward pass and optimizer.step() (clipped by "
                    "value?), which scores that were made in the backward pass cannot follow; pass late='keep'"
                )
            ratio = _dot(directions[0], gradients) / float(total[0].sum()) / opened.unscaled
            self._by_element = opened.received.common is None
            self._warn_of_unforeseen_change()
        opened.factor *= ratio * opened.unscaled
        total *= opened.factor
        if self._checks():
            factor = opened.factor / (ratio * opened.unscaled)
            for row, direction in zip(total, directions, strict=True):
                check_sum(
                    float(row.sum()) / factor if factor else 0.0,
                    direction,
                    gradients,
                    opened.scores.precision,
                    self._steps,
                )
        opened.total = total

    def _check_seen(self, opened: OpenStep, gradients: Sequence[Tensor | None]) -> None:
        """Refuse a step in which a parameter has a gradient that no layer reported."""
        if opened.way == "jvp":
            return
        for name, gradient in zip(self._capture.parameters, gradients, strict=True):
            if name not in opened.scores.keys and gradient is not None and bool(gradient.any()):
                raise ValueError(
                    f"step {self._steps}: parameter {name!r} has a gradient, but nothing was seen of the layer that it belongs "
                    "to. Was its gradient there before the step (zero_grad), or is the model a compiled one that ran before "
                    "InRunShapley was made?"
                )

    def _settle(self, opened: OpenStep) -> None:
        """Compute what is missing when the step has been taken, and book it."""
        if opened.update is None or opened.after is None:
            raise RuntimeError("the step ended without optimizer.step(); it must be called inside the with-block")
        if not opened.early:
            opened.total = self._score_late(opened)
        assert opened.total is not None
        if opened.losses_before is None:
            opened.losses_before = [loss.value(opened.before) for loss in opened.losses.values()]
        accounts: dict[str, _Account] = {}
        for (name, loss), scores, before in zip(
            opened.losses.items(), opened.total.numpy(), opened.losses_before, strict=True
        ):
            empty = 0.0
            if opened.update.empty is not None:
                empty = before - loss.value(torch._foreach_sub(opened.before, opened.update.empty))
            accounts[name] = _Account(scores, empty, before)
        self._book_pending({name: account.loss_before for name, account in accounts.items()})
        self._pending = _Pending(np.asarray(opened.index), accounts, self._versions())
        self._steps += 1
        fresh = self._validation is None or opened.losses is not self._losses
        if fresh or all(loss.knows_present for loss in opened.losses.values()):
            self._book_pending({name: loss.value() for name, loss in opened.losses.items()})

    def _score_late(self, opened: OpenStep) -> Tensor:
        """Return the scores, float64 [validation sets, batch], of a probe that is known only now."""
        assert opened.update is not None
        assert opened.received is not None
        assert opened.gradient is not None
        steps = [
            Step(loss, opened.update, opened.before, opened.gradient, opened.after) for loss in opened.losses.values()
        ]
        directions = [scaled(self.probe.direction(step), opened.update.slope) for step in steps]
        common = opened.received.common or 1.0  # kept out of the probe: a loss scale would drown it in half precision
        ratios = [0.0 if r is None else r / common for r in opened.received.ratio]
        probes = [
            {n: q.to(p.dtype) for (n, p), q in zip(self._capture.parameters.items(), scaled(d, ratios), strict=True)}
            for d in directions
        ]
        if opened.way == "jvp":
            total = self._differentiate_losses(opened, probes)
        else:
            total = self._score_kept(opened, probes)
        total *= common * opened.unscaled
        opened.scores.check_finite(total, opened.index, self._steps)
        if not opened.received.known:
            received = [_dot(direction, opened.gradient) for direction in directions]
            total *= (torch.tensor(received) / total.sum(1))[:, None]
            self._warn_of_unforeseen_change()
        if self._checks():
            precision = opened.scores.precision
            if opened.way == "split":
                precision = max(precision, *(torch.finfo(dtype).eps for dtype in ROUNDED.values()))
            for row, direction in zip(total, directions, strict=True):
                check_sum(float(row.sum()), direction, opened.gradient, precision, self._steps)
        return total

    def _score_kept(self, opened: OpenStep, probes: list[dict[str, Tensor]]) -> Tensor:
        size = len(opened.index)
        known = torch.zeros(len(probes), size, dtype=torch.float64)
        if opened.known is not None:  # what the backward pass has scored already need not be scored again
            known = opened.factor * opened.scores.total(size)
            probes = [
                {name: q - opened.factor * done[name] for name, q in probe.items()}
                for probe, done in zip(probes, opened.known, strict=True)
            ]
        rest = Scores(len(probes))
        with moved_to(self._parameters, opened.before), torch.no_grad():
            while opened.kept:
                rest.add(opened.kept.pop(0), probes)
        total = known + rest.total(size)
        opened.scores = rest
        return total

    def _differentiate_losses(self, opened: OpenStep, probes: list[dict[str, Tensor]]) -> Tensor:
        """Return the derivatives of the samples' losses at w in the probes' directions."""
        assert opened.per_sample is not None
        closure = _Closure(self._model, opened.per_sample)
        names = [f"model.{name}" for name in self._capture.parameters]
        weights = dict(zip(names, opened.before, strict=True))
        rows = []
        for probe in probes:
            along = dict(zip(names, probe.values(), strict=True))
            with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward mode
                losses, derivatives = torch.func.jvp(
                    lambda w: torch.func.functional_call(closure, w, ()), (weights,), (along,)
                )
            if losses.shape != (len(opened.index),):
                raise ValueError(
                    f"losses must return one loss a sample of the step, {len(opened.index)} in all, "
                    f"got a tensor of shape {list(losses.shape)}"
                )
            rows.append(derivatives.detach().double().cpu())
            opened.scores.precision = max(opened.scores.precision, torch.finfo(losses.dtype).eps)
        return torch.stack(rows)

    def _book_pending(self, losses_after: Mapping[str, float]) -> None:
        """Book the last step, now that the losses to which it led are known."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        for name, account in pending.accounts.items():
            drop = account.loss_before - losses_after[name]
            self._ledgers[name].record(Entry(pending.index, account.scores, account.optimizer, drop))

    def _close_pending(self) -> None:
        if self._pending is not None and self._open is None:
            self._warn_of_changed_weights()
            self._book_pending({name: loss.value() for name, loss in self._losses.items()})

    def _warn_of_unforeseen_change(self) -> None:
        warnings.warn(
            f"step {self._steps}: gradients were changed between the backward pass and optimizer.step() in a way that could not "
            "be foreseen; this step's scores are scaled by one number, later ones are exact",
            RuntimeWarning,
            stacklevel=6,
        )

    def _warn_of_changed_weights(self) -> None:
        if self._pending is not None and self._pending.weights != self._versions():
            warnings.warn(
                f"weights were changed by other hands after step {self._steps - 1}; what that did to the validation loss is in "
                "the residual of the step",
                RuntimeWarning,
                stacklevel=5,
            )

    def _overflowed(self, opened: OpenStep) -> bool:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        seen = [*gradients, *(term.b for term in opened.kept)]
        return not (opened.scores.finite() and all(bool(torch.isfinite(t).all()) for t in seen))

    def _losses_of(self, validation: Closure | Mapping[str, Closure] | None) -> dict[str, ValidationLoss]:
        if validation is None:
            if not self._losses:
                raise ValueError("no validation loss: pass validation= to step() or to InRunShapley()")
            return self._losses
        closures = _named(validation)
        if closures.keys() != self._ledgers.keys():
            if self._steps or self._validation:
                raise ValueError(
                    f"validation sets must stay the same over a run: {', '.join(map(repr, self._ledgers))}; "
                    f"got {', '.join(map(repr, closures))}"
                )
            self._ledgers = self._new_ledgers(closures)
        return {name: ValidationLoss(closure, self._parameters, remember=True) for name, closure in closures.items()}

    def _new_ledgers(self, names: Iterable[str]) -> dict[str, Ledger]:
        names = list(names)
        pages = self._pages
        if not isinstance(pages, Mapping):
            if pages is not None and len(names) > 1:
                raise ValueError("with several validation sets, pages must be a mapping of their names to pages")
            pages = {} if pages is None else {names[0]: pages}
        return {name: Ledger(self.n_samples, labels=self._labels, pages=pages.get(name)) for name in names}

    def _only(self) -> str:
        if len(self._ledgers) > 1:
            names = ", ".join(map(repr, self._ledgers))
            raise ValueError(f"there are several validation sets, {names}: name one with values(...) or ledgers[...]")
        return next(iter(self._ledgers))

    def _checks(self) -> bool:
        return self._steps < CHECKED_STEPS or self._steps % CHECKED_EVERY == 0

    @property
    def _parameters(self) -> list[nn.Parameter]:
        return list(self._capture.parameters.values())

    def _by_name(self, directions: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self._capture.parameters, directions, strict=True))

    def _present_weights(self) -> list[Tensor]:
        return [p.detach() for p in self._parameters]

    def _versions(self) -> list[tuple[int, int]]:
        return [(p.data_ptr(), p._version) for p in self._parameters]


@dataclass(frozen=True)
class _Account:
    """What a step did to one validation loss, but for the loss to which it led."""

    scores: NDArray[np.float64]
    optimizer: float
    loss_before: float


@dataclass(frozen=True)
class _Pending:
    """A step that has been taken and is not booked yet."""

    index: NDArray[np.int64]
    accounts: dict[str, _Account]
    weights: list[tuple[int, int]]


class _Closure(nn.Module):
    """A closure over a model as a module, so that ``functional_call`` can put other weights into the model."""

    def __init__(self, model: nn.Module, closure: Closure) -> None:
        super().__init__()
        self.model, self._closure = model, closure

    def forward(self) -> Tensor:
        """Call the closure."""
        return self._closure()


def _named(validation: Closure | Mapping[str, Closure]) -> dict[str, Closure]:
    if not isinstance(validation, Mapping):
        return {ONLY: validation}
    if not validation:
        raise ValueError("validation must name at least one validation set, got an empty mapping")
    return dict(validation)


def _probe(order: str | Probe) -> Probe:
    if not isinstance(order, str):
        return order
    if order not in PROBES:
        raise ValueError(f"order must be one of {', '.join(map(repr, PROBES))} or a Probe, got {order!r}")
    return PROBES[order]()


def _common(slopes: Sequence[float | Tensor]) -> float | None:
    """Return the one slope of all parameters, None where there is not one."""
    numbers = {slope for slope in slopes if isinstance(slope, float)}
    return numbers.pop() if len(numbers) == 1 and all(isinstance(s, float) for s in slopes) else None


def _dot(directions: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> float:
    pairs = zip(directions, gradients, strict=True)
    return float(sum((q.double() * g.double()).sum() for q, g in pairs if g is not None))


def _check_choice(name: str, got: str, allowed: Sequence[str]) -> None:
    if got not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {got!r}")
