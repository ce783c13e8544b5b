"""Agreement against cost: how close to the retraining reference, and how long that took."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from inrun_bench.figures.style import in_order, legend, look, panels
from inrun_bench.intervals import left_out, over_seeds


def draw(rows: pd.DataFrame) -> Figure:
    """Draw Spearman correlation over wall time, one panel a task, with the noise ceiling and chance."""
    spearman = rows[rows["metric"].isin(["spearman", "spearman_ceiling"])]
    means = over_seeds(spearman)["mean"]
    table = over_seeds(spearman)
    figure, names, axes = panels(rows, 1, height=4.0, sharey=True)
    methods = in_order(m for m in rows["method"] if m not in ("reference", "random"))
    for ax, task in zip(axes[0], names, strict=True):
        ceiling = means.get((task, "reference", "spearman_ceiling"))
        if ceiling is not None:
            ax.axhline(ceiling, color="black", linewidth=1, linestyle="--")
        if (task, "random", "spearman") in means:
            ax.axhline(means[task, "random", "spearman"], color=look("random").color, linewidth=1, linestyle=":")
        for method in methods:
            found = rows.query("task == @task and method == @method and metric == 'spearman'")
            if found.empty:
                continue
            mean, low, high = table.loc[(task, method, "spearman"), ["mean", "low", "high"]]
            style = look(method)
            ax.errorbar(
                found["seconds"].median(),
                mean,
                yerr=[[mean - low], [high - mean]],
                color=style.color,
                marker=style.marker,
                markersize=7,
                capsize=3,
                linestyle="none",
            )
        ax.set_xscale("log")
        ax.margins(x=0.12)
        ax.set_xlabel("wall time for all values, one core (s)")
    axes[0][0].set_ylabel("Spearman correlation with the\nretraining reference (95 % CI over seeds)")
    extra = [
        Line2D([], [], color="black", linestyle="--", label="noise ceiling of the reference"),
        Line2D([], [], color=look("random").color, linestyle=":", label="random values"),
    ]
    legend(figure, methods, extra)
    if note := left_out(table):
        figure.suptitle(note, fontsize=8)
    return figure
