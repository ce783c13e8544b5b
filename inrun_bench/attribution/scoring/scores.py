"""The scores of one step while they come in, term by term."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inrun_bench.attribution.directions import Direction
from inrun_bench.attribution.layer_terms import LayerSite, MicroBatch, Term
from inrun_bench.attribution.transfer import Numbers, gathered

__all__ = ["Scores", "expect_sum", "gradient_dot"]


@dataclass(frozen=True)
class _ScoredTerm:
    where: str
    micro_batch: MicroBatch
    scores: Tensor  # [probes, micro_batch.size]
    keys: set[str]


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
        self._terms: list[_ScoredTerm] = []

    def add(self, term: Term, probes: Sequence[Direction]) -> None:
        """Score a term with each probe."""
        device = term.b.device.type
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            scores = [term.score(probe) for probe in probes]
        together = scores[0][None] if len(scores) == 1 else torch.stack(scores)
        self._terms.append(_ScoredTerm(term.where, term.micro_batch, together, term.keys))
        self.precision = max(self.precision, *(torch.finfo(x.dtype).eps for x in (together, term.b)))
        self.keys |= term.keys

    def add_scores(self, site: LayerSite, micro_batch: MicroBatch, scores: Tensor) -> None:
        """Add scores, [probes, micro_batch.size], that a layer's own backward pass brought."""
        self._terms.append(_ScoredTerm(site.where, micro_batch, scores, site.keys))
        self.precision = max(self.precision, torch.finfo(scores.dtype).eps)
        self.keys |= site.keys

    def total(self, size: int, without: Collection[str] = ()) -> Tensor:
        """Return the sums, float64 [probes, size], but for terms of the parameters `without`."""
        by_micro_batch: dict[MicroBatch, list[Tensor]] = {}
        for term in self._terms:
            if term.keys.isdisjoint(without):
                by_micro_batch.setdefault(term.micro_batch, []).append(term.scores)
        total = torch.zeros(self._n_probes, size, dtype=torch.float64, device=self._device)
        for micro_batch, scores_of_terms in by_micro_batch.items():
            total[:, micro_batch.rows] += torch.stack(
                [scores.double().to(self._device) for scores in scores_of_terms]
            ).sum(0)
        return total

    def expect_finite(self, numbers: Numbers, total: Tensor, samples_of_row: Callable[[int], str], step: int) -> None:
        """Have FloatingPointError raised if a sum is not finite, with the step, the sample, and where it came from.

        Parameters
        ----------
        numbers : Numbers
            With which the answer travels.
        total : float64 Tensor [probes, batch]
            The sums.
        samples_of_row : callable
            Names the samples of a row of the batch.
        step : int
            The step's number.
        """

        def check(bad: NDArray[np.float64]) -> None:
            if not bad.any():
                return
            row = int(bad.nonzero()[0][0])
            of_row = (term for term in self._terms if row in range(size)[term.micro_batch.rows])
            sources = (term.where for term in of_row if not torch.isfinite(term.scores).all())
            raise FloatingPointError(
                f"step {step}: the score of sample {samples_of_row(row)} is not finite, "
                f"first in {next(sources, 'the sum of terms')}"
            )

        size = total.shape[1]
        numbers.expect(~torch.isfinite(total).all(0), check)

    def finite(self) -> list[Tensor]:
        """Return of each term whether all its scores are finite."""
        return [torch.isfinite(term.scores).all() for term in self._terms]

    def entangled(self, keys: set[str]) -> set[str]:
        """Return `keys` and all parameters that share terms with them."""
        entangled, before = set(keys), -1
        while len(entangled) > before:
            before = len(entangled)
            entangled = entangled.union(*(term.keys for term in self._terms if not term.keys.isdisjoint(entangled)))
        return entangled


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
                "for gradients that were there before the step (zero_grad), a second backward pass (sharpness-aware "
                "training, gradient penalties), something else that changed them in the step, or parts of the model "
                "that drew random numbers anew"
            )

    numbers.expect(gathered([total.sum(), gradient_dot(directions, gradients), scale]), check)
