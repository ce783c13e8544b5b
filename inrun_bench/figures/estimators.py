"""Estimators: error against the reference over trainings and over seconds, one line an estimator."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from inrun_bench.figures.style import TASKS_A_ROW, in_order, legend, look, panels
from inrun_bench.unit import REFERENCE

LARGEST = 3.0  # errors shown: a constant would score 1
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
