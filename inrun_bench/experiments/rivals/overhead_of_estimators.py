"""What an estimator costs by itself: microseconds a coalition and player, on a game that returns at once."""

from __future__ import annotations

import statistics

import numpy as np
from numpy.typing import NDArray

from inrun_bench.methods.monte_carlo import GAME_ESTIMATORS
from inrun_bench.runs.unit import Row, Unit

__all__ = ["overhead"]

SIZES = (10, 100, 1000)
EVALUATIONS_PER_PLAYER = 200


class _Instant:
    """Every coalition is worth a number that is there already."""

    def __init__(self, n_players: int) -> None:
        self.n_players = n_players
        self._utilities = np.random.default_rng(0).random(10_000)

    def __call__(self, coalitions: NDArray[np.bool_]) -> NDArray[np.float64]:
        return self._utilities[: len(coalitions)]


def overhead(unit: Unit) -> list[Row]:
    """Run every estimator on games of 10, 100 and 1000 players."""
    rows: list[Row] = []
    for n in SIZES:
        for name, estimator in GAME_ESTIMATORS.items():
            taken = []
            for _ in range(int(unit.settings["repeats"])):
                found = estimator(_Instant(n), budget=EVALUATIONS_PER_PLAYER * n + 2, rng=0)
                taken.append(found.seconds / found.evaluations / n * 1e6)
            rows.append({"contender": name, "players": n, "metric": "microseconds", "value": statistics.median(taken)})
    return rows
