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

import tasks
from inrun_bench.adjoint import Differentiated, Storage, differentiate
from inrun_bench.adjoint.checkpoints import StateStorage
from inrun_bench.experiments.rivals.turns import compare
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


def table(rows: pd.DataFrame) -> str:
    """Return time, memory and what is stored, by task, recipe and way of storing."""
    if rows.empty:
        return ""
    rows = rows.sort_values(["task", "recipe"], ascending=[True, False], kind="stable")  # SGD before AdamW
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
