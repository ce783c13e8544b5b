"""Values as rows: the units of work that hold them, and what is read of these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from numbers import Real

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import tasks
from baselines import Valuation
from baselines.permutation import SHIFTS
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.unit import DEFAULT_RECIPE, REFERENCE, Row, Unit

__all__ = [
    "REFERENCES",
    "ReferenceKnobs",
    "parameter_rows",
    "read_reference",
    "read_values",
    "reference_blocks",
    "values_unit",
    "warm_up",
    "with_recipes",
]


@dataclass(frozen=True)
class ReferenceKnobs:
    """How much work the reference of a task is.

    Attributes
    ----------
    permutations : mapping of str to int
        By task; ``"default"`` is for tasks not named. A multiple of ``10 * blocks``: five shifts and their reverses
        make a draw.
    blocks : int
        Independent parts, an even number: the even against the odd ones give the reference's split-half reliability.
    """

    permutations: Mapping[str, int]
    blocks: int


REFERENCES = {
    "quick": ReferenceKnobs({"breast-cancer-logreg": 240, "digits-mlp": 80, "default": 40}, blocks=4),
    "standard": ReferenceKnobs(
        {
            "breast-cancer-logreg": 4000,
            "diabetes-ridge": 4000,
            "digits-mlp": 800,
            "digits-sgd-large-lr": 800,
            "iris-logreg": 4000,
            "wine-logreg": 4000,
            "default": 400,
        },
        blocks=20,
    ),
}
"""By profile."""


def values_unit(task: str, method: str, seed: int) -> Unit:
    """Return the unit that holds the values of one method."""
    return Unit("values", task, method, seed)


def reference_blocks(plan: Plan, task: str, seed: int) -> tuple[Unit, ...]:
    """Return the units that together hold the reference values of a task; a large task has none."""
    if task not in plan.tasks_with_reference:
        return ()
    knobs = plan.of_profile(REFERENCES)
    blocks = knobs.blocks
    permutations = knobs.permutations.get(task, knobs.permutations["default"]) // blocks
    return tuple(
        Unit("values", task, REFERENCE, seed, {"block": block, "permutations": permutations, "shifts": SHIFTS})
        for block in range(blocks)
    )


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


def with_recipes(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with a column `recipe`, which those of the default one may lack, and these first."""
    rows = rows.assign(recipe=rows["recipe"].fillna(DEFAULT_RECIPE) if "recipe" in rows else DEFAULT_RECIPE)
    return rows.sort_values("recipe", key=lambda names: names.where(names != DEFAULT_RECIPE, ""), kind="stable")
