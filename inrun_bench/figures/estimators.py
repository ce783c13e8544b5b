"""Estimators: error against the reference over trainings and over seconds, one line an estimator."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from inrun_bench.figures.style import TASKS_A_ROW, in_order, legend, look, panels
from inrun_bench.unit import REFERENCE

__all__ = ["draw", "efficiencies"]

LARGEST = 3.0  # errors shown: a constant would score 1
BIASED = ("tmc", "coalition-gradients")
AXES = {"evaluations": "trainings", "seconds": "seconds on one core"}


def draw(rows: pd.DataFrame) -> Figure:
    """Draw two panels a task: medians over repetitions on logarithmic axes, and the error of the reference itself."""
    errors = rows[rows["metric"] == "error"]
    if errors.empty:
        return Figure()
    figure, names, axes = panels(errors, len(AXES), height=2.7, most_columns=TASKS_A_ROW)
    methods = in_order(m for m in errors["method"] if m != REFERENCE)
    for (axis, label), row in zip(AXES.items(), axes, strict=True):
        for number, (ax, task) in enumerate(zip(row, names, strict=True)):
            _panel(ax, errors[errors["task"] == task], methods, axis)
            ax.set_xlabel(label)
            if number % TASKS_A_ROW == 0:
                ax.set_ylabel("error (spread of the values = 1)")
    noise = Line2D([], [], color="black", linestyle="--", label="standard error of the reference itself")
    legend(figure, methods, [noise], columns=4)
    return figure


def efficiencies(rows: pd.DataFrame) -> pd.DataFrame:
    """Return how many times fewer trainings than plain permutations give the same standard error.

    A variance falls as one over the trainings, so that their product says what an estimator needs. Biased estimators
    are left out: their standard errors say little of their errors.

    Parameters
    ----------
    rows : DataFrame
        Those of the estimators experiment.

    Returns
    -------
    DataFrame
        One row an unbiased estimator, one column a task; empty where no rows hold standard errors.
    """
    errors = rows[(rows["metric"] == "stderr") & ~rows["method"].isin(BIASED)]
    last = errors.loc[errors.groupby(["task", "method", "repetition"])["look"].idxmax()]
    need = last.assign(need=last["value"] ** 2 * last["evaluations"]).groupby(["task", "method"])["need"].median()
    by_method = need.unstack("task")
    return by_method.rdiv(by_method.loc["permutation"]) if "permutation" in by_method.index else by_method.iloc[:0]


def _panel(ax: Axes, errors: pd.DataFrame, methods: list[str], axis: str) -> None:
    for method in methods:
        found = errors[errors["method"] == method].groupby("look")[[axis, "value"]].median()
        found = found[found["value"] <= LARGEST]
        if len(found):
            style = look(method)
            ax.plot(found[axis], found["value"], color=style.color, marker=style.marker, markersize=3, linewidth=1.3)
    noise = errors[errors["method"] == REFERENCE]["value"]
    if len(noise) and noise.iloc[0] > 0:
        ax.axhline(noise.iloc[0], color="black", linewidth=1, linestyle="--")
    ax.set_xscale("log")
    ax.set_yscale("log")
