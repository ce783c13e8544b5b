"""Detection: how well low values point at wrong labels and targets."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from inrun_bench.figures.style import in_order, look, panels
from inrun_bench.intervals import left_out, over_seeds

METRICS = {"auroc": "AUROC", "average_precision": "average precision"}


def draw(rows: pd.DataFrame) -> Figure:
    """Draw means with 95 % intervals over seeds, and each seed; one row of panels a metric, chance as a line."""
    table = over_seeds(rows[rows["metric"].isin(METRICS)])
    methods = in_order(rows["method"])[::-1]
    figure, names, axes = panels(rows, len(METRICS), height=0.27 * len(methods) + 0.8, sharey=True)
    for axes_row, (metric, label) in zip(axes, METRICS.items(), strict=True):
        for ax, task in zip(axes_row, names, strict=True):
            shares = rows.query("task == @task and metric == 'share_flipped'")["value"]
            ax.axvline(0.5 if metric == "auroc" else shares.mean(), color="0.4", linestyle=":", linewidth=1)
            for position, method in enumerate(methods):
                if (task, method, metric) not in table.index:
                    continue
                mean, low, high = table.loc[(task, method, metric), ["mean", "low", "high"]]
                style = look(method)
                ax.plot([max(low, 0), min(high, 1)], [position] * 2, color=style.color, linewidth=1.5)
                ax.plot(mean, position, color=style.color, marker=style.marker, markersize=7)
            ax.set_xlim(0, 1.02)
            ax.set_xlabel(label)
        axes_row[0].set_yticks(range(len(methods)), [look(m).label for m in methods])
    note = left_out(table)
    title = "wrong labels found by their low values (mean, 95 % CI over seeds; dotted: chance)"
    figure.suptitle(f"{title}\n{note}" if note else title, fontsize=10)
    return figure
