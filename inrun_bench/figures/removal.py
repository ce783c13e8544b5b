"""Removal curves: what the test set says when the most, or the least, valuable samples are left out."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from inrun_bench.figures.style import in_order, legend, look, panels

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
