"""How alike two valuations are: correlations, overlap of the best, and what noise in one of them leaves to reach."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = ["agreement", "ceiling", "root_mean_square"]

TOP_SHARE = 0.1


def agreement(values: NDArray[np.float64], reference: NDArray[np.float64]) -> dict[str, float]:
    """Return Spearman, Kendall and Pearson correlations and the overlap of the top tenths of two float64 [n].

    Examples
    --------
    >>> import numpy as np
    >>> round(agreement(np.arange(10.0), np.arange(10.0) ** 2)["spearman"], 6)
    1.0
    """
    top = max(1, round(TOP_SHARE * len(reference)))
    best, best_reference = (set(np.argsort(v, kind="stable")[-top:].tolist()) for v in (values, reference))
    constant = np.ptp(values) == 0 or np.ptp(reference) == 0  # no ranks, no correlation
    correlations = {"spearman": stats.spearmanr, "kendall": stats.kendalltau, "pearson": stats.pearsonr}
    return {
        **{
            name: float("nan") if constant else float(correlate(values, reference).statistic)
            for name, correlate in correlations.items()
        },
        "top10_overlap": float("nan") if constant else len(best & best_reference) / top,
    }


def ceiling(split_half: float) -> float:
    """Return the correlation with a reference that a perfect method would show, from that of the reference's halves."""
    r = max(split_half, 0.0)
    return float(np.sqrt(2 * r / (1 + r)))


def root_mean_square(numbers: NDArray[np.float64]) -> float:
    """Return the root of the mean of squares."""
    return float(np.sqrt(np.square(numbers).mean()))
