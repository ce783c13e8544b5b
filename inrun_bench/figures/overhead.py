"""Overhead: time and memory of a step, and wall time of whole valuations, in units of regular training."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inrun_bench.figures.style import in_order, look


def draw(rows: pd.DataFrame) -> Figure:
    """Draw three panels, those that have rows: step time, step memory, and time for all values of a task."""
    steps = rows[rows["metric"] == "step_ratio"]
    runs = rows[rows["metric"] == "run_ratio"]
    runs = runs.assign(group=runs["task"], low=np.nan, high=np.nan)
    panels: list[tuple[pd.DataFrame, str, str]] = []
    if not steps.empty:
        steps = steps.sort_values(["task", "width"], kind="stable")
        own = steps["width"] == 0
        steps["group"] = steps["task"] + own.map({True: "\nits own", False: "\n1024 wide, batch 64"})
        regular = steps[steps["method"] == "regular"].set_index("group")["peak_bytes"]
        steps["memory"] = steps["peak_bytes"] / steps["group"].map(regular)
        panels.append((steps, "value", "time of a step\n/ regular step (median, quartiles)"))
        panels.append((steps, "memory", "peak memory of a step\n/ regular step"))
    if not runs.empty:
        panels.append((runs, "value", "time for the values of all samples\n/ one plain training run"))
    figure = Figure(figsize=(11, 2.9 * len(panels)), layout="constrained")
    axes: list[Axes] = list(figure.subplots(len(panels), squeeze=False)[:, 0]) if panels else []
    for ax, (frame, column, label) in zip(axes, panels, strict=True):
        _bars(ax, frame, column)
        ax.set_ylabel(label)
        if column == "value":
            ax.legend(ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def _bars(ax: Axes, rows: pd.DataFrame, column: str) -> None:
    groups = list(dict.fromkeys(rows["group"]))
    methods = in_order(m for m in rows["method"] if m != "regular")
    width = 0.8 / len(methods)
    for number, method in enumerate(methods):
        found = rows[rows["method"] == method].set_index("group").reindex(groups)
        centres = np.arange(len(groups)) + (number - (len(methods) - 1) / 2) * width
        style = look(method)
        ax.bar(centres, found[column], width * 0.92, color=style.color, label=style.label)
        if column == "value":
            quartiles = [found["value"] - found["low"], found["high"] - found["value"]]
            ax.errorbar(centres, found["value"], yerr=quartiles, fmt="none", ecolor="0.3", elinewidth=0.8)
        for centre, height in zip(centres, found[column], strict=True):
            if np.isfinite(height):
                ax.annotate(
                    f"{height:.2g}" if height < 99 else f"{height:,.0f}",
                    (centre, height),
                    (0, 2),
                    textcoords="offset points",
                    ha="center",
                    fontsize=6.5,
                )
    ax.set_yscale("log")
    ax.axhline(1, color="0.4", linewidth=0.8)
    ax.set_xticks(range(len(groups)), groups)
    ax.grid(visible=False, axis="x")
