"""Fidelity: relative error of each order against the step game, over the learning rate and over training."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from inrun_bench.figures.style import in_order, legend, look, panels


def draw(rows: pd.DataFrame) -> Figure:
    """Draw medians with quartile bands: above over the learning rate, below over training at the recipe's own rate."""
    errors = rows[rows["metric"] == "relative_error"]
    if errors.empty:
        return Figure()
    figure, names, axes = panels(errors, 2, height=3.0, sharey=True)
    methods = in_order(errors["method"])
    for column, task in enumerate(names):
        here = errors[errors["task"] == task]
        own = here[here["rate_factor"] == 1.0]
        above, below = axes[0][column], axes[1][column]
        _lines(above, here, "learning_rate", methods)
        above.set_xscale("log")
        rates = sorted(here["learning_rate"].unique())
        above.set_xticks(rates, [f"{rate:g}" for rate in rates])
        above.minorticks_off()
        above.set_xlabel("learning rate")
        if not own.empty:
            above.axvline(own["learning_rate"].iloc[0], color="0.4", linewidth=0.8, linestyle="--")
        _lines(below, own, "moment", methods)
        below.set_xlabel("share of training done")
        for ax in (above, below):
            ax.set_yscale("log")
    for row, where in zip(axes, ("all moments", "at the recipe's learning rate"), strict=True):
        row[0].set_ylabel(f"relative error of step values\n({where})")
    extra = [
        Line2D([], [], color="black", linestyle=":", label="noise of the judge (Monte Carlo)"),
        Line2D([], [], color="0.4", linestyle="--", linewidth=0.8, label="the recipe's learning rate"),
    ]
    legend(figure, methods, extra)
    return figure


def _lines(ax: Axes, errors: pd.DataFrame, x: str, methods: list[str]) -> None:
    for method in methods:
        grouped = errors[errors["method"] == method].groupby(x)["value"]
        style = look(method)
        ax.plot(grouped.median(), color=style.color, marker=style.marker, markersize=5)
        low, high = grouped.quantile(0.25), grouped.quantile(0.75)
        ax.fill_between(low.index, low, high, color=style.color, alpha=0.2, linewidth=0)
    noise = errors[errors["stderr"] > 0].groupby(x)["stderr"].median()  # an enumerated judge has none
    ax.plot(noise, color="black", linestyle=":", linewidth=1)
