"""Means over seeds, with confidence intervals."""

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


class Interval(NamedTuple):
    """A mean and the ends of its 95 % confidence interval (NaN where a single seed gives none)."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(values: ArrayLike, *, correlation: bool = False, share: bool = False) -> Interval:
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
    """
    x = np.asarray(values, dtype=np.float64)
    x = x[~np.isnan(x)]
    if len(x) == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    fisher = correlation and bool(np.abs(x).max() < LARGEST_CORRELATION)
    if fisher:
        x = np.arctanh(x)
    mean, low, high = float(x.mean()), np.nan, np.nan
    if len(x) > 1:
        half = float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
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
        interval = mean_interval(values, correlation=name.split("_")[0] in CORRELATIONS, share=name in SHARES)
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
