"""Removal: retrain without the samples that a method values most, or least, and look at the test set.

Removing what a method calls most valuable should hurt more than removing samples at random, and removing the least
valuable should hurt less, or help. The area between the two curves, over the share removed, is the summary: larger is
better. Retraining is that of the trajectory game: removed samples contribute nothing, steps keep their denominator.
There is a curve for each utility of the task: the loss, and where there are classes, the accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

import tasks
from inrun_bench import metrics
from inrun_bench.report.looks import in_order, legend, look, panels
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.stored_values import read_reference, read_values, reference_blocks, values_unit
from inrun_bench.runs.unit import REFERENCE, Row, Unit

SUMMARY = "test loss and accuracy after retraining without the top or bottom samples"
EXCLUSIVE = False
DEFAULT = True


@dataclass(frozen=True)
class Knobs:
    """Random removals behind the band of the curves."""

    draws: int


KNOBS = {"quick": Knobs(draws=20), "standard": Knobs(draws=100), "large": Knobs(draws=10)}

FRACTIONS = np.array(metrics.FRACTIONS)


def units(plan: Plan) -> list[Unit]:
    """One unit a method, the reference among them where there is one, and one for random removal."""
    found = []
    for task in plan.tasks:
        for seed in plan.seeds:
            blocks = reference_blocks(plan, task, seed)
            found.append(Unit("removal", task, "random", seed, {"draws": plan.of_profile(KNOBS).draws}))
            if blocks:
                found.append(Unit("removal", task, REFERENCE, seed, needs=blocks))
            found += [
                Unit("removal", task, method, seed, needs=(values_unit(task, method, seed),))
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
    utilities = list(task.objective.utilities)
    curves = _curves(task, orders, utilities)
    rows: list[Row] = [
        {"metric": f"test_{utility}", "direction": name, "fraction": float(fraction), "value": float(value)}
        for name, curve in curves.items()
        for utility, column in zip(utilities, curve.T, strict=True)
        for fraction, value in zip(FRACTIONS, -column if utility == "loss" else column, strict=True)
    ]
    if unit.method != "random":
        ends = zip(utilities, curves["top"].T, curves["bottom"].T, strict=True)
        rows += [
            {"metric": f"area_{name}", "value": metrics.RemovalCurve(FRACTIONS, top, bottom).area}
            for name, top, bottom in ends
        ]
    return rows


def _curves(
    task: tasks.Task, orders: Mapping[str, NDArray[np.intp]], utilities: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Return utilities on the test set, float64 [fractions, utilities], as ever more of each order is removed."""
    keep = np.concatenate([metrics.kept_along(order, FRACTIONS) for order in orders.values()])
    outcomes = tasks.retrain(task, keep, [(utility, "test") for utility in utilities])
    return dict(zip(orders, outcomes.reshape(len(orders), len(FRACTIONS), len(utilities)), strict=True))


DIRECTIONS = {"top": "most valuable removed first", "bottom": "least valuable removed first"}
METRICS = {"test_accuracy": "test accuracy", "test_loss": "test loss"}


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
