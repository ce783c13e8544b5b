"""Values: what each method says each training sample is worth; all that other experiments judge.

A unit of a method holds one row a sample. The reference, sampled from many permutations with shifts and reverses, is
made in independent blocks: they run in parallel, and the even against the odd ones give the reference's own
reliability.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

import tasks
from baselines import Valuation, permutation_shapley
from inrun_bench.methods import valued
from inrun_bench.report.looks import look
from inrun_bench.report.markdown import markdown
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.stored_values import parameter_rows, reference_blocks, values_unit, warm_up, with_recipes
from inrun_bench.runs.unit import Row, Unit

SUMMARY = "the value of every training sample by every method, and the retraining reference"
EXCLUSIVE = False
DEFAULT = True


def units(plan: Plan) -> list[Unit]:
    """One unit a method, and one a block of the reference."""
    pairs = [(task, seed) for task in plan.tasks for seed in plan.seeds]
    blocks = [block for task, seed in pairs for block in reference_blocks(plan, task, seed)]
    return blocks + [values_unit(task, method, seed) for task, seed in pairs for method in plan.methods]


def measure(unit: Unit, _needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Compute the values of one method."""
    task = tasks.load(unit.task, unit.seed)
    warm_up(unit.task)
    return list(_rows(valued(unit.method, task, unit.random_seed)))


def measure_reference(unit: Unit, _needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Compute one block of the reference."""
    task = tasks.load(unit.task, unit.seed)
    warm_up(unit.task)
    valuation = permutation_shapley(
        task.trajectory_game(),
        n_permutations=int(unit.settings["permutations"]),
        antithetic=True,
        shifts=int(unit.settings["shifts"]),
        rng=unit.random_seed,
    )
    return list(_rows(valuation))


def _rows(valuation: Valuation) -> Iterable[Row]:
    stderr = np.full_like(valuation.values, np.nan) if valuation.stderr is None else valuation.stderr
    for sample, (value, error) in enumerate(zip(valuation.values, stderr, strict=True)):
        yield {"metric": "value", "sample": sample, "value": float(value), "stderr": float(error)}
    cost = {"evaluations": valuation.evaluations, "seconds": valuation.seconds}
    yield {"metric": "cost", "value": float(valuation.evaluations), **cost}
    yield from parameter_rows(valuation)


def table(rows: pd.DataFrame) -> str:
    """Return the diagnostics of differentiated runs."""
    return diagnostics(rows)


def diagnostics(rows: pd.DataFrame) -> str:
    """Return diagnostics of differentiated runs, beside their agreement with the reference where it was looked at."""
    rows = with_recipes(rows[rows["method"] == "few-run-8"])
    found = rows.groupby(["task", "recipe", "metric"])["value"].median().unstack("metric")
    if not {"sum", "gain", "roughness"} <= set(found):
        return ""
    found = found.dropna(subset=["roughness"])
    found = found.assign(**{"sum / gain": found["sum"] / found["gain"]}).rename(columns={"spearman": "Spearman"})
    shown = [name for name in ("sum / gain", "roughness", "Spearman") if name in found]
    cells = [[task, recipe, *(f"{own[name]:.3f}" for name in shown)] for (task, recipe), own in found.iterrows()]
    beside = ", and the Spearman correlation with the stored reference values" if "Spearman" in found else ""
    return (
        f"**Diagnostics** of {look('few-run-8').markdown}, none of which needs retraining{beside}; medians over "
        "seeds.\n\n"
        f"{markdown(cells, ['task', 'recipe', *shown])}"
    )
