"""Tasks to judge data valuation on.

>>> import tasks
>>> task = tasks.load("digits-mlp", seed=0)
>>> game = task.trajectory_game(utility="loss")

:func:`from_arrays` makes a task of your own data and model.

To add a task, add one file to ``tasks/catalog`` (or, in a package of your own, name a :class:`TaskSpec` under the
entry-point group ``inrun_bench.tasks``); nothing else changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.lazy_names import lazy_names

if TYPE_CHECKING:
    from tasks.arrays import from_arrays
    from tasks.conventional_game import ConventionalGame
    from tasks.data import Split
    from tasks.loading import CATALOG, load, names
    from tasks.recipe import Recipe
    from tasks.retraining_game import DivergedError
    from tasks.step_game import StepGame
    from tasks.task import Task, TaskSpec
    from tasks.trajectory_game import TrajectoryGame, retrain

__all__ = [
    "CATALOG",
    "ConventionalGame",
    "DivergedError",
    "Recipe",
    "Split",
    "StepGame",
    "Task",
    "TaskSpec",
    "TrajectoryGame",
    "from_arrays",
    "load",
    "names",
    "retrain",
]

__getattr__ = lazy_names(
    __name__,
    {
        "CATALOG": "loading",
        "ConventionalGame": "conventional_game",
        "DivergedError": "retraining_game",
        "Recipe": "recipe",
        "Split": "data",
        "StepGame": "step_game",
        "Task": "task",
        "TaskSpec": "task",
        "TrajectoryGame": "trajectory_game",
        "from_arrays": "arrays",
        "load": "loading",
        "names": "loading",
        "retrain": "trajectory_game",
    },
)
