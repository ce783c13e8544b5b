"""Tasks to judge data valuation on.

>>> import tasks
>>> task = tasks.load("digits-mlp", seed=0)
>>> game = task.trajectory_game(utility="loss")

To add a task, add one file to ``tasks/catalog`` (or, in a package of your own, name a :class:`TaskSpec` under the
entry-point group ``inrun_bench.tasks``); nothing else changes.
"""

from __future__ import annotations

import torch

from tasks import catalog
from tasks.data import Split
from tasks.recipe import Recipe
from tasks.registry import Registry, unknown_name
from tasks.step import StepGame
from tasks.task import Task, TaskSpec
from tasks.trajectory import DivergedError, TrajectoryGame, retrain

__all__ = [
    "CATALOG",
    "DivergedError",
    "Recipe",
    "Split",
    "StepGame",
    "Task",
    "TaskSpec",
    "TrajectoryGame",
    "load",
    "names",
    "retrain",
]


CATALOG: Registry[TaskSpec] = Registry(
    "task",
    catalog,
    lambda name, module: {name: module.TASK},
    group="inrun_bench.tasks",
    accepts=lambda thing: isinstance(thing, TaskSpec),
)


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
        Source of the split, the wrong targets, the initial weights and the batch order; not negative.
    recipe : str
        One of the task's recipes: ``"sgd"``, ``"momentum"`` or ``"adamw"`` for the embedded ones.
    n_train : int, optional
        Number of training samples; the task's own default where None.
    flipped : float
        Share of training samples whose target is made wrong, in [0, 1]: another label, or in regression and of
        sequences that of another sample.
    dtype : torch.dtype
        Of features and weights. The same initial weights are rounded to it. Tokens stay integers.

    Returns
    -------
    Task

    Raises
    ------
    ValueError
        If a name is unknown (the nearest known one is suggested) or a number out of range.
    """
    task = CATALOG[name]
    if recipe not in task.recipes:
        raise ValueError(unknown_name("recipe", recipe, list(task.recipes)))
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    return task.build(name, seed=seed, recipe=recipe, n_train=n_train, flipped=flipped, dtype=dtype)


def names(*, large: bool | None = None) -> list[str]:
    """Return the names of all tasks, embedded and from entry points; or of those that are large, or are not."""
    return [name for name, task in CATALOG.items() if large is None or task.large == large]
