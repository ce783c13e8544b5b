"""Reference values as they are stored; :mod:`~inrun_bench.reference_making` makes them, and ``_proof`` proves them.

A reference is the mean of independent blocks (:mod:`inrun_bench.experiments.reference`). How far it can be trusted is
the Spearman correlation between the mean of all even draws and that of all odd ones: its split-half reliability.

>>> from inrun_bench.reference import FOLDER, read
>>> from inrun_bench.store import Store
>>> read(Store(FOLDER), "iris-logreg").valuations["accuracy"].values.shape
(16,)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from baselines import Valuation
from inrun_bench.store import Store
from inrun_bench.unit import DEFAULT_RECIPE, REFERENCE, Unit, recipe_setting
from tasks import CATALOG

__all__ = ["FOLDER", "Reference", "block", "blocks", "exists", "read", "recipes"]

FOLDER = Path("results", "reference")

SHIFTS = 5  # of each permutation, and as many reverses: one draw
DRAWS = 8  # a block


@dataclass(frozen=True)
class Reference:
    """The reference of a task, trained by one of its recipes: one valuation a utility, from the same trainings.

    Attributes
    ----------
    task : str
        Name of the task.
    seed : int
        Its seed.
    recipe : str
        Recipe of the trainings.
    valuations : mapping of str to Valuation
        By utility, ``"loss"`` first; `halves` are the means of the even and the odd draws, and `evaluations` counts
        trainings. Enumerated values have standard errors of zero.
    identity : str
        SHA-256 of what defines the game, see `TrajectoryGame.identity`.
    blocks : int
        Independent parts.
    """

    task: str
    seed: int
    recipe: str
    valuations: Mapping[str, Valuation]
    identity: str
    blocks: int

    @property
    def exact(self) -> bool:
        """Whether the values were enumerated rather than sampled."""
        return all(v.stderr is not None and not v.stderr.any() for v in self.valuations.values())

    @property
    def evaluations(self) -> int:
        """Trainings behind the values."""
        return next(iter(self.valuations.values())).evaluations

    @property
    def seconds(self) -> float:
        """Time that they took, of one core."""
        return next(iter(self.valuations.values())).seconds

    def reliability(self) -> dict[str, float]:
        """Return the split-half Spearman correlation by utility."""
        return {utility: valuation.reliability() for utility, valuation in self.valuations.items()}

    def digest(self) -> str:
        """Return a short hash of the values, which tells references apart."""
        values = np.stack([valuation.values for valuation in self.valuations.values()])
        return hashlib.sha256(values.tobytes()).hexdigest()[:12]


def read(store: Store, task: str, seed: int = 0, recipe: str = DEFAULT_RECIPE) -> Reference:
    """Return the reference of a task from all of its blocks.

    Parameters
    ----------
    store : Store
        Where 'inrun-bench reference' put it.
    task : str
        Name of the task.
    seed : int
        Its seed.
    recipe : str
        Recipe of the trainings.

    Returns
    -------
    Reference

    Raises
    ------
    ValueError
        If there is none.
    """
    parts = [rows for _, rows in blocks(store, task, seed, recipe)]
    if not parts:
        raise ValueError(
            f"there is no reference for task {task!r}, seed {seed}, recipe {recipe!r}, in {str(store.root)!r}; "
            f"make it with 'inrun-bench reference --task {task} --seed {seed} --recipe {recipe}'"
        )
    rows = pd.concat(parts)
    cost = rows[rows["metric"] == "utilities"].groupby("utility")[["evaluations", "seconds"]].sum()
    values = rows[rows["metric"] == "value"]
    valuations = {}
    for utility in values["utility"].unique():
        own = values[values["utility"] == utility].groupby("sample")
        means = own[["value", "even", "odd"]].mean()
        valuations[str(utility)] = Valuation(
            values=means["value"].to_numpy(),
            stderr=np.sqrt(own["stderr"].agg(lambda e: np.square(e).sum())).to_numpy() / len(parts),
            evaluations=int(cost["evaluations"][utility]),
            seconds=float(cost["seconds"][utility]),
            method="reference",
            halves=means[["even", "odd"]].to_numpy().T,
        )
    return Reference(task, seed, recipe, valuations, str(values["identity"].iloc[0]), len(parts))


def exists(store: Store, task: str, seed: int = 0, recipe: str = DEFAULT_RECIPE) -> bool:
    """Return whether there is a reference of the task, trained by that recipe."""
    return store.has(block(task, seed, 0, recipe))


def recipes(store: Store, task: str, seed: int = 0) -> list[str]:
    """Return the recipes of the task for which there are references, in the task's order."""
    return [recipe for recipe in CATALOG[task].recipes if exists(store, task, seed, recipe)]


def block(task: str, seed: int, number: int, recipe: str = DEFAULT_RECIPE) -> Unit:
    """Return the unit of work that is a block of the reference of a task."""
    settings = {"block": number, "shifts": SHIFTS, "draws": DRAWS, **recipe_setting(recipe)}
    return Unit("reference", task, REFERENCE, seed, settings)


def blocks(store: Store, task: str, seed: int, recipe: str = DEFAULT_RECIPE) -> list[tuple[Unit, pd.DataFrame]]:
    """Return the blocks that are there, from number 0 on, each with its rows."""
    found: list[tuple[Unit, pd.DataFrame]] = []
    while store.has(unit := block(task, seed, len(found), recipe)):
        found.append((unit, store.read(unit)))
    return found
