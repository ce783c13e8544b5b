"""From scores of the gradient that was accumulated to scores of the one that the optimiser receives."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from inrun_bench.attribution.directions import Direction
from inrun_bench.attribution.scoring.checks import expect_sums, gradient_dot, warn_of_unforeseen_change
from inrun_bench.attribution.scoring.scores import Scores, TermSums
from inrun_bench.attribution.step import StepBegun, StepReceived
from inrun_bench.attribution.transfer import gathered

__all__ = ["as_received"]


def _refuse(number: int, total: NDArray[np.float64]) -> None:
    if not np.isfinite(total).all():
        raise FloatingPointError(
            f"step {number}: the optimiser received gradients that are not finite, and those that were accumulated are"
        )


def as_received(
    begun: StepBegun,
    received: StepReceived,
    scores: Scores,
    total: Tensor,
    terms: TermSums,
    directions: Sequence[Direction],
    *,
    but: Collection[str] = (),
    magnitudes: Mapping[str, Tensor] = MappingProxyType({}),
) -> Tensor:
    """Return scores of the gradient that the optimiser receives, and have it checked that they are.

    Parameters
    ----------
    begun, received : StepBegun, StepReceived
        The step.
    scores : Scores
        What `total` is made of, to name the term that is not finite.
    total : float64 Tensor [validation sets, rows]
        Scores of the accumulated gradient.
    terms : TermSums
        What they add up to.
    directions : sequence of mappings
        The probes, one mapping a validation set.
    but, magnitudes
        See :func:`~inrun_bench.attribution.scoring.checks.expect_sums`; magnitudes are of the accumulated gradient.

    Returns
    -------
    float64 Tensor [validation sets, rows]

    Notes
    -----
    Where gradients were changed and nobody could foresee it, scores are scaled so that they add up.
    """
    gradients = dict(zip(directions[0], received.gradients, strict=True))
    scores.expect_finite(begun.checks, total, begun.samples.of_row, begun.number)
    factor = received.factor(total.device)
    if isinstance(factor, Tensor) or factor != 1.0:
        total, terms = total * factor, terms.times(factor)
        magnitudes = {name: (magnitude * factor).abs() for name, magnitude in magnitudes.items()}
    if not received.changes.known:
        warn_of_unforeseen_change(begun.number)
        expected = gathered([gradient_dot(direction, gradients) for direction in directions]).to(total.device)
        total = total * (expected / total.sum(1))[:, None]
    begun.checks.expect(total, partial(_refuse, begun.number))
    if not received.changes.known:
        return total
    expect_sums(
        begun.checks,
        terms,
        directions,
        gradients,
        begun.number,
        but=but,
        magnitudes=magnitudes,
        unless=received.changes.uneven,
    )
    return total
