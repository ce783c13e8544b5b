"""Cost: agreement with the stored reference over time in units of one training."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from inrun_bench.figures.style import TASKS_A_ROW, in_order, legend, look, panels
from inrun_bench.unit import REFERENCE

NO_TIME = ("random", REFERENCE)


def draw(rows: pd.DataFrame) -> Figure:
    """Draw one panel a task: Spearman correlation over cost, and the reference's own reliability."""
    spearman = rows[rows["metric"] == "spearman"]
    if spearman.empty:
        return Figure()
    figure, names, axes = panels(spearman, 1, height=3.0, most_columns=TASKS_A_ROW)
    methods = in_order(m for m in spearman["method"] if m not in NO_TIME)
    for number, (ax, task) in enumerate(zip(axes[0], names, strict=True)):
        own = spearman[spearman["task"] == task].set_index("method")
        for method in methods:
            if method in own.index:
                style = look(method)
                ax.plot(own.loc[method, "trainings"], own.loc[method, "value"], style.marker, color=style.color)
        if REFERENCE in own.index:
            ax.axhline(own.loc[REFERENCE, "value"], color="black", linewidth=1, linestyle="--")
        ax.set_xscale("log")
        ax.margins(x=0.1)
        ax.set_xlabel("wall time (one training = 1)")
        if number % TASKS_A_ROW == 0:
            ax.set_ylabel("Spearman correlation\nwith the reference")
    halves = Line2D([], [], color="black", linestyle="--", label="one half of the reference against the other")
    legend(figure, methods, [halves], columns=4)
    return figure
