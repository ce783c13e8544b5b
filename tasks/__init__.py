"""Tasks to judge data valuation on.

>>> import tasks
>>> task = tasks.load("digits-mlp", seed=0)
>>> game = task.trajectory_game(utility="loss")

To add a task, add one file to ``tasks/catalog`` (or, in a package of your own, name a :class:`TaskSpec` under the
entry-point group ``inrun_bench.tasks``); nothing else changes.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points

import torch

from tasks import catalog
from tasks.data import Split
from tasks.recipe import Recipe
from tasks.step import StepGame
from tasks.task import Task, TaskSpec
from tasks.trajectory import TrajectoryGame, retrain

__all__ = ["Recipe", "Split", "StepGame", "Task", "TaskSpec", "TrajectoryGame", "load", "names", "retrain", "spec"]


def load(
    name: str,
    seed: int = 0,
    *,
    recipe: str = "sgd",
    n_train: int | None = None,
    flipped: float = 0.1,
    dtype: torch.dtype = torch.float32,
) -> Task:
    """Build the task `name`.

    Parameters
    ----------
    name : str
        One of :func:`names`.
    seed : int
        Source of the split, the flipped labels, the initial weights and the batch order; not negative.
    recipe : str
        One of the task's recipes: ``"sgd"`` or ``"adamw"`` for the embedded ones.
    n_train : int, optional
        Number of training samples; the task's own default where None.
    flipped : float
        Share of training labels that are made wrong, in [0, 1].
    dtype : torch.dtype
        Of features and weights. The same initial weights are rounded to it.

    Returns
    -------
    Task

    Raises
    ------
    ValueError
        If a name is unknown (the nearest known one is suggested) or a number out of range.
    """
    task = spec(name)
    if recipe not in task.recipes:
        raise ValueError(_unknown("recipe", recipe, list(task.recipes)))
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    return task.build(name, seed=seed, recipe=recipe, n_train=n_train, flipped=flipped, dtype=dtype)


def names() -> list[str]:
    """Return the names of all tasks, embedded and from entry points, sorted."""
    return sorted(_specs())


def spec(name: str) -> TaskSpec:
    """Return the catalogue's entry for `name`."""
    try:
        return _specs()[name]
    except KeyError:
        raise ValueError(_unknown("task", name, names())) from None


@cache
def _specs() -> dict[str, TaskSpec]:
    found: dict[str, TaskSpec] = {}
    for module in pkgutil.iter_modules(catalog.__path__):
        task = importlib.import_module(f"{catalog.__name__}.{module.name}").TASK
        found[module.name.replace("_", "-")] = task
    for entry in entry_points(group="inrun_bench.tasks"):
        found[entry.name] = entry.load()
    return found


def _unknown(kind: str, got: str, known: list[str]) -> str:
    near = difflib.get_close_matches(got, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {got!r}{hint} (known: {', '.join(known)})"
