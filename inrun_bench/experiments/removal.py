"""Removal: retrain without the samples that a method values most, or least, and look at the test set.

Removing what a method calls most valuable should hurt more than removing samples at random, and removing the least
valuable should hurt less, or help. From 0 to 90 % are removed, so that a curve tells of addition as well, read from its
right end: what is kept at 90 % with the least valuable removed is the most valuable tenth. There is a curve for each
utility of the task: the loss, and where there are classes, the accuracy. Two summaries, larger is better:

- the area between the two curves, over the share removed;
- the weighted accuracy drop: by how much accuracy falls as the most valuable are removed, the j-th step of the curve
  weighted by 1 / j, so that what is called most valuable counts most (Schoch, Xu, Ji: *CS-Shapley*, NeurIPS 2022, arXiv
  2211.06800; there a step is a sample, here a tenth of them).

Retraining is that of the run's own game, in which removed samples contribute nothing and steps keep their denominator;
and, where metrics say so, conventional: on what is kept alone, the mean of runs of other seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

import tasks
from inrun_bench import metrics
from inrun_bench.report.intervals import over_seeds
from inrun_bench.report.leaderboard import Question
from inrun_bench.report.looks import band, break_labels, dot, foremost, in_order, legend, look, panels, shaded
from inrun_bench.report.markdown import count, interval_cell, markdown
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.stored_values import read_reference, read_values, reference_blocks, values_unit
from inrun_bench.runs.unit import REFERENCE, Row, Setting, Unit

SUMMARY = "test loss and accuracy after retraining without the top or bottom samples"
EXCLUSIVE = False
DEFAULT = True


@dataclass(frozen=True)
class Knobs:
    """How often models are retrained.

    Attributes
    ----------
    draws : int
        Random removals behind the band of the curves.
    runs : int
        Of conventional retraining, of which a curve is the mean; there is none where this is 0.
    """

    draws: int
    runs: int


KNOBS = {
    "quick": Knobs(draws=20, runs=4),
    "standard": Knobs(draws=20, runs=4),
    "paper": Knobs(draws=100, runs=10),
    "large": Knobs(draws=10, runs=0),
}

CONVENTIONAL = "conventional_"  # what such metrics begin with
QUESTIONS = (
    Question("removal, in the run's own game", "area_loss", "area between the curves of test loss"),
    Question("removal, by conventional retraining", f"{CONVENTIONAL}area_loss", "area between the curves of test loss"),
)
FRACTIONS = np.linspace(0, 0.9, 10)
DROP = "weighted_accuracy_drop"


def units(plan: Plan) -> list[Unit]:
    """One unit a method, the reference among them where there is one, and one for random removal."""
    found, knobs = [], plan.of_profile(KNOBS)
    settings: dict[str, Setting] = {"runs": knobs.runs} if knobs.runs else {}
    for task in plan.tasks:
        for seed in plan.seeds:
            blocks = reference_blocks(plan, task, seed)
            found.append(Unit("removal", task, "random", seed, {"draws": knobs.draws, **settings}))
            if blocks:
                found.append(Unit("removal", task, REFERENCE, seed, settings, needs=blocks))
            found += [
                Unit("removal", task, method, seed, settings, needs=(values_unit(task, method, seed),))
                for method in plan.methods
                if method != "random"
            ]
    return found


def measure(unit: Unit, needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Retrain along the removal orders of one unit."""
    task = tasks.load(unit.task, unit.seed)
    if unit.method == "random":
        rng = np.random.default_rng(unit.random_seed)
        orders = {f"draw {i}": rng.permutation(task.n_train) for i in range(int(unit.settings["draws"]))}
    else:
        values = read_reference(needs.values()).mean(axis=0)
        if unit.method != REFERENCE:
            values = read_values(needs[unit.needs[0]])
        ascending = np.argsort(values, kind="stable")
        orders = {"top": ascending[::-1], "bottom": ascending}
    rows = list(_judged(orders, _OwnRetraining(task), ""))
    if "runs" in unit.settings:
        alone = task.conventional_game(split="test", seeds=int(unit.settings["runs"]))
        rows += _judged(orders, alone, CONVENTIONAL)
    return rows


