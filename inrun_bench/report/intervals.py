"""Means over seeds, with confidence intervals.

Student's interval needs several seeds: of two it spans the whole scale. Where rows say how much a correlation varies
with the choice of samples (their ``stderr``, by resampling them), fewer than :data:`FEW` seeds are given the interval
of the bootstrap that draws seeds and, within each, samples, in closed form: on Fisher's scale, the variance of the mean
is ``S^2 / n + mean(s_i^2) / n``, S the spread over seeds and s_i that over samples. Were the seeds no more different
than samples make them, it would hold the truth in 98 % of cases for two seeds; were they three times as different, in
80 % (``tests/inrun_bench/test_intervals.py`` simulates both).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

__all__ = ["Interval", "left_out", "mean_interval", "over_seeds"]

CORRELATIONS = ("spearman", "kendall", "pearson", "lds")  # metrics that are called so, or begin so: lds_each
SHARES = ("auroc", "average_precision", "precision_at_k", "top10_overlap", "bottom10_overlap", "test_accuracy")
LARGEST_CORRELATION = 1 - 1e-12  # Fisher's z of 1 is infinite
FEW = 5  # seeds from which on Student's interval stands alone


class Interval(NamedTuple):
    """A mean and the ends of its 95 % confidence interval (NaN where a single seed gives none)."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(
    values: ArrayLike, *, correlation: bool = False, share: bool = False, stderr: ArrayLike | None = None
) -> Interval:
    """Return the mean of independent values with Student's 95 % confidence interval.

    Parameters
    ----------
    values : float [n]
        One a seed; NaN are left out.
    correlation : bool
        Average on the scale of Fisher's z = artanh(r), where the spread of a correlation does not depend on its size;
        the interval then stays within [-1, 1]. Where one of them is 1 or -1, which have no z, average as they are, and
        cut the interval off there.
    share : bool
        Cut the interval off at 0 and 1, beyond which nothing lies.
    stderr : float [n], optional
        Of correlations, that of each over samples; NaN where nobody knows. It serves where seeds are few.
    """
    x = np.asarray(values, dtype=np.float64)
    errors = np.full_like(x, np.nan) if stderr is None else np.asarray(stderr, dtype=np.float64)
    x, errors = x[~np.isnan(x)], errors[~np.isnan(x)]
    if len(x) == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    fisher = correlation and bool(np.abs(x).max() < LARGEST_CORRELATION)
    if fisher:
        errors = errors / (1 - x**2)
        x = np.arctanh(x)
    mean, low, high = float(x.mean()), np.nan, np.nan
    if len(x) > 1:
        spread, quantile = x.var(ddof=1), stats.t.ppf(0.975, len(x) - 1)
        if fisher and len(x) < FEW and not np.isnan(errors).any():
            spread, quantile = spread + np.square(errors).mean(), stats.norm.ppf(0.975)
        half = float(quantile * np.sqrt(spread / len(x)))
        low, high = mean - half, mean + half
    if fisher:
        mean, low, high = (float(np.tanh(v)) for v in (mean, low, high))
    elif correlation:
        low, high = (float(np.clip(v, -1.0, 1.0)) for v in (low, high))
    if share:
        low, high = (float(np.clip(v, 0.0, 1.0)) for v in (low, high))
    return Interval(mean, low, high, len(x))


def over_seeds(rows: pd.DataFrame, by: Sequence[str] = ("task", "method", "metric")) -> pd.DataFrame:
    """Return one row a group of `by` (which must name ``metric``): mean, low, high, n over seeds, and definitions.

    Several values of one seed are no independent ones: they come from units of several definitions (profiles, other
    references), which are different things and have no mean. So there is none (NaN) where ``definitions``, the most
    values of a seed, is more than 1.
    """
    metric = list(by).index("metric")
    records = {}
    for key, group in rows.groupby(list(by), sort=False):
        definitions = int(group.groupby("seed").size().max()) if "seed" in group else 1
        values = group["value"] if definitions == 1 else []
        name = key[metric]
        errors = group["stderr"] if definitions == 1 and "stderr" in group else None
        is_correlation = name.split("_")[0] in CORRELATIONS
        interval = mean_interval(values, correlation=is_correlation, share=name in SHARES, stderr=errors)
        records[key] = (*interval, definitions)
    index = pd.MultiIndex.from_tuples(list(records), names=list(by))
    return pd.DataFrame(list(records.values()), index=index, columns=[*Interval._fields, "definitions"])


def left_out(table: pd.DataFrame) -> str:
    """Return what a figure of :func:`over_seeds` has to say of groups without a mean; nothing where all have one."""
    number = int((table["definitions"] > 1).sum())
    return (
        f"left out: {number} means of rows of several definitions (a folder for each profile keeps them apart)"
        if number
        else ""
    )
