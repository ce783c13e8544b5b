"""Reference: Shapley values of a task's trajectory game, with the utilities of all coalitions that they come from.

A unit is a block: some permutations, each with five cyclic shifts and their reverses (`baselines.permutation`), for all
of the objective's utilities from the same trainings; a game of few players is enumerated instead, and has one block.
See :mod:`inrun_bench.reference`, which makes blocks, combines them until they are reliable, and verifies them.
"""

from __future__ import annotations

import pandas as pd

import tasks
from inrun_bench import metrics
from inrun_bench.reference.blocks import block, of_rows
from inrun_bench.reference.estimate import EXCLUSIVE, measure
from inrun_bench.report.markdown import markdown
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.stored_values import with_recipes
from inrun_bench.runs.unit import Unit

__all__ = ["DEFAULT", "EXCLUSIVE", "SUMMARY", "measure", "table", "units"]

SUMMARY = "reference values and the utilities behind them; 'inrun-bench reference' makes as many blocks as it takes"
DEFAULT = False


def units(plan: Plan) -> list[Unit]:
    """The first block of each task and seed, of the default recipe."""
    return [block(task, seed, 0) for task in plan.tasks for seed in plan.seeds]


def table(rows: pd.DataFrame) -> str:
    """Return how much work is behind the reference values of each task and recipe, and how far they can be trusted."""
    rows = with_recipes(rows[rows["seed"] == 0])
    cells = []
    for task in (name for name in tasks.CATALOG if name in set(rows["task"])):
        for recipe in (name for name in tasks.CATALOG[task].recipes if name in set(rows["recipe"])):
            own = rows[(rows["task"] == task) & (rows["recipe"] == recipe)]
            if own.empty:
                continue
            found = of_rows(task, 0, recipe, [block for _, block in own.groupby("block")])
            for utility, valuation in found.valuations.items():
                assert valuation.stderr is not None
                noise = metrics.root_mean_square(valuation.stderr) / valuation.values.std()
                quality = ["exact", "0"] if found.exact else [f"{valuation.reliability():.4f}", f"{noise:.2g}"]
                size = [str(len(valuation.values)), f"{found.evaluations:,}", f"{found.seconds:,.0f}"]
                cells.append([task, recipe, utility, *size, *quality])
    if not cells:
        return ""
    heads = ["task", "recipe", "utility", "samples", "trainings", "core seconds"]
    heads += ["split-half Spearman", "standard error"]
    return (
        "**Reference values**, seed 0: Shapley values of the trajectory game, by permutations with shifts and reverses "
        "or by enumeration. Both utilities of a task come from the same trainings; standard errors (root mean square) "
        f"are in units of the spread of the values.\n\n{markdown(cells, heads)}"
    )