class _OwnRetraining:
    """Utilities on the test set of the task's own run without some of its samples."""

    def __init__(self, task: tasks.Task) -> None:
        self.measures = tuple(task.objective.utilities)
        self._task = task

    def measure(self, kept: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return utilities, float64 [m, measures], without what is not kept, bool [m, n_train]."""
        return tasks.retrain(self._task, kept, [(utility, "test") for utility in self.measures])


def _judged(
    orders: Mapping[str, NDArray[np.intp]], retraining: _OwnRetraining | tasks.ConventionalGame, prefix: str
) -> Iterable[Row]:
    """Yield curves of utilities on the test set, as ever more of each order is removed, and areas between them."""
    keep = np.concatenate([metrics.kept_along(order, FRACTIONS) for order in orders.values()])
    names = retraining.measures
    outcomes = retraining.measure(keep).reshape(len(orders), len(FRACTIONS), len(names))
    for direction, curve in zip(orders, outcomes, strict=True):
        for name, utilities in zip(names, curve.T, strict=True):
            for fraction, value in zip(FRACTIONS, -utilities if name == "loss" else utilities, strict=True):
                place = {"direction": direction, "fraction": float(fraction)}
                yield {"metric": f"{prefix}test_{name}", **place, "value": float(value)}
    if "top" in orders:
        top, bottom = outcomes[list(orders).index("top")], outcomes[list(orders).index("bottom")]
        for name, *ends in zip(names, top.T, bottom.T, strict=True):
            yield {"metric": f"{prefix}area_{name}", "value": metrics.RemovalCurve(FRACTIONS, *ends).area}
        if "accuracy" in names:
            yield {"metric": f"{prefix}{DROP}", "value": weighted_drop(top[:, names.index("accuracy")])}


def weighted_drop(accuracies: NDArray[np.float64]) -> float:
    """Return the weighted drop of accuracies [k + 1], of all samples and after each of k removals."""
    drops = accuracies[0] - accuracies[1:]
    return float((drops / np.arange(1, len(drops) + 1)).sum())


DIRECTIONS = {"top": "most valuable first", "bottom": "least valuable first"}
METRICS = {
    "test_accuracy": "test accuracy",
    "test_loss": "test loss",
    f"{CONVENTIONAL}test_loss": "conventional\ntest loss",
}
AREAS = {"area_loss": "area between the loss curves", f"{CONVENTIONAL}area_loss": "area, conventional"}
BY = ("task", "method", "metric", "direction", "fraction")
ALL_CURVES, HIGHEST, AN_AREA = 8.2, 2.1, 0.155  # inches: of all rows of curves, the highest of one, a line of areas
BESIDE = 2.0  # inches that names of methods take


def draw(rows: pd.DataFrame) -> Figure:
    """Draw curves, one row of panels a metric and direction, with the band of random removal; below, all areas.

    Means with 95 % intervals over seeds. Losses are in nats, or squared errors. Regression has no accuracy: its panel
    says so, and is left out where no task has any.
    """
    curves = rows[rows["metric"].isin(METRICS)]
    measured = set(curves["metric"])
    choices = [(metric, direction) for metric in METRICS if metric in measured for direction in DIRECTIONS]
    areas = [area for area in AREAS if area in set(rows["metric"])]
    ranked = in_order(m for m in rows["method"] if m != "random")
    heights = [min(ALL_CURVES / max(len(choices), 1), HIGHEST)] * len(choices)
    heights += [AN_AREA * len(ranked) + 0.6] if areas else []
    figure, names, axes = panels(curves, len(heights), height=sum(heights) / len(heights), height_ratios=heights)
    methods = foremost(ranked)
    means = over_seeds(curves[curves["method"] != "random"], BY)
    by_curve = dict(iter(means.groupby(level=list(BY[:-1]))))
    for axes_row, (metric, direction) in zip(axes, choices, strict=False):
        for ax, task in zip(axes_row, names, strict=True):
            here = curves[(curves["task"] == task) & (curves["metric"] == metric)]
            if here.empty:
                ax.set_yticks([])
                ax.text(0.5, 0.5, "none:\nno classes", transform=ax.transAxes, ha="center", va="center", color="0.4")
                continue
            _band(ax, here)
            for method in methods:
                if (task, method, metric, direction) in by_curve:
                    own = by_curve[task, method, metric, direction].droplevel(BY[:-1])
                    band(ax, 100 * own.index, own, look(method))
            if (metric, direction) == choices[-1]:
                ax.set_xlabel("samples removed (%)")
        axes_row[0].set_ylabel(f"{METRICS[metric]},\n{DIRECTIONS[direction]}", fontsize=7)
    if areas:
        of_areas = over_seeds(rows[rows["metric"].isin(areas)])
        for ax, task in zip(axes[-1], names, strict=True):
            _areas(ax, of_areas, task, areas, ranked)
            ax.xaxis.set_major_locator(MaxNLocator(max(1, min(4, 12 // len(names)))))
            ax.tick_params(axis="x", labelsize=7)
        axes[-1][0].set_yticks(range(len(ranked)), [look(m).label for m in ranked[::-1]], fontsize=7)
    extra: list[Artist] = [Patch(color="0.85", label="random: mean, 5-95 % (draws, seeds)"), shaded()]
    if len(areas) > 1:
        hollow = Line2D([], [], color="0.4", marker="o", fillstyle="none", linestyle="none")
        hollow.set_label("hollow: conventional")
        extra.append(hollow)
    if len(methods) < len(ranked):
        figure.suptitle(f"curves of {len(methods)} of {len(ranked)} methods; areas of all", fontsize=8)
    break_labels(figure, len(names), BESIDE)
    legend(figure, methods, extra)
    return figure


def _band(ax: Axes, rows: pd.DataFrame) -> None:
    """Draw what random removal gives."""
    band = rows[rows["method"] == "random"].groupby("fraction")["value"]
    if len(band):
        low, high, mean = band.quantile(0.05), band.quantile(0.95), band.mean()
        ax.fill_between(100 * low.index, low, high, color="0.85", linewidth=0)
        ax.plot(100 * mean.index, mean, color=look("random").color, linewidth=1)


def _areas(ax: Axes, means: pd.DataFrame, task: str, areas: list[str], methods: list[str]) -> None:
    ax.axvline(0, color="0.4", linewidth=0.8)
    for position, method in enumerate(methods[::-1]):
        for place, area in enumerate(areas):
            if (task, method, area) in means.index:
                y = position + (0.18 - 0.36 * place if len(areas) > 1 else 0.0)
                dot(ax, means.loc[(task, method, area)], y, look(method), size=4, filled=place == 0)
    ax.set_yticks(range(len(methods)), [""] * len(methods))
    ax.set_ylim(-0.6, len(methods) - 0.4)
    ax.set_xlabel(AREAS[areas[0]])


def table(rows: pd.DataFrame) -> str:
    """Return areas and weighted accuracy drops, one table a task."""
    shown = [f"{prefix}{name}" for prefix in ("", CONVENTIONAL) for name in ("area_loss", "area_accuracy", DROP)]
    rows = rows[rows["metric"].isin(shown)] if len(rows) else rows
    if rows.empty:
        return ""
    means, parts = over_seeds(rows), []
    for task, own in rows.groupby("task", sort=False):
        seeds, columns = own["seed"].nunique(), [metric for metric in shown if metric in set(own["metric"])]
        cells = [
            [look(m).markdown, *(interval_cell(means, (task, m, metric), seeds) for metric in columns)]
            for m in in_order(own["method"])
        ]
        heads = [metric.replace("_", " ") for metric in columns]
        parts.append(f"{task}, {count(seeds, 'seed')}\n\n{markdown(cells, ['method', *heads])}")
    return (
        "**Removal**: the area between the curves of utility on the test set, the least valuable removed first and the "
        "most valuable removed first, over shares of 0 to 90 %; and the weighted accuracy drop. Larger is better "
        "[95 % confidence interval over seeds].\n\n" + "\n\n".join(parts)
    )
