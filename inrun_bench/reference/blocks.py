"""Reference values as they are stored; :mod:`~inrun_bench.reference.make` makes them, and ``_proof`` proves them.

The published ones lie beside the package, whatever folder one works in. One's own lie in a folder of one's own, and
are read together with those (:func:`references`).

A reference is the mean of independent blocks (:mod:`inrun_bench.experiments.reference`). How far it can be trusted is
the Spearman correlation between the mean of all even draws and that of all odd ones: its split-half reliability.

>>> from inrun_bench.reference.blocks import read, references
>>> read(references(), "iris-logreg").valuations["accuracy"].values.shape
(16,)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from baselines import Valuation
from baselines.permutation import SHIFTS
from inrun_bench.reference.estimate import value_rows
from inrun_bench.runs.store import Overlay, Store
from inrun_bench.runs.unit import DEFAULT_RECIPE, REFERENCE, Unit, recipe_setting
from tasks import CATALOG

__all__ = [
    "PUBLISHED",
    "Reference",
    "as_unit",
    "block",
    "blocks",
    "exists",
    "of_rows",
    "read",
    "recipes",
    "references",
]

PUBLISHED = Path(__file__).resolve().parents[2] / "results" / "reference"
"""Where published references lie, in a clone and where the package is installed."""

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


def references(folder: Path | None = None) -> Overlay:
    """Return the references that can be read: those in `folder`, and the published ones.

    Parameters
    ----------
    folder : Path, optional
        A folder of one's own, where 'inrun-bench reference --out' put some; what it lacks is read from the published
        ones.

    Raises
    ------
    ValueError
        If the folder is no folder of results, or nothing is published beside this package.
    """
    return Overlay((*([] if folder is None else [Store(folder, create=False)]), _published(PUBLISHED)))


@cache
def _published(folder: Path) -> Store:
    try:
        return Store(folder, create=False)
    except ValueError as error:
        raise ValueError(f"the references that come with inrun-bench are not beside it: {error}") from error


def read(store: Store | Overlay, task: str, seed: int = 0, recipe: str = DEFAULT_RECIPE) -> Reference:
    """Return the reference of a task from all of its blocks.

    Parameters
    ----------
    store : Store or Overlay
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
        If there is none, or its blocks are of different games.
    """
    parts = [rows for _, rows in blocks(store, task, seed, recipe)]
    if not parts:
        raise ValueError(
            f"there is no reference for task {task!r}, seed {seed}, recipe {recipe!r}, in {store}; "
            f"make it with 'inrun-bench reference --task {task} --seed {seed} --recipe {recipe}'"
        )
    return of_rows(task, seed, recipe, parts)


def of_rows(task: str, seed: int, recipe: str, parts: Sequence[pd.DataFrame]) -> Reference:
    """Return the reference that is the mean of independent parts, one table of rows each: blocks, or a whole one."""
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


def as_unit(reference: Reference) -> Unit:
    """Return a unit whose rows are the values of a reference: what experiments that judge by it need.

    So the values travel to the workers as the rows of any other unit do, and stand in the results beside what they
    judged.
    """
    settings = {"reference": reference.digest(), **recipe_setting(reference.recipe)}
    rows = [
        {**row, "identity": reference.identity}
        for utility, valuation in reference.valuations.items()
        for row in value_rows(valuation, utility)
    ]
    return Unit("reference-values", reference.task, REFERENCE, reference.seed, settings, given=tuple(rows))


def exists(store: Store | Overlay, task: str, seed: int = 0, recipe: str = DEFAULT_RECIPE) -> bool:
    """Return whether there is a reference of the task, trained by that recipe."""
    return store.has(block(task, seed, 0, recipe))


def recipes(store: Store | Overlay, task: str, seed: int = 0) -> list[str]:
    """Return the recipes of the task for which there are references, in the task's order."""
    return [recipe for recipe in CATALOG[task].recipes if exists(store, task, seed, recipe)]


def block(task: str, seed: int, number: int, recipe: str = DEFAULT_RECIPE) -> Unit:
    """Return the unit of work that is a block of the reference of a task."""
    settings = {"block": number, "shifts": SHIFTS, "draws": DRAWS, **recipe_setting(recipe)}
    return Unit("reference", task, REFERENCE, seed, settings)


def blocks(
    store: Store | Overlay, task: str, seed: int, recipe: str = DEFAULT_RECIPE
) -> list[tuple[Unit, pd.DataFrame]]:
    """Return the blocks that are there, from number 0 on, each with its rows.

    Raises
    ------
    ValueError
        If they are not all of the same task: its data, its model or its recipe changed between them.
    """
    found: list[tuple[Unit, pd.DataFrame]] = []
    contents: dict[str, int] = {}
    while store.has(unit := block(task, seed, len(found), recipe)):
        provenance = store.provenance(unit)
        if provenance is not None and provenance.fingerprint is not None:
            contents.setdefault(provenance.fingerprint["task"], len(found))
        found.append((unit, store.read(unit)))
    if len(contents) > 1:
        first, other, *_ = contents.values()
        raise ValueError(
            f"blocks {first} and {other} of the reference for {task!r}, seed {seed}, recipe {recipe!r}, are of two "
            f"contents of the task; make a reference of the present one in a folder of its own, with --out"
        )
    return found
