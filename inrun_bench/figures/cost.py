"""Cost: agreement with the stored reference over time in units of one training."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from inrun_bench.figures.style import in_order, legend, look
from inrun_bench.unit import REFERENCE

COLUMNS = 4  # tasks side by side
NO_TIME = ("random", REFERENCE)


def draw(rows: pd.DataFrame) -> Figure:
    """Draw one panel a task: Spearman correlation over cost, and the reference's own reliability."""
    spearman = rows[rows["metric"] == "spearman"]
    names = list(dict.fromkeys(spearman["task"]))
    if not names:
        return Figure()
    methods = in_order(m for m in spearman["method"] if m not in NO_TIME)
    columns = min(COLUMNS, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(max(3.3 * columns, 4.5), 3.0 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for ax in grid.flat[len(names) :]:
        ax.set_visible(False)
    for number, (ax, task) in enumerate(zip(grid.flat, names, strict=False)):
        own = spearman[spearman["task"] == task].set_index("method")
        for method in methods:
            if method in own.index:
                style = look(method)
                ax.plot(own.loc[method, "trainings"], own.loc[method, "value"], style.marker, color=style.color)
        if REFERENCE in own.index:
            ax.axhline(own.loc[REFERENCE, "value"], color="black", linewidth=1, linestyle="--")
        ax.set_xscale("log")
        ax.set_title(task)
        ax.set_xlabel("time / one training")
        if number % columns == 0:
            ax.set_ylabel("Spearman correlation\nwith the reference")
    halves = Line2D([], [], color="black", linestyle="--", label="one half of the reference against the other")
    legend(figure, methods, [halves], columns=4)
    return figure
