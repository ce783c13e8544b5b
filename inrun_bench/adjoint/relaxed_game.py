"""The trajectory game with fractional players: its utility at any weights in [0, 1], and the derivative there.

A coalition is a corner of the cube ``[0, 1]^k`` of weights, where utilities are those of
:class:`tasks.TrajectoryGame`. In between, a player's samples count in part (:mod:`~inrun_bench.adjoint.sweep`). Players
are samples, or groups of samples (domains, classes, duplicates): then all of a group count alike, and the derivative by
the weight of a group is the sum of those by the weights of its samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from baselines.grouped import numbered_groups
from inrun_bench.adjoint.checkpoints import Storage
from inrun_bench.adjoint.run_cache import RunCache, run_cache
from inrun_bench.adjoint.smoothing import smoothed
from inrun_bench.adjoint.sweep import Differentiated, differentiate, utilities_at
from inrun_bench.adjoint.utilities import Utility
from tasks import Task, TrajectoryGame
from tasks.data import HeldOut

__all__ = ["RelaxedGame", "relaxed_game"]


@dataclass(frozen=True, eq=False)
class RelaxedGame:
    """A game (:class:`baselines.Game`) that can also be asked between its coalitions; see :func:`relaxed_game`.

    Attributes
    ----------
    task : Task
        Data, model and recipe.
    smooth : Task
        What is differentiated in its place; see :mod:`inrun_bench.adjoint.smoothing`.
    groups : int64 [n_train]
        Which player each sample belongs to.
    n_players : int
        Number of players k.
    utility, split, storage
        As in :func:`inrun_bench.adjoint.sweep.differentiate`.
    """

    task: Task
    smooth: Task
    groups: NDArray[np.int64]
    n_players: int
    utility: Utility
    split: HeldOut
    storage: Storage

    def __call__(self, coalitions: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the utility, float64 [m], of each coalition of bool [m, k]."""
        present = coalitions[:, self.groups]
        return self._trained(present) if self._cache is None else self._cache.trained(present, self._trained)

    @cached_property
    def _cache(self) -> RunCache | None:
        return run_cache(self.storage, self.task, self.utility, self.split, differentiate)

    def _trained(self, present: NDArray[np.bool_]) -> NDArray[np.float64]:
        if self.utility == "loss":  # the batched trainer is faster where nothing is to be differentiated
            return TrajectoryGame(self.task, split=self.split, memory_bytes=self.storage.memory_bytes)(present)
        return utilities_at(
            self.task, present.astype(np.float64), utility=self.utility, split=self.split, storage=self.storage
        )

    def differentiate(self, weights: NDArray[np.float64]) -> Differentiated:
        """Return utilities and derivatives, float64 [m, k], at the players' `weights` [m, k]."""
        found = differentiate(
            self.smooth, weights[:, self.groups], utility=self.utility, split=self.split, storage=self.storage
        )
        gradients = np.zeros(weights.shape)
        np.add.at(gradients.T, self.groups, found.gradients.T)
        return replace(found, gradients=gradients)

    def along_diagonal(self, points: NDArray[np.float64]) -> Differentiated:
        """Return utilities and derivatives where all players count alike, at each of the `points` [m] in [0, 1]."""
        return self.differentiate(np.repeat(points[:, None], self.n_players, axis=1))


def relaxed_game(
    task: Task,
    utility: Utility,
    split: HeldOut,
    groups: ArrayLike | None,
    storage: Storage,
    smoothing: float,
) -> RelaxedGame:
    """Return the relaxed trajectory game of a task.

    Parameters
    ----------
    task : Task
        Data, model and recipe.
    utility, split, storage
        As in :func:`inrun_bench.adjoint.sweep.differentiate`.
    groups : int [n_train], optional
        The number of the player to which each sample belongs; all of 0 .. k - 1 must occur. Default: each sample is a
        player.
    smoothing : float
        As in :func:`inrun_bench.adjoint.smoothing.smoothed`.

    Raises
    ------
    ValueError
        If the groups are not numbered that way, or as :func:`inrun_bench.adjoint.smoothing.smoothed`.
    """
    numbers = np.arange(task.n_train) if groups is None else numbered_groups(groups, task.n_train)
    return RelaxedGame(task, smoothed(task, smoothing), numbers, int(numbers.max()) + 1, utility, split, storage)
