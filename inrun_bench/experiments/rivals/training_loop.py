"""Trainings of digits-mlp many at a time against one model at a time, on the same coalitions.

The loop is what a user would write: a model, its optimiser, a masked batch loss, ``backward`` and ``step``. It runs on
one thread, where it is faster than on several.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

import tasks
from inrun_bench.experiments.rivals.turns import compare, threads
from inrun_bench.runs.unit import Row, Unit

__all__ = ["against_batches"]

PERMUTATIONS = 4


def against_batches(unit: Unit) -> list[Row]:
    """Time both on the prefixes of some permutations, and compare the utilities."""
    task = tasks.load(unit.task, unit.seed)
    rng = np.random.default_rng(unit.random_seed)
    ranks = np.stack([rng.permutation(task.n_train) for _ in range(PERMUTATIONS)])
    coalitions = (ranks[:, None, :] < np.arange(1, task.n_train)[:, None]).reshape(-1, task.n_train)
    game = task.trajectory_game()

    def loop() -> NDArray[np.float64]:
        with threads(1):
            return np.array([_train_one(task, coalition) for coalition in coalitions])

    contenders = {"inrun-bench": lambda: game(coalitions), "loop": loop}
    ours, theirs = (run() for run in contenders.values())
    return [
        *compare(
            contenders,
            "loop",
            repeats=int(unit.settings["repeats"]),
            work=dict.fromkeys(contenders, len(coalitions)),
        ),
        {"metric": "largest_difference", "value": float(np.abs(ours - theirs).max())},
    ]


def _train_one(task: tasks.Task, coalition: NDArray[np.bool_]) -> float:
    model = task.model()
    optimizer = task.optimizer(model)
    present = torch.from_numpy(coalition).to(task.train.x.dtype)
    for index in task.batches():
        losses = task.objective.losses(model(task.train.x[index]), task.train.y[index])
        ((losses * present[index]).sum() / len(index)).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return -float(task.loss(model, task.validation))
