"""Values: what each method says each training sample is worth; all that other experiments judge.

A unit of a method holds one row a sample. The reference, sampled from many permutations with shifts and reverses, is
made in independent blocks: they run in parallel, and the even against the odd ones give the reference's own
reliability.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from numbers import Real

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import tasks
from baselines import Valuation, permutation_shapley
from inrun_bench.methods import valued
from inrun_bench.plan import Plan
from inrun_bench.reference import SHIFTS
from inrun_bench.unit import REFERENCE, Row, Unit

SUMMARY = "the value of every training sample by every method, and the retraining reference"
EXCLUSIVE = False
DEFAULT = True


def units(plan: Plan) -> list[Unit]:
    """One unit a method, and one a block of the reference."""
    pairs = [(task, seed) for task in plan.tasks for seed in plan.seeds]
    blocks = [block for task, seed in pairs for block in reference_blocks(plan, task, seed)]
    return blocks + [values_unit(task, method, seed) for task, seed in pairs for method in plan.methods]


def values_unit(task: str, method: str, seed: int) -> Unit:
    """Return the unit that holds the values of one method."""
    return Unit("values", task, method, seed)


def reference_blocks(plan: Plan, task: str, seed: int) -> tuple[Unit, ...]:
    """Return the units that together hold the reference values of a task; a large task has none."""
    if task not in plan.tasks_with_reference:
        return ()
    blocks = plan.profile.reference_blocks
    permutations = plan.profile.permutations_for(task) // blocks
    return tuple(
        Unit("values", task, REFERENCE, seed, {"block": block, "permutations": permutations, "shifts": SHIFTS})
        for block in range(blocks)
    )


def measure(unit: Unit, _needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Compute the values of one unit."""
    task = tasks.load(unit.task, unit.seed)
    warm_up(unit.task)
    if unit.method == REFERENCE:
        valuation = permutation_shapley(
            task.trajectory_game(),
            n_permutations=int(unit.settings["permutations"]),
            antithetic=True,
            shifts=int(unit.settings["shifts"]),
            rng=unit.random_seed,
        )
    else:
        valuation = valued(unit.method, task, unit.random_seed)
    return list(_rows(valuation))


def read_values(rows: pd.DataFrame) -> NDArray[np.float64]:
    """Return the values in a unit's rows, float64 [n_train]."""
    values = rows[rows["metric"] == "value"].sort_values("sample")["value"]
    return np.asarray(values, dtype=np.float64)


def read_reference(blocks: Iterable[pd.DataFrame]) -> NDArray[np.float64]:
    """Return the blocks of a reference, float64 [blocks, n_train]; their mean is the reference."""
    return np.stack([read_values(rows) for rows in blocks])


@cache
def warm_up(name: str) -> None:
    """Train a little, once in a process, so that no method's time is charged with what torch loads when first used."""
    task = tasks.load(name)
    model = task.model()
    task.train_on(model, task.optimizer(model), task.batches()[0])
    task.trajectory_game()(np.ones((1, task.n_train), dtype=np.bool_))


def parameter_rows(valuation: Valuation) -> Iterable[Row]:
    """Return a row for each parameter of a valuation that is a number: diagnostics, accounts."""
    for name, parameter in valuation.parameters.items():
        if isinstance(parameter, Real) and not isinstance(parameter, bool):
            yield {"metric": name, "value": float(parameter)}


def _rows(valuation: Valuation) -> Iterable[Row]:
    stderr = np.full_like(valuation.values, np.nan) if valuation.stderr is None else valuation.stderr
    for sample, (value, error) in enumerate(zip(valuation.values, stderr, strict=True)):
        yield {"metric": "value", "sample": sample, "value": float(value), "stderr": float(error)}
    cost = {"evaluations": valuation.evaluations, "seconds": valuation.seconds}
    yield {"metric": "cost", "value": float(valuation.evaluations), **cost}
    yield from parameter_rows(valuation)
