"""One step while it is open: what has been seen of it so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inrun_bench.attribution.directions import Direction
from inrun_bench.attribution.gradient_scaling import Received, dense
from inrun_bench.attribution.layer_terms import MicroBatch, Term
from inrun_bench.attribution.scoring.route import Way
from inrun_bench.attribution.scoring.scores import Scores
from inrun_bench.attribution.transfer import Numbers, gathered, to_host
from inrun_bench.attribution.updates import Update
from inrun_bench.attribution.validation import ValidationLoss

__all__ = ["Index", "OpenStep"]

Index: TypeAlias = Sequence[int] | NDArray[np.int64] | Tensor


class OpenStep:
    """What :meth:`InRunShapley.step` yields; a training loop needs it only for batches that come in parts."""

    def __init__(
        self,
        n_samples: int,
        number: int,
        show: Callable[[MicroBatch], None],
        losses: Mapping[str, ValidationLoss],
        per_sample: Callable[[], Tensor] | None,
        device: torch.device,
    ) -> None:
        self._n_samples = n_samples
        self._show = show
        self.number = number
        self.checked = False  # whether the sum of scores is checked
        self.at_once = False  # whether its numbers are waited for
        self.checks = Numbers()  # what may show that the step is not what it was taken for
        self.size = 0
        self.samples: list[NDArray[np.int64]] = []  # by part; one whose index is on a device is known with the checks
        self.losses = losses
        self.per_sample = per_sample
        self.way: Way | None = None  # what is done where the probe comes late; None where it does not
        self.known: list[Direction] | None = None  # directions scored in the backward pass, by validation set
        self.factor = 1.0  # what their scores are to be multiplied with
        self.scores = Scores(len(losses), device)
        self.kept: list[Term] = []
        self.before: list[Tensor] = []  # weights; the present ones until the optimiser steps
        self.losses_before: list[Tensor] | None = None
        self.gradients: list[Tensor | None] = []  # as the optimiser receives them
        self.received: Received | None = None
        self.update: Update | None = None
        self.after: list[Tensor] | None = None
        self.unscaled: float | Tensor = 1.0  # what the optimiser itself multiplies gradients with
        self.void: Tensor | None = None  # where not zero, the optimiser will not have stepped, which it alone knows
        self.total: Tensor | None = None  # scores, float64 [validation sets, batch]

    @property
    def early(self) -> bool:
        """Whether the probe is known before the backward pass."""
        return self.way is None

    def batch(self, index: Index) -> None:
        """Say which training samples the coming forward passes hold, until the next call.

        Parameters
        ----------
        index : int [part]
            In the order of the batch axis; each at most once. The step's batch is the sum of its parts, for instance
            the micro-batches of gradient accumulation.
        """
        n_samples, samples, slot, number = self._n_samples, self.samples, len(self.samples), self.number
        if isinstance(index, Tensor) and index.device.type != "cpu":
            _check_form(np.broadcast_to(torch.empty((), dtype=index.dtype).numpy(), index.shape))

            def note(numbers: NDArray[np.float64]) -> None:
                samples[slot] = _checked(numbers.astype(np.int64), n_samples, f"step {number}: ")

            samples.append(np.empty(0, np.int64))
            self.checks.expect(index.clone(), note)
        else:
            array = np.asarray(index)
            _check_form(array)
            samples.append(_checked(array.astype(np.int64), n_samples))
        part = MicroBatch(self.size, len(index))
        self.size += part.size
        self._show(part)

    def read_gradients(self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
        """Note the gradients as `optimizer` is about to take them; a fused one undoes a ``GradScaler`` itself."""
        scale: Tensor | None = getattr(optimizer, "grad_scale", None)
        self.void = getattr(optimizer, "found_inf", None)
        self.gradients = [None if p.grad is None else dense(p.grad.detach()) for p in parameters]
        if scale is not None:
            unscaled = self.unscaled = scale.double().reciprocal()
            self.gradients = [None if g is None else g * unscaled.to(g.device) for g in self.gradients]

    def overflowed(self, parameters: Sequence[Tensor]) -> bool:
        """Whether gradients are not finite, so that a ``GradScaler`` may have skipped the optimiser's step."""
        seen = [p.grad for p in parameters if p.grad is not None] + [term.b for term in self.kept]
        finite = gathered([*self.scores.finite(), *(torch.isfinite(tensor).all() for tensor in seen)])
        return not to_host(finite)().all()


def _check_form(array: NDArray[np.generic]) -> None:
    if array.ndim != 1 or len(array) == 0 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"index must be a non-empty one-dimensional array of integers, got {array.dtype} of shape {array.shape}"
        )


def _checked(array: NDArray[np.int64], n_samples: int, where: str = "") -> NDArray[np.int64]:
    outside = array[(array < 0) | (array >= n_samples)]
    if len(outside):
        raise ValueError(f"{where}index {outside[0]} is out of range: samples are numbered 0 .. {n_samples - 1}")
    if len(set(array.tolist())) < len(array):
        numbers, counts = np.unique(array, return_counts=True)
        raise ValueError(f"{where}index {numbers[counts > 1][0]} is repeated: a batch holds each sample at most once")
    return array
