"""Groups: each method's values of classes, domains and random groups, beside the exact ones."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from inrun_bench.figures.style import TASKS_A_ROW, in_order, legend, look, panels
from inrun_bench.unit import REFERENCE

MARGIN = 1.5  # of a panel above and below the exact values, in units of their range


def draw(rows: pd.DataFrame) -> Figure:
    """Draw one panel a task and grouping, of its first seed, with the groups in the order of their exact values.

    A method ranks the groups as the exact values do where its own points rise from left to right, and errs where they
    lie off the line; those too far off are drawn hollow, at the edge.
    """
    values = rows[(rows["metric"] == "value") & (rows["seed"] == rows.groupby("task")["seed"].transform("min"))]
    values = values.assign(task=values["task"] + ", " + values["groups"])
    exact = values[values["method"] == REFERENCE].sort_values("value", kind="stable")
    if exact.empty:
        return Figure()
    figure, names, axes = panels(values, 1, height=3.0, most_columns=TASKS_A_ROW)
    methods = in_order(m for m in values["method"] if m != REFERENCE)
    for number, (ax, title) in enumerate(zip(axes[0], names, strict=True)):
        truth = exact[exact["task"] == title].set_index("player")
        ax.plot(range(len(truth)), truth["value"], color="black", linewidth=1)
        margin = MARGIN * np.ptp(truth["value"])
        low, high = truth["value"].min() - margin, truth["value"].max() + margin
        for method in methods:
            own = values[(values["task"] == title) & (values["method"] == method)].set_index("player")["value"]
            style, own = look(method), own.reindex(truth.index)
            near = own.between(low, high)
            for points, fill in ((own.where(near), "full"), (own.mask(near).clip(low, high), "none")):
                ax.plot(points.to_numpy(), style.marker, color=style.color, fillstyle=fill, markersize=4.5, alpha=0.8)
        long = truth["name"].str.len().max() > 3
        ax.set_xticks(range(len(truth)), truth["name"], rotation=35 if long else 0, ha="right" if long else "center")
        if number % TASKS_A_ROW == 0:
            ax.set_ylabel("value of a group (nats)")
    legend(figure, methods, [Line2D([], [], color="black", linewidth=1, label="exact")])
    return figure
