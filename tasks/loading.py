"""Tasks by name: all that there are, and one of them built."""

from __future__ import annotations

import torch

from tasks import catalog
from tasks.registry import Registry
from tasks.task import Task, TaskSpec

__all__ = ["CATALOG", "load", "names"]

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
    recipe: str | None = None,
    n_train: int | None = None,
    flipped: float | None = None,
    dtype: torch.dtype | None = None,
) -> Task:
    """Build the task `name`, which may have defaults of its own (:attr:`tasks.TaskSpec.defaults`).

    Parameters
    ----------
    name : str
        One of :func:`names`.
    seed : int
        Source of the split, the wrong targets, the initial weights and the batch order; not negative.
    recipe : str, optional
        One of the task's recipes: ``"sgd"``, ``"momentum"`` or ``"adamw"`` for the embedded ones. Default: ``"sgd"``.
    n_train : int, optional
        Number of training samples; the task's own default where None.
    flipped : float, optional
        Share of training samples whose target is made wrong, in [0, 1]: another label, or in regression and of
        sequences that of another sample. Default: 0.1.
    dtype : torch.dtype, optional
        Of features and weights. The same initial weights are rounded to it. Tokens stay integers. Default: float32.

    Returns
    -------
    Task

    Raises
    ------
    ValueError
        If a name is unknown (the nearest known one is suggested) or a number out of range.
    """
    return CATALOG[name].build(name, seed=seed, recipe=recipe, n_train=n_train, flipped=flipped, dtype=dtype)


def names(*, large: bool | None = None) -> list[str]:
    """Return the names of all tasks, embedded and from entry points; or of those that are large, or are not."""
    return [name for name, task in CATALOG.items() if large is None or task.large == large]
