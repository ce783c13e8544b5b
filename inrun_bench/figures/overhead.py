"""Overhead: time and memory of a step, and wall time of whole valuations, in units of regular training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inrun_bench.figures.style import in_order, look

WORKLOADS = {
    "gpt-64": "GPT, 64 positions",
    "gpt-256": "GPT, 256 positions",
    "gpt-1024": "GPT, 1024 positions",
    "mlp": "MLP, 1024 wide",
    "cnn": "residual CNN",
}
"""What the models are called that are no task's, in the order in which they are shown."""


@dataclass(frozen=True)
class _Panel:
    """Rows with the columns group, method, value, low and high, and how they are shown."""

    rows: pd.DataFrame
    label: str
    scale: str = "log"


def draw(rows: pd.DataFrame) -> Figure:
    """Draw the panels that have rows.

    Of large models: what scores cost beyond a validation pass, and peak memory. Of the tasks' models: time and peak
    memory of a step. Of the tasks: time for all values.
    """
    panels = [panel for panel in (*_workload_panels(rows), *_task_panels(rows)) if not panel.rows.empty]
    figure = Figure(figsize=(11, 2.9 * len(panels)), layout="constrained")
    axes: list[Axes] = list(figure.subplots(len(panels), squeeze=False)[:, 0]) if panels else []
    named: list[str] = []
    for ax, panel in zip(axes, panels, strict=True):
        methods = in_order(m for m in panel.rows["method"] if m != "regular")
        _bars(ax, panel, methods)
        ax.set_ylabel(panel.label)
        if methods != named:
            ax.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
        named = methods
    return figure


def of_workloads(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of models that are no task's, in the order of `WORKLOADS`."""
    widths = rows["width"] if "width" in rows else pd.Series(np.nan, rows.index)
    found = rows[widths.isna() & (rows["metric"] != "run_ratio")]
    places = {name: place for place, name in enumerate(WORKLOADS)}
    return found.sort_values("task", key=lambda names: names.map(places).fillna(len(places)), kind="stable")


def of_tasks(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the steps of tasks' models, with the `width` of each; 0 stands for the task's own model."""
    return rows[rows["width"].notna() & (rows["metric"] == "step_ratio")] if "width" in rows else rows[:0]


def _workload_panels(rows: pd.DataFrame) -> list[_Panel]:
    steps = of_workloads(rows)
    steps = steps.assign(group=steps["task"].map(lambda name: WORKLOADS.get(name, name)))
    net, peak = (steps[steps["metric"] == metric] for metric in ("net_ratio", "peak_ratio"))
    peak = peak[~peak["method"].isin(["regular", "validation"])].assign(low=np.nan, high=np.nan)
    return [
        _Panel(net, "time of a step less a validation pass\n/ regular step (median, quartiles)", "linear"),
        _Panel(peak, "peak memory of a step\n/ regular step", "linear"),
    ]


def _task_panels(rows: pd.DataFrame) -> list[_Panel]:
    steps = of_tasks(rows)
    panels = []
    if not steps.empty:
        steps = steps.sort_values(["task", "width"], kind="stable")
        own = steps["width"] == 0
        steps["group"] = steps["task"] + own.map({True: "\nits own", False: "\n1024 wide, batch 64"})
        regular = steps[steps["method"] == "regular"].set_index("group")["peak_bytes"]
        memory = steps["peak_bytes"] / steps["group"].map(regular)
        panels += [
            _Panel(steps, "time of a step\n/ regular step (median, quartiles)"),
            _Panel(steps.assign(value=memory, low=np.nan, high=np.nan), "peak memory of a step\n/ regular step"),
        ]
    runs = rows[rows["metric"] == "run_ratio"]
    runs = runs.assign(group=runs["task"], low=np.nan, high=np.nan)
    return [*panels, _Panel(runs, "time for the values of all samples\n/ one plain training run")]


def _bars(ax: Axes, panel: _Panel, methods: list[str]) -> None:
    """Draw one bar a method, those of a group side by side; a group may lack some methods."""
    groups = list(dict.fromkeys(panel.rows["group"]))
    table = panel.rows.set_index(["group", "method"])
    width = 0.8 / len(methods)
    for method in methods:
        style = look(method)
        places = {group: [m for m in methods if (group, m) in table.index] for group in groups}
        has = [number for number, group in enumerate(groups) if method in places[group]]
        found = table.loc[[(groups[number], method) for number in has]]
        offsets = [places[groups[number]].index(method) - (len(places[groups[number]]) - 1) / 2 for number in has]
        centres = np.array(has) + width * np.array(offsets)
        ax.bar(centres, found["value"], width * 0.92, color=style.color, label=style.label)
        quartiles = np.stack([found["value"] - found["low"], found["high"] - found["value"]])
        ax.errorbar(centres, found["value"], yerr=quartiles, fmt="none", ecolor="0.3", elinewidth=0.8)
        for centre, height, top in zip(centres, found["value"], found["high"], strict=True):
            ax.annotate(
                _number(height, panel.scale),
                (centre, np.fmax(height, top)),
                (0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=6.5,
            )
    ax.set_yscale(panel.scale)
    ax.axhline(1, color="0.4", linewidth=0.8)
    ax.set_xticks(range(len(groups)), groups)
    ax.grid(visible=False, axis="x")


def _number(height: float, scale: str) -> str:
    if scale == "linear":
        return f"{height:.2f}"
    return f"{height:.2g}" if height < 99 else f"{height:,.0f}"
