"""The scores of one step while they come in, term by term."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inrun_bench.attribution.directions import Direction
from inrun_bench.attribution.layer_terms import LayerSite, MicroBatch, Term
from inrun_bench.attribution.transfer import Numbers, gathered

__all__ = ["Scores", "expect_sum", "gradient_dot"]


class Scores:
    """Sums of terms' scores, for one or several probes.

    Parameters
    ----------
    n_probes : int
        Number of validation sets.
    device : torch.device
        Where the sums are taken.
    """

    def __init__(self, n_probes: int, device: torch.device) -> None:
        self.precision = torch.finfo(torch.float64).eps  # the coarsest of what has been added
        self.keys: set[str] = set()  # parameters of which something has been seen
        self._n_probes, self._device = n_probes, device
        self._terms: list[tuple[str, MicroBatch, Tensor]] = []  # where, samples, scores [probes, samples]

    def add(self, term: Term, probes: Sequence[Direction]) -> None:
        """Score a term with each probe."""
        device = term.b.device.type
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            scores = [term.score(probe) for probe in probes]
        together = scores[0][None] if len(scores) == 1 else torch.stack(scores)
        self._terms.append((term.where, term.micro_batch, together))
        self.precision = max(self.precision, *(torch.finfo(x.dtype).eps for x in (together, term.b)))
        self.keys |= term.keys

    def add_scores(self, site: LayerSite, micro_batch: MicroBatch, scores: Tensor) -> None:
        """Add scores, [probes, micro_batch.size], that a layer's own backward pass brought."""
        self._terms.append((site.where, micro_batch, scores))
        self.precision = max(self.precision, torch.finfo(scores.dtype).eps)
        self.keys |= site.keys

    def total(self, size: int) -> Tensor:
        """Return the sums, float64 [probes, size]."""
        by_micro_batch: dict[MicroBatch, list[Tensor]] = {}
        for _, micro_batch, scores in self._terms:
            by_micro_batch.setdefault(micro_batch, []).append(scores)
        total = torch.zeros(self._n_probes, size, dtype=torch.float64, device=self._device)
        for micro_batch, scores_of_terms in by_micro_batch.items():
            total[:, micro_batch.rows] += torch.stack(
                [scores.double().to(self._device) for scores in scores_of_terms]
            ).sum(0)
        return total

    def expect_finite(self, numbers: Numbers, total: Tensor, samples: Sequence[NDArray[np.int64]], step: int) -> None:
        """Have FloatingPointError raised if a sum is not finite, with the step, the sample, and where it came from.

        Parameters
        ----------
        numbers : Numbers
            With which the answer travels.
        total : float64 Tensor [probes, batch]
            The sums.
        samples : sequence of arrays
            The samples of the batch, part by part; may be filled later.
        step : int
            The step's number.
        """

        def check(bad: NDArray[np.float64]) -> None:
            if not bad.any():
                return
            row = int(bad.nonzero()[0][0])
            of_row = (
                (where, scores) for where, micro_batch, scores in self._terms if row in range(size)[micro_batch.rows]
            )
            sources = (where for where, scores in of_row if not torch.isfinite(scores).all())
            raise FloatingPointError(
                f"step {step}: the score of sample {np.concatenate(samples)[row]} is not finite, "
                f"first in {next(sources, 'the sum of terms')}"
            )

        size = total.shape[1]
        numbers.expect(~torch.isfinite(total).all(0), check)

    def finite(self) -> list[Tensor]:
        """Return of each term whether all its scores are finite."""
        return [torch.isfinite(scores).all() for _, _, scores in self._terms]


def gradient_dot(directions: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
    """Return the dot product of a probe and a gradient, one tensor a parameter; None counts as zero."""
    pairs = [(q, g) for q, g in zip(directions, gradients, strict=True) if g is not None]
    return gathered([(q.flatten() @ g.flatten().to(q.dtype)).double() for q, g in pairs]).sum()


def expect_sum(
    numbers: Numbers,
    total: Tensor,
    directions: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    precision: float,
    step: int,
    unless: Tensor | None = None,
) -> None:
    """Have ValueError raised unless the samples' scores add up to the batch's gradient's dot product with the probe.

    They do by definition, so that anything else means that part of the gradient was not seen, or seen twice.

    Parameters
    ----------
    numbers : Numbers
        With which the answer travels.
    total : float64 Tensor [batch]
        The scores.
    directions, gradients : sequences of tensors
        Probe and gradient by parameter.
    precision : float
        The coarsest precision that went into the scores.
    step : int
        The step's number.
    unless : bool scalar Tensor, optional
        Where true, nothing is checked.
    """
    pairs = [(q, g) for q, g in zip(directions, gradients, strict=True) if g is not None]
    scale = gathered([q.norm().double() * g.norm().double() for q, g in pairs]).sum()
    if unless is not None:
        scale = scale.masked_fill(unless.to(scale.device), math.inf)

    def check(found: NDArray[np.float64]) -> None:
        got, expected, scale = found.tolist()
        if math.isfinite(scale) and abs(got - expected) > math.sqrt(precision) / 4 * scale:
            raise ValueError(
                f"step {step}: the samples' scores add up to {got:.6g}, but the gradient's dot product with the probe "
                f"is {expected:.6g}, so that part of the gradient is not the sum of its samples' contributions. Look "
                "for gradients that were there before the step (zero_grad), that something else changed in it, or for "
                "parts of the model that drew random numbers anew"
            )

    numbers.expect(gathered([total.sum(), gradient_dot(directions, gradients), scale]), check)
