"""Corruptions: which bad samples low values find, and how a value is shared among copies.

Wrong labels in ever larger shares, samples with noisy features, samples that are of no class (outliers), and samples
that are copies of others, are put into a task's training set (:mod:`tasks.corruption`); each method then values it.

- Bad samples: AUROC, the chance that one has a lower value than a good one (0.5 for random values); average precision
  of a search from the lowest value upwards, and the precision among the k lowest, k bad ones being there (the share of
  bad ones for random values).
- Copies: what a pair is worth together, in units of what its original was worth before it was copied (the slope of a
  line through the origin, over the pairs). Two: each copy counts in full, as if the other was not there. One: they
  share what the original was worth. And how far the two values of a pair are apart, in units of the spread of all.

Which share of the labels a task has wrong by default is asked by :mod:`~inrun_bench.experiments.detection`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

import tasks
from inrun_bench import metrics
from inrun_bench.methods import valued
from inrun_bench.report.intervals import over_seeds
from inrun_bench.report.looks import band, dot, foremost, in_order, in_table_alone, legend, look, panels, shaded
from inrun_bench.report.markdown import count, interval_cell, markdown
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.stored_values import warm_up
from inrun_bench.runs.unit import Row, Unit
from tasks.corruption import CORRUPTIONS, corrupt

SUMMARY = "wrong labels in growing shares, noise, outliers and copies: what low values find"
NEEDS = "tasks whose features are numbers"
TASKS = ("breast-cancer-logreg", "digits-mlp", "wine-logreg")
EXCLUSIVE = False
DEFAULT = False


@dataclass(frozen=True)
class Knobs:
    """Which samples are made bad.

    Attributes
    ----------
    shares : mapping of str to tuple of float
        Of the training samples, by kind of :data:`CORRUPTIONS`.
    """

    shares: Mapping[str, tuple[float, ...]]


KNOBS = {
    "quick": Knobs({"labels": (0.1, 0.3), "noise": (0.1,), "outliers": (0.1,), "copies": (0.2,)}),
    "standard": Knobs({"labels": (0.05, 0.1, 0.2, 0.4), "noise": (0.1,), "outliers": (0.1,), "copies": (0.2,)}),
}
COPIES = "copies"
FOUND = {"auroc": "AUROC", "average_precision": "average precision", "precision_at_k": "precision at k"}
SHARED = {"pair_worth": "worth of a pair, in units of its original's", "pair_apart": "distance within a pair"}


def units(plan: Plan) -> list[Unit]:
    """One unit a method, task, seed, kind and share; none of tasks on tokens."""
    shares = plan.of_profile(KNOBS).shares
    return [
        Unit("corruptions", task, method, seed, {"corruption": kind, "share": share})
        for task in plan.tasks
        if tasks.CATALOG[task].scaling is not None
        for seed in plan.seeds
        for kind in shares
        for share in shares[kind]
        for method in plan.methods
    ]


def measure(unit: Unit, _needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Make samples bad, value them all, and see which values are low."""
    clean = tasks.load(unit.task, unit.seed, flipped=0.0)
    kind, share = str(unit.settings["corruption"]), float(unit.settings["share"])
    corrupted = corrupt(clean, kind, share)
    warm_up(unit.task)
    values = valued(unit.method, corrupted.task, unit.random_seed).values
    if kind == COPIES:
        before = valued(unit.method, clean, unit.random_seed).values
        seen = shared(before, values, corrupted.samples, corrupted.originals)
    else:
        seen = metrics.detection(values, corrupted.samples)
        seen["precision_at_k"] = precision_of_lowest(values, corrupted.samples)
    return [{"metric": name, "value": value} for name, value in seen.items()]


def precision_of_lowest(values: NDArray[np.float64], wrong: NDArray[np.int64]) -> float:
    """Return the share of wrong ones among the k lowest values, k samples being wrong.

    Of equal values at the edge each takes its part: the mean over their orders.
    """
    mask = np.isin(np.arange(len(values)), wrong)
    k = len(wrong)
    edge = np.partition(values, k - 1)[k - 1]
    below, at = values < edge, values == edge
    return float((mask[below].sum() + (k - below.sum()) * mask[at].mean()) / k)


def shared(
    before: NDArray[np.float64],
    values: NDArray[np.float64],
    copies: NDArray[np.int64],
    originals: NDArray[np.int64],
) -> dict[str, float]:
    """Return how a value is shared among copies.

    Parameters
    ----------
    before, values : float64 [n]
        Values of all samples before some were replaced by copies of others, and after.
    copies, originals : int64 [k]
        Which samples are copies, and of which.

    Returns
    -------
    dict
        ``pair_worth``: the slope through the origin of the worth of pairs over what their originals were worth before;
        ``pair_apart``: root mean square of the differences within pairs, in units of the spread of all values. NaN
        where all of these are 0, or the same.
    """
    alone, together = before[originals], values[copies] + values[originals]
    apart, spread, square = values[copies] - values[originals], values.std(), alone @ alone
    return {
        "pair_worth": float(alone @ together / square) if square > 0 else float("nan"),
        "pair_apart": float(metrics.root_mean_square(apart) / spread) if spread > 0 else float("nan"),
    }


