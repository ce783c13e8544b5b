"""One step while it is open: what has been seen of it so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from inrun_bench.attribution.batch_samples import BatchSamples, Index, Weights
from inrun_bench.attribution.directions import Direction
from inrun_bench.attribution.gradient_scaling import Received, dense
from inrun_bench.attribution.layer_terms import MicroBatch, Term
from inrun_bench.attribution.optimizers import Optimizers
from inrun_bench.attribution.scoring.checks import SeenGradients
from inrun_bench.attribution.scoring.route import Way
from inrun_bench.attribution.scoring.scores import Scores
from inrun_bench.attribution.transfer import Numbers, gathered, to_host
from inrun_bench.attribution.updates import Update
from inrun_bench.attribution.validation import ValidationLoss

__all__ = ["OpenStep"]


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
        self._show = show
        self.number = number
        self.stepped: list[torch.optim.Optimizer] = []  # which have been about to step
        self.at_once = False  # whether its numbers are waited for
        self.checks = Numbers()  # what may show that the step is not what it was taken for
        self.size = 0
        self.samples = BatchSamples(n_samples)
        self._parts: list[MicroBatch] = []
        self.losses = losses
        self.per_sample = per_sample
        self.way: Way | None = None  # what is done where the probe comes late; None where it does not
        self.known: list[Direction] | None = None  # directions scored in the backward pass, by validation set
        self.device = device
        self.factor: float | Tensor = 1.0  # what their scores are to be multiplied with
        self.early_slope: list[float | Tensor] = []  # of the update, as it was when the step began
        self.scores = Scores(len(losses), device)
        self.seen = SeenGradients()
        self.kept: list[Term] = []
        self.before: list[Tensor] = []  # weights; the present ones until the optimiser steps
        self.place: list[tuple[int, int]] = []  # what tells the weights from others, and then those after the step
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

    def batch(self, index: Index, weights: Weights | None = None) -> None:
        """Say which training samples the coming forward passes hold, until the next call.

        Parameters
        ----------
        index : int [rows] or [rows, k]
            The sample of each row, in the order of the batch axis. A sample may have several rows (views of it, or
            draws with replacement): what they contribute is added up. The step's batch is the sum of its parts, for
            instance the micro-batches of gradient accumulation.
        weights : float [rows, k], optional
            Where a row is made of k samples (mixup), the share of each in what the row contributes; each row's add up
            to 1. Needed where `index` has two axes.
        """
        self.samples.add(index, weights, self.checks, f"step {self.number}: ")
        differentiated = self.scores.micro_batches | {term.micro_batch for term in self.kept}
        beside = tuple(part.size for part in self._parts if part not in differentiated)
        micro_batch = MicroBatch(self.size, len(index), beside)
        self._parts.append(micro_batch)
        self.size += micro_batch.size
        self._show(micro_batch)

    def read_gradients(self, optimizers: Optimizers, parameters: Sequence[Tensor]) -> None:
        """Note the gradients as they are about to be taken; a fused optimiser undoes a ``GradScaler`` itself."""
        scale, self.void = optimizers.grad_scale, optimizers.found_inf
        self.gradients = [None if p.grad is None else dense(p.grad.detach()) for p in parameters]
        if scale is not None:
            unscaled = self.unscaled = scale.double().reciprocal()
            self.gradients = [None if g is None else g * unscaled.to(g.device) for g in self.gradients]

    def overflowed(self, parameters: Sequence[Tensor]) -> bool:
        """Whether gradients are not finite, so that a ``GradScaler`` may have skipped the optimiser's step."""
        seen = [p.grad for p in parameters if p.grad is not None] + [term.b for term in self.kept]
        finite = gathered([*self.scores.finite(), *(torch.isfinite(tensor).all() for tensor in seen)])
        return not to_host(finite)().all()
