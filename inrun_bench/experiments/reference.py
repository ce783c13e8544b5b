"""Reference: Shapley values of a task's trajectory game, with the utilities of all coalitions that they come from.

A unit is a block: some permutations, each with five cyclic shifts and their reverses (`baselines.permutation`), for all
of the objective's utilities from the same trainings; a game of few players is enumerated instead, and has one block.
See :mod:`inrun_bench.reference`, which makes blocks, combines them until they are reliable, and verifies them.
"""

from __future__ import annotations

import statistics

import pandas as pd

import tasks
from inrun_bench import metrics
from inrun_bench.reference.blocks import Reference, block, of_rows
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
    rows = with_recipes(rows)
    found = [
        of_rows(str(task), int(seed), str(recipe), [block for _, block in own.groupby("block")])
        for (task, recipe, seed), own in rows.groupby(["task", "recipe", "seed"], sort=False)
    ]
    about = {
        "**Reference values**, seed 0: Shapley values of the trajectory game, by permutations with shifts and reverses "
        "or by enumeration. Both utilities of a task come from the same trainings; standard errors (root mean square) "
        "are in units of the spread of the values.": [each for each in found if each.seed == 0],
        "**Reference values of other seeds**: medians over them of trainings, seconds and standard errors, and the "
        "least split-half correlation.": [each for each in found if each.seed != 0],
    }
    return "\n\n".join(f"{title}\n\n{_table(chosen)}" for title, chosen in about.items() if chosen)


def _table(found: list[Reference]) -> str:
    """Return a table of references, a line for each utility of a task and recipe."""
    lines = []
    for task in tasks.CATALOG:
        for recipe in tasks.CATALOG[task].recipes:
            same = [each for each in found if (each.task, each.recipe) == (task, recipe)]
            lines += _lines(sorted(same, key=lambda each: each.seed)) if same else []
    heads = ["task", "recipe", "utility", "seeds", "samples", "trainings", "core seconds"]
    return markdown(lines, [*heads, "split-half Spearman", "standard error"])


def _lines(found: list[Reference]) -> list[list[str]]:
    """Return a line a utility of the references of one task and recipe, of one seed or of several."""
    task, recipe, seeds = found[0].task, found[0].recipe, [each.seed for each in found]
    lines = []
    for utility in found[0].valuations:
        valuations = [each.valuations[utility] for each in found]
        noise = [metrics.root_mean_square(v.stderr) / v.values.std() for v in valuations if v.stderr is not None]
        exact = all(each.exact for each in found)
        quality = (
            ["exact", "0"]
            if exact
            else [f"{min(v.reliability() for v in valuations):.4f}", f"{statistics.median(noise):.2g}"]
        )
        work = (
            statistics.median(each.evaluations for each in found),
            statistics.median(each.seconds for each in found),
        )
        size = [str(len(valuations[0].values)), *(f"{amount:,.0f}" for amount in work)]
        lines.append([task, recipe, utility, _ranges(seeds), *size, *quality])
    return lines


def _ranges(seeds: list[int]) -> str:
    """Return ``"1-9"`` of seeds that follow each other, and the seeds otherwise."""
    whole = seeds == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]}-{seeds[-1]}" if whole and len(seeds) > 1 else ", ".join(map(str, seeds))
