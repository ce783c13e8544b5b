"""Means over seeds, with confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

__all__ = ["Interval", "mean_interval", "over_seeds"]

CORRELATIONS = ("spearman", "kendall", "pearson")
LARGEST_CORRELATION = 1 - 1e-12  # Fisher's z of 1 is infinite


class Interval(NamedTuple):
    """A mean and the ends of its 95 % confidence interval (NaN where a single seed gives none)."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(values: ArrayLike, *, correlation: bool = False) -> Interval:
    """Return the mean of independent values with Student's 95 % confidence interval.

    Parameters
    ----------
    values : float [n]
        One a seed; NaN are left out.
    correlation : bool
        Average on the scale of Fisher's z = artanh(r), where the spread of a correlation does not depend on its size;
        the interval then stays within [-1, 1].
    """
    x = np.asarray(values, dtype=np.float64)
    x = x[~np.isnan(x)]
    if len(x) == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    if correlation:
        x = np.arctanh(np.clip(x, -LARGEST_CORRELATION, LARGEST_CORRELATION))
    mean, low, high = float(x.mean()), np.nan, np.nan
    if len(x) > 1:
        half = float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
        low, high = mean - half, mean + half
    if correlation:
        mean, low, high = (float(np.tanh(v)) for v in (mean, low, high))
    return Interval(mean, low, high, len(x))


def over_seeds(rows: pd.DataFrame, by: Sequence[str] = ("task", "method", "metric")) -> pd.DataFrame:
    """Return one row a group of `by` (which must name ``metric``) with columns mean, low, high, n over seeds."""
    metric = list(by).index("metric")
    records = {
        key: mean_interval(group["value"], correlation=key[metric] in CORRELATIONS)
        for key, group in rows.groupby(list(by), sort=False)
    }
    index = pd.MultiIndex.from_tuples(list(records), names=list(by))
    return pd.DataFrame(list(records.values()), index=index, columns=Interval._fields)
