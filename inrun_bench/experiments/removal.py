"""Removal: retrain without the samples that a method values most, or least, and look at the test set.

Removing what a method calls most valuable should hurt more than removing samples at random, and removing the least
valuable should hurt less, or help. The area between the two curves, over the share removed, is the summary: larger is
better. There is a curve for each utility of the task: the loss, and where there are classes, the accuracy.

Retraining is that of the run's own game, in which removed samples contribute nothing and steps keep their denominator;
and, where metrics say so, conventional: on what is kept alone, the mean of runs of other seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

import tasks
from inrun_bench import metrics
from inrun_bench.report.leaderboard import Question
from inrun_bench.report.looks import in_order, legend, look, panels
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


KNOBS = {"quick": Knobs(draws=20, runs=4), "standard": Knobs(draws=100, runs=10), "large": Knobs(draws=10, runs=0)}

CONVENTIONAL = "conventional_"  # what such metrics begin with
QUESTIONS = (
    Question("removal, in the run's own game", "area_loss", "area between the curves of test loss"),
    Question("removal, by conventional retraining", f"{CONVENTIONAL}area_loss", "area between the curves of test loss"),
)
FRACTIONS = np.array(metrics.FRACTIONS)


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


DIRECTIONS = {"top": "most valuable removed first", "bottom": "least valuable removed first"}
METRICS = {
    "test_accuracy": "test accuracy",
    "test_loss": "test loss",
    f"{CONVENTIONAL}test_loss": "test loss, conventional",
}


def draw(rows: pd.DataFrame) -> Figure:
    """Draw means over seeds, one row of panels a metric and direction, with the band of random removal.

    Losses are in nats, or squared errors. Regression has no accuracy: its panel says so, and is left out where no task
    has any.
    """
    curves = rows[rows["metric"].isin(METRICS)]
    measured = set(curves["metric"])
    choices = [(metric, direction) for metric in METRICS if metric in measured for direction in DIRECTIONS]
    figure, names, axes = panels(curves, len(choices), height=2.4, sharex=True, sharey=False)
    methods = in_order(m for m in rows["method"] if m != "random")
    for axes_row, (metric, direction) in zip(axes, choices, strict=True):
        for ax, task in zip(axes_row, names, strict=True):
            here = curves[(curves["task"] == task) & (curves["metric"] == metric)]
            if here.empty:
                ax.set_yticks([])
                ax.text(0.5, 0.5, "none: no classes", transform=ax.transAxes, ha="center", va="center", color="0.4")
                continue
            band = here[here["method"] == "random"].groupby("fraction")["value"]
            if len(band):
                low, high = band.quantile(0.05), band.quantile(0.95)
                ax.fill_between(100 * low.index, low, high, color="0.85", linewidth=0)
                ax.plot(100 * band.mean().index, band.mean(), color=look("random").color, linewidth=1)
            for method in methods:
                found = here[(here["method"] == method) & (here["direction"] == direction)]
                curve = found.groupby("fraction")["value"].mean()
                style = look(method)
                ax.plot(100 * curve.index, curve, color=style.color, marker=style.marker, markersize=3.5, linewidth=1.2)
        axes_row[0].set_ylabel(f"{METRICS[metric]}\n{DIRECTIONS[direction]}")
    for ax in axes[-1]:
        ax.set_xlabel("training samples removed (%)")
    legend(figure, methods, [Patch(color="0.85", label="random removal: mean, 5-95 % of draws and seeds")])
    return figure
