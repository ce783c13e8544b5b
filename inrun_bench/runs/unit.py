"""Units of work and the rows that they return."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "DEFAULT_RECIPE",
    "REFERENCE",
    "Measure",
    "Measured",
    "Row",
    "Setting",
    "Unit",
    "measure_of",
    "recipe_setting",
    "title_of",
]

REFERENCE = "reference"
"""What stands in the method column for the retraining reference."""

DEFAULT_RECIPE = "sgd"
"""The recipe of units without a setting that names one."""

Setting: TypeAlias = str | int | float | bool

Measure: TypeAlias = "Callable[[Unit, dict[Unit, pd.DataFrame]], list[Row]]"

Row: TypeAlias = dict[str, Any]
"""A flat record: a metric, its value, and whatever else says where it holds; see :mod:`inrun_bench.runs.store`."""


class Measured(Protocol):
    """What measures units: an experiment, as far as a run has to do with it."""

    @property
    def EXCLUSIVE(self) -> bool:  # noqa: N802 - a constant of modules
        """Whether units measure time, and must run alone."""

    @property
    def measure(self) -> Measure:
        """What returns the rows of a unit, given those of the units that it needs."""


def measure_of(measured: Measured, unit: Unit) -> Measure:
    """Return what measures a unit: for one of the reference the experiment's `measure_reference`, where it has one."""
    own: Measure = getattr(measured, "measure_reference", measured.measure)
    return own if unit.method == REFERENCE else measured.measure


@dataclass(frozen=True)
class Unit:
    """One piece of work: it can run alone, anywhere, and always returns the same rows.

    Attributes
    ----------
    experiment, task, method : str
        What is measured, on what, of which method.
    seed : int
        Seed of the task: split, flipped labels, initial weights, batch order.
    settings : mapping
        Whatever else defines the unit.
    needs : tuple of Unit
        Units whose rows this one reads.
    given : tuple of dict, optional
        The unit's rows, where they are known without measuring anything; its settings then tell them apart.
    """

    experiment: str
    task: str
    method: str
    seed: int
    settings: Mapping[str, Setting] = field(default_factory=dict, hash=False)
    needs: tuple[Unit, ...] = ()
    given: tuple[Row, ...] | None = field(default=None, compare=False, repr=False)

    @cached_property
    def key(self) -> str:
        """Hash of all that defines the unit, 16 hexadecimal digits."""
        definition = [*self._identity, [need.key for need in self.needs]]
        return hashlib.sha256(json.dumps(definition).encode()).hexdigest()[:16]

    @property
    def recipe(self) -> str:
        """The recipe by which the unit's task is trained."""
        return str(self.settings.get("recipe", DEFAULT_RECIPE))

    @property
    def random_seed(self) -> np.random.SeedSequence:
        """The unit's own random stream: it depends on the unit's definition, and on nothing that runs beside it."""
        digest = hashlib.sha256(json.dumps(self._identity).encode()).digest()
        return np.random.SeedSequence(int.from_bytes(digest[:16], "big"))

    @property
    def columns(self) -> Row:
        """What every row of the unit carries."""
        return {
            "experiment": self.experiment,
            "task": self.task,
            "method": self.method,
            "seed": self.seed,
            **self.settings,
        }

    @property
    def _identity(self) -> list[Any]:
        return [self.experiment, self.task, self.method, self.seed, sorted(self.settings.items())]

    def __str__(self) -> str:
        settings = "".join(f" {name}={value}" for name, value in self.settings.items())
        return f"{self.experiment} {self.task} {self.method} seed={self.seed}{settings}"


def recipe_setting(recipe: str) -> dict[str, Setting]:
    """Return the setting that names a recipe: none for the default one, whose units are older than recipes."""
    return {} if recipe == DEFAULT_RECIPE else {"recipe": recipe}


def title_of(task: str, recipe: str) -> str:
    """Return what stands above results on a task: its name, and that of the recipe where it is not the default one."""
    return task if recipe == DEFAULT_RECIPE else f"{task}, {recipe}"
