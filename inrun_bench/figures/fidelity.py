"""Fidelity: relative error of each order against the step game, over the learning rate and over training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from inrun_bench.figures.style import in_order, legend, look, panels

BEYOND = "0.93"  # shade of the learning rates at which training does not converge


def draw(rows: pd.DataFrame) -> Figure:
    """Draw medians with quartile bands, one row of panels each, of those that have rows.

    Over the learning rate of SGD; over the steps of SGD at the recipe's own rate; over the steps of AdamW at its own.
    """
    errors = rows[rows["metric"] == "relative_error"]
    if errors.empty:
        return Figure()
    own = errors["rate_factor"] == 1.0
    parts = {
        "SGD, all steps": ("learning_rate", errors[errors["recipe"] == "sgd"]),
        "SGD, recipe's learning rate": ("step", errors[(errors["recipe"] == "sgd") & own]),
        "AdamW, recipe's learning rate": ("step", errors[(errors["recipe"] == "adamw") & own]),
    }
    parts = {where: part for where, part in parts.items() if not part[1].empty}
    figure, names, axes = panels(errors, len(parts), height=2.9, sharey="row")
    figure.suptitle("Relative error of in-run scores against the Shapley values of the same step: lower is better")
    methods = in_order(errors["method"])
    edges = converging_rates(rows)
    for row, (where, (x, part)) in zip(axes, parts.items(), strict=True):
        row[0].set_ylabel(f"relative error\n({where})")
        row[0].set_yscale("log")
        row[0].yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        for ax, task in zip(row, names, strict=True):
            here = part[part["task"] == task]
            _lines(ax, here, x, methods)
            _label(ax, here, x)
            if x == "learning_rate":
                _mark_rates(ax, here, edges.get((task, "sgd")))
    extra: list[Artist] = [
        Line2D([], [], color="black", linestyle=":", label="noise of the judge (Monte Carlo)"),
        Line2D([], [], color="0.4", linestyle="--", linewidth=0.8, label="the recipe's learning rate"),
        Patch(color=BEYOND, label="training does not converge"),
    ]
    legend(figure, methods, extra)
    return figure


def converging_rates(rows: pd.DataFrame) -> Mapping[tuple[str, str], float]:
    """Return the largest learning rate, by task and recipe, at which training converges.

    It does where the loss over the training set falls from epoch to epoch in every seed. Where no rate does, or the
    rows do not tell, there is none.
    """
    losses = rows[rows["metric"] == "training_loss"]
    if losses.empty:
        return {}
    run = ["task", "recipe", "learning_rate", "seed"]
    falls = losses.sort_values("epoch").groupby(run)["value"].agg(lambda by_epoch: bool((np.diff(by_epoch) < 0).all()))
    converges = falls.groupby(run[:-1]).all()
    rates = converges[converges].reset_index().groupby(run[:2])["learning_rate"].max()
    return {(str(task), str(recipe)): float(rate) for (task, recipe), rate in rates.items()}


def _lines(ax: Axes, errors: pd.DataFrame, x: str, methods: list[str]) -> None:
    for method in methods:
        grouped = errors[errors["method"] == method].groupby(x)["value"]
        style = look(method)
        ax.plot(grouped.median(), color=style.color, marker=style.marker, markersize=4.5, linewidth=1.3)
        low, high = grouped.quantile(0.25), grouped.quantile(0.75)
        ax.fill_between(low.index, low, high, color=style.color, alpha=0.15, linewidth=0)
    noise = errors[errors["stderr"] > 0].groupby(x)["stderr"].median()  # an enumerated judge has none
    ax.plot(noise, color="black", linestyle=":", linewidth=1)


def _label(ax: Axes, errors: pd.DataFrame, x: str) -> None:
    places = sorted(errors[x].unique())
    if x == "learning_rate":
        ax.set_xscale("log")
        ax.set_xlabel("learning rate")
    else:
        if 1 in places:  # a run whose first steps are looked at one by one
            ax.set_xscale("symlog", linthresh=5, linscale=1)
        ax.set_xlabel("training steps done")
    ax.set_xticks(places, [f"{place:g}" for place in places])
    ax.minorticks_off()


def _mark_rates(ax: Axes, errors: pd.DataFrame, edge: float | None) -> None:
    """Mark the recipe's own rate, and shade those beyond the largest at which training converges."""
    own = errors[errors["rate_factor"] == 1.0]["learning_rate"]
    if not own.empty:
        ax.axvline(own.iloc[0], color="0.4", linewidth=0.8, linestyle="--")
    beyond = errors[errors["learning_rate"] > (edge or np.inf)]["learning_rate"]
    if edge and not beyond.empty:
        ax.axvspan(np.sqrt(edge * beyond.min()), beyond.max() * 1.15, color=BEYOND, zorder=0)
