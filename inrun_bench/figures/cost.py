"""Cost: agreement with the stored reference over time in units of one training."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from inrun_bench.figures.style import TASKS_A_ROW, in_order, legend, look, panels
from inrun_bench.unit import DEFAULT_RECIPE, REFERENCE, title_of

__all__ = ["draw", "with_recipes"]

NO_TIME = ("random", REFERENCE)


def draw(rows: pd.DataFrame) -> Figure:
    """Draw one panel a task and recipe: Spearman correlation over cost, and what a perfect method would reach."""
    rows = with_recipes(rows)
    rows["task"] = [title_of(task, recipe) for task, recipe in zip(rows["task"], rows["recipe"], strict=True)]
    spearman = rows[rows["metric"] == "spearman"]
    if spearman.empty:
        return Figure()
    ceilings = rows[rows["metric"] == "spearman_ceiling"].set_index("task")["value"]
    figure, names, axes = panels(spearman, 1, height=3.0, most_columns=TASKS_A_ROW)
    methods = in_order(m for m in spearman["method"] if m not in NO_TIME)
    for number, (ax, name) in enumerate(zip(axes[0], names, strict=True)):
        own = spearman[spearman["task"] == name].set_index("method")
        for method in methods:
            if method in own.index:
                style = look(method)
                ax.plot(own.loc[method, "trainings"], own.loc[method, "value"], style.marker, color=style.color)
        if name in ceilings.index:
            ax.axhline(ceilings[name], color="black", linewidth=1, linestyle="--")
        ax.set_xscale("log")
        ax.margins(x=0.1)
        ax.set_xlabel("wall time (one training = 1)")
        if number % TASKS_A_ROW == 0:
            ax.set_ylabel("Spearman correlation\nwith the reference")
    noise = Line2D([], [], color="black", linestyle="--", label="noise ceiling of the reference")
    legend(figure, methods, [noise], columns=4)
    return figure


def with_recipes(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with a column `recipe`, which those of the default one may lack, and these first."""
    rows = rows.assign(recipe=rows["recipe"].fillna(DEFAULT_RECIPE) if "recipe" in rows else DEFAULT_RECIPE)
    return rows.sort_values("recipe", key=lambda names: names.where(names != DEFAULT_RECIPE, ""), kind="stable")
