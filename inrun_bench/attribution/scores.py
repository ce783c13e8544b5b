"""The scores of one step while they come in, term by term."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TypeAlias

import torch
from torch import Tensor

from inrun_bench.attribution.outside import OutsideTerm
from inrun_bench.attribution.terms import Direction, LayerTerm

__all__ = ["Scores", "Term", "check_sum", "gradient_dot"]

Term: TypeAlias = LayerTerm | OutsideTerm


class Scores:
    """Sums of terms' scores, for one or several probes.

    Parameters
    ----------
    n_probes : int
        Number of validation sets.
    """

    def __init__(self, n_probes: int) -> None:
        self.precision = torch.finfo(torch.float64).eps  # the coarsest of what has been added
        self.keys: set[str] = set()  # parameters of which something has been seen
        self._n_probes = n_probes
        self._terms: list[tuple[str, Tensor, Tensor]] = []  # where, rows, scores [probes, len(rows)]

    def add(self, term: Term, probes: Sequence[Direction]) -> None:
        """Score a term with each probe."""
        device = term.b.device.type
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            scores = [term.score(probe) for probe in probes]
        self.add_rows(term.where, term.part.rows, scores[0][None] if len(scores) == 1 else torch.stack(scores))
        self.precision = max(self.precision, torch.finfo(term.b.dtype).eps)
        self.keys |= term.keys

    def add_rows(self, where: str, rows: Tensor, scores: Tensor) -> None:
        """Add scores, [probes, len(rows)], of the samples `rows` of the step."""
        self._terms.append((where, rows, scores))
        self.precision = max(self.precision, torch.finfo(scores.dtype).eps)

    def total(self, size: int) -> Tensor:
        """Return the sums, float64 [probes, size]."""
        by_rows: dict[int, tuple[Tensor, list[Tensor]]] = {}
        for _, rows, scores in self._terms:
            by_rows.setdefault(id(rows), (rows, []))[1].append(scores)
        total = torch.zeros(self._n_probes, size, dtype=torch.float64)
        for rows, parts in by_rows.values():
            total[:, rows] += torch.stack([part.double() for part in parts]).sum(0).cpu()
        return total

    def check_finite(self, total: Tensor, samples: Sequence[int], step: int) -> None:
        """Raise FloatingPointError if a sum is not finite, with the step, the sample, and the layer it came from."""
        bad = ~torch.isfinite(total).all(0)
        if not bad.any():
            return
        row = int(bad.nonzero()[0])
        sources = (where for where, rows, scores in self._terms if row in rows and not torch.isfinite(scores).all())
        raise FloatingPointError(
            f"step {step}: the score of sample {samples[row]} is not finite, "
            f"first in {next(sources, 'the sum of terms')}"
        )

    def finite(self) -> bool:
        """Return whether all that came in is finite."""
        return all(bool(torch.isfinite(scores).all()) for _, _, scores in self._terms)


def gradient_dot(directions: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> float:
    """Return the dot product of a probe and a gradient, one tensor a parameter; None counts as zero."""
    pairs = zip(directions, gradients, strict=True)
    return sum(float(q.flatten() @ g.flatten().to(q.dtype)) for q, g in pairs if g is not None)


def check_sum(
    total: float, directions: Sequence[Tensor], gradients: Sequence[Tensor | None], precision: float, step: int
) -> None:
    """Raise ValueError unless the samples' scores add up to the dot product of the batch's gradient with the probe.

    They do by definition, so that anything else means that part of the gradient was not seen, or seen twice.
    """
    expected = gradient_dot(directions, gradients)
    pairs = zip(directions, gradients, strict=True)
    scale = sum(float(q.norm()) * float(g.norm()) for q, g in pairs if g is not None)
    if math.isfinite(scale) and abs(total - expected) > math.sqrt(precision) / 4 * scale:
        raise ValueError(
            f"step {step}: the samples' scores add up to {total:.6g}, but the gradient's dot product with the probe is "
            f"{expected:.6g}, so that part of the gradient is not the sum of its samples' contributions. Look for "
            "gradients that were there before the step (zero_grad), that other hands changed in it, or for parts of "
            "the model that drew random numbers anew"
        )
