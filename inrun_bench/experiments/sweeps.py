"""Sweeps: what a differentiated run costs, in units of a plain one, by task, recipe and way to keep its states.

The same eight runs, on random coalitions, are differentiated (:func:`inrun_bench.adjoint.differentiate`) and trained
plainly (:func:`tasks.retrain`), both in stacks as large as they choose. Both take turns, each ratio is formed within a
turn, and the median over turns is reported; one thread.

Rows, for each way: ``trainings``, the time of a differentiated run in plain ones; ``peak_ratio``, its peak memory over
theirs (:func:`inrun_bench.runs.peak_memory.peak_bytes`; of states on disk what is read of them at a time);
``stored_bytes``, what was kept of states.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import tasks
from inrun_bench.adjoint import Differentiated, Storage, differentiate
from inrun_bench.adjoint.checkpoints import StateStorage
from inrun_bench.experiments.rivals.turns import compare
from inrun_bench.report.looks import Look, legend, points, ratio_axis
from inrun_bench.report.markdown import markdown
from inrun_bench.runs.peak_memory import peak_bytes
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.unit import Row, Unit

SUMMARY = "time and memory of a differentiated run in units of a plain one, by recipe and way to keep the states"
EXCLUSIVE = True
DEFAULT = False

RUNS = 8
TURNS = 5


def units(plan: Plan) -> list[Unit]:
    """One unit a task and recipe, of the first seed."""
    return [
        Unit("sweeps", task, "differentiated-run", plan.seeds[0], {"recipe": recipe, "turns": TURNS})
        for task in plan.tasks
        for recipe in tasks.CATALOG[task].recipes
    ]


def measure(unit: Unit, _needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Time the runs differentiated, each way, against the same runs trained plainly."""
    task = tasks.load(unit.task, unit.seed, recipe=unit.recipe)
    coalitions = np.random.default_rng(unit.random_seed).random((RUNS, task.n_train)) < 0.5

    def train() -> None:
        tasks.retrain(task, coalitions, [("loss", "validation")])

    plain_peak = peak_bytes(train)
    rows: list[Row] = []
    for way in get_args(StateStorage):

        def sweep(way: StateStorage = way) -> Differentiated:
            return differentiate(task, coalitions.astype(np.float64), storage=Storage(way))

        peak = peak_bytes(sweep)
        timed = compare(
            {"trained": train, "differentiated": sweep}, "differentiated", repeats=int(unit.settings["turns"])
        )
        found = {(row.get("contender"), row["metric"]): row["value"] for row in timed}
        cost = {"way": way, "seconds": found["differentiated", "seconds"], "evaluations": RUNS, "peak_bytes": peak}
        rows += [
            {**cost, "metric": "trainings", "value": found["trained", "speedup"]},
            {**cost, "metric": "peak_ratio", "value": peak / plain_peak},
            {**cost, "metric": "stored_bytes", "value": sweep().stored_bytes},
        ]
    return rows


WAYS = {
    "memory": Look("all states in memory", "#08519c", "o"),
    "disk": Look("all states on the disk", "#d95f02", "s"),
    "recomputed": Look("some in memory, the others computed anew", "#1b9e77", "^"),
}
"""How ways to keep the states look, and in which order they are shown."""

MEASURES = {
    "trainings": "time (plain training = 1)",
    "peak_ratio": "peak memory (plain training = 1)",
    "stored_bytes": "stored states (MB)",
}
A_LINE = 0.2  # inches, of a task and recipe


def draw(rows: pd.DataFrame) -> Figure:
    """Draw time, peak memory and what is stored, a panel each: medians, a line a task and recipe."""
    rows = _in_order(rows[rows["metric"].isin(MEASURES)])
    if rows.empty:
        return Figure()
    lines = list(dict.fromkeys(zip(rows["task"], rows["recipe"], strict=True)))
    ways = [way for way in WAYS if way in set(rows["way"])]
    figure = Figure(figsize=(10, A_LINE * len(lines) + 1.2), layout="constrained")
    axes = figure.subplots(1, len(MEASURES), sharey=True)
    values = rows.groupby(["metric", "task", "recipe", "way"])["value"].median()
    for ax, (metric, label) in zip(axes, MEASURES.items(), strict=True):
        for position, line in enumerate(lines):
            for place, way in enumerate(ways):
                value = values.get((metric, *line, way), np.nan) / (1e6 if metric == "stored_bytes" else 1)
                y = position + 0.5 * ((place + 0.5) / len(ways) - 0.5)
                ax.plot(value, y, **points(WAYS[way]), markersize=4)
        if metric == "stored_bytes":
            ax.set_xscale("log")
            ax.set_xlabel(label)
        else:
            ratio_axis(ax, label)
    axes[0].set_yticks(range(len(lines)), [", ".join(line) for line in lines])
    axes[0].set_ylim(len(lines) - 0.5, -0.5)
    legend(figure, [], [Line2D([], [], **points(WAYS[way]), label=WAYS[way].label) for way in ways])
    return figure


def _in_order(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sort_values(["task", "recipe"], ascending=[True, False], kind="stable")  # SGD before AdamW


def table(rows: pd.DataFrame) -> str:
    """Return time, memory and what is stored, by task, recipe and way of storing."""
    if rows.empty:
        return ""
    rows = _in_order(rows)
    found = rows.pivot_table(index=["task", "recipe", "way"], columns="metric", values="value")
    ways = list(dict.fromkeys(rows["way"]))
    cells = []
    for task, recipe in dict.fromkeys(zip(rows["task"], rows["recipe"], strict=True)):
        of_ways = (found.loc[task, recipe, way] for way in ways)
        texts = (
            f"{own['trainings']:.1f} / {own['peak_ratio']:.1f} / {own['stored_bytes'] / 1e6:.2g} MB" for own in of_ways
        )
        cells.append([task, recipe, *texts])
    return (
        "**Differentiated runs**, 8 at a time: time / peak memory in units of the same runs trained plainly, and what "
        "was stored of their states, by the way to keep these (medians of turns, one core). States on the disk are no "
        f"part of the memory.\n\n{markdown(cells, ['task', 'recipe', *ways])}"
    )