BY = ("task", "corruption", "share", "method", "metric")


def draw(rows: pd.DataFrame) -> Figure:
    """Draw AUROC over the share of wrong labels, a column a task; below, what else the same methods find.

    Means with 95 % intervals over seeds; dotted: chance, or for copies one and two originals. Of many methods the
    foremost; the table has them all.
    """
    means = over_seeds(rows[rows["metric"].isin([*FOUND, *SHARED])], BY) if len(rows) else pd.DataFrame()
    if means.empty:
        return Figure()
    kinds = [kind for kind in CORRUPTIONS if kind in set(rows["corruption"])]
    judged = set(rows["method"]) - {"random"}
    few = foremost(judged)
    methods = in_order({*few, *(rows["method"])} - (judged - {*few}))
    figure, names, axes = panels(rows, len(kinds), height=max(0.19 * len(methods) + 1.0, 2.2), sharey="row")
    for axes_row, kind in zip(axes, kinds, strict=True):
        for ax, task in zip(axes_row, names, strict=True):
            own = rows[(rows["task"] == task) & (rows["corruption"] == kind)]
            shares = sorted(own["share"].unique())
            if kind == "labels":
                _over_shares(ax, means, task, few, shares)
            elif shares:
                _each_method(ax, means, (task, kind, shares[0]), methods)
        if kind == "labels":
            axes_row[0].set_ylabel("AUROC of wrong labels")
        else:
            axes_row[0].set_yticks(range(len(methods)), [look(m).label for m in methods[::-1]], fontsize=7)
            axes_row[0].set_ylabel(kind)
    legend(figure, few, [shaded()])
    title = "means and 95 % intervals over seeds (dotted: chance; of copies, one and two originals)"
    figure.suptitle("\n".join(filter(None, (title, in_table_alone(judged)))), fontsize=8)
    return figure


def _over_shares(ax: Axes, means: pd.DataFrame, task: str, methods: list[str], shares: list[float]) -> None:
    ax.axhline(0.5, color="0.4", linestyle=":", linewidth=1)
    for method in methods:
        keys = [key for share in shares if (key := (task, "labels", share, method, "auroc")) in means.index]
        if keys:
            band(ax, [100 * share for _, _, share, *_ in keys], means.loc[keys], look(method))
    ax.set_xlabel("wrong labels (%)")
    ax.set_xticks([100 * share for share in shares])
    ax.set_ylim(None, 1.02)


def _each_method(ax: Axes, means: pd.DataFrame, where: tuple[str, str, float], methods: list[str]) -> None:
    metric = "pair_worth" if where[1] == COPIES else "auroc"
    for line in (1.0, 2.0) if metric == "pair_worth" else (0.5,):
        ax.axvline(line, color="0.4", linestyle=":", linewidth=1)
    for position, method in enumerate(methods[::-1]):
        if (*where, method, metric) in means.index:
            dot(ax, means.loc[(*where, method, metric)], position, look(method))
    ax.set_ylim(-0.6, len(methods) - 0.4)
    if metric == "pair_worth":
        ax.set_xlim(-0.5, 3.0)
        ax.set_xlabel("worth of a pair\n(one original = 1)")
    else:
        ax.set_xlim(0.0, 1.02)
        ax.set_xlabel(f"AUROC, {100 * where[2]:.0f} % {where[1]}")


def table(rows: pd.DataFrame) -> str:
    """Return one table a task: AUROC and precision by kind and share, and how copies share."""
    rows = rows[rows["metric"].isin([*FOUND, *SHARED])] if len(rows) else rows
    if rows.empty:
        return ""
    means, parts = over_seeds(rows, BY), []
    for task, own in rows.groupby("task", sort=False):
        seeds = own["seed"].nunique()
        places = list(_places(own))
        cells = [
            [
                look(m).markdown,
                *(interval_cell(means, (task, kind, share, m, metric), seeds) for kind, share, metric in places),
            ]
            for m in in_order(own["method"])
        ]
        heads = [f"{kind} {100 * share:.0f} %, {({**FOUND, **SHARED})[metric]}" for kind, share, metric in places]
        parts.append(f"{task}, {count(seeds, 'seed')}\n\n{markdown(cells, ['method', *heads])}")
    return (
        "**Corruptions**: bad samples found by their low values (k: as many as are bad), and what pairs of copies are "
        "worth [95 % confidence interval over seeds].\n\n" + "\n\n".join(parts)
    )


def _places(rows: pd.DataFrame) -> Iterable[tuple[str, float, str]]:
    """Yield kind, share and metric of each column."""
    for kind in CORRUPTIONS:
        for share in sorted(rows[rows["corruption"] == kind]["share"].unique()):
            for metric in SHARED if kind == COPIES else ("auroc", "precision_at_k"):
                yield kind, float(share), metric
