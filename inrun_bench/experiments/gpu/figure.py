"""GPU: speed of the kernels relative to cuBLAS by shape, and throughput of training steps relative to regular ones."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inrun_bench.report.looks import WIDEST, Look, hatched, in_order, look
from inrun_bench.report.paper import continued

PANELS = {
    "ratio_to_cublas": "speed (torch.mm of the\nweight gradient alone = 1)",
    "throughput_ratio": "throughput of a step\n(regular step = 1)",
    "net_throughput_ratio": "the same, less the time of\nthe validation gradient",
}
KERNELS = {
    "wgrad-dot": Look("weight gradient and scores", "#006d2c", "o"),
    "wgrad-dot-torch": Look("weight gradient and scores, torch twin", "#a1d99b", "o"),
    "project-dot": Look("projection", "#08519c", "s"),
    "project-dot-torch": Look("projection, torch twin", "#9ecae1", "s"),
    "gram-dot": Look("Gram matrices, one validation sequence", "#54278f", "^"),
    "gram-dot-torch": Look("Gram matrices, torch twin", "#bcbddc", "^"),
}
"""How kernels look, and in which order they are shown."""

BASELINES = ("cublas", "regular", "validation")  # 1 by definition, or no training step
INTERPRETED = "cpu (interpreter)"


def draw(rows: pd.DataFrame) -> Figure:
    """Draw one panel a ratio and device; rows of the interpreter alone where there are no others."""
    if "device" not in rows:
        return Figure()
    rows = rows[rows["metric"].isin(PANELS) & ~rows["method"].isin(BASELINES)]
    measured = rows[rows["device"] != INTERPRETED]
    rows = rows if measured.empty else measured
    found = dict(list(rows.groupby(["metric", "device"])))
    panels = [
        (metric, device, part)
        for (metric, device), own in sorted(
            found.items(), key=lambda item: (list(PANELS).index(item[0][0]), item[0][1])
        )
        for part in _parts(own.assign(group=[_group(row) for row in own.to_dict("records")]))
    ]
    figure = Figure(figsize=(WIDEST, 3.3 * len(panels)), layout="constrained")
    axes: list[Axes] = list(figure.subplots(len(panels), squeeze=False)[:, 0]) if panels else []
    for ax, (metric, device, own) in zip(axes, panels, strict=True):
        _bars(ax, own)
        ax.set_ylabel(PANELS[metric])
        ax.set_title(
            f"{device}: checks, no measure of speed" if device == INTERPRETED else f"{device}: median, quartiles",
            loc="right",
        )
        ax.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1.06))
    return figure


def _parts(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the rows of a panel in as many parts as are drawn below each other."""
    groups = continued(list(dict.fromkeys(rows["group"])), rows["method"].nunique())
    return [rows[rows["group"].isin(part)] for part in groups]


def _group(row: dict[str, object]) -> str:
    """Return what the bars that stand together have in common: a layer and its shape, or a model and its optimiser."""
    if row["metric"] == "ratio_to_cublas":
        *_, d_in, _arrow, d_out = str(row["shape"]).split(" ")
        return f"{textwrap.fill(str(row['task']), 11)}\n{d_in} → {d_out}"
    compiled = "" if row["compiled"] == "no" else f", {row['compiled']}"
    return f"{row['task']}\n{row['optimizer']}{compiled}"


def _bars(ax: Axes, rows: pd.DataFrame) -> None:
    """Draw median and quartiles, one bar a method; a group may lack some methods."""
    groups = list(dict.fromkeys(rows["group"]))
    found = set(rows["method"])
    methods = [*(m for m in KERNELS if m in found), *in_order(found - KERNELS.keys())]
    width = 0.84 / len(methods)
    for place, method in enumerate(methods):
        own = rows[rows["method"] == method]
        style = KERNELS.get(method) or look(method)
        centres = np.array([groups.index(group) for group in own["group"]]) + width * (place - (len(methods) - 1) / 2)
        quartiles = np.stack([own["value"] - own["low"], own["high"] - own["value"]])
        ax.bar(centres, own["value"], width * 0.92, color=style.color, label=style.label, **hatched(style))
        ax.errorbar(centres, own["value"], yerr=quartiles, fmt="none", ecolor="0.3", elinewidth=0.8)
        for centre, top, value in zip(centres, own["high"], own["value"], strict=True):
            ax.annotate(
                f"{value:.2f}",
                (centre, top),
                (0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=6.5,
                rotation=90,
            )
    ax.margins(y=0.12)
    ax.axhline(1, color="0.4", linewidth=0.8)
    ax.set_xticks(range(len(groups)), groups, fontsize=7)
    ax.grid(visible=False, axis="x")
