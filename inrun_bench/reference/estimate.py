"""The values of one block: permutations of a task's trajectory game, and the utilities that they come from.

The utilities are kept, in the order in which the estimator asked for them, so that anyone can replay the estimator on
them, and retrain any of the coalitions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import tasks
from baselines import Game, Valuation, exact_shapley, permutation_shapley
from baselines.cache import MeasuredGame
from inrun_bench.runs.unit import Row, Unit

__all__ = ["EXCLUSIVE", "MOST_ENUMERATED", "Replay", "estimate", "measure", "value_rows"]

EXCLUSIVE = False
MOST_ENUMERATED = 16  # players; 65 536 trainings


def measure(unit: Unit, _needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Train on the coalitions of one block."""
    game = tasks.load(unit.task, unit.seed, recipe=unit.recipe).trajectory_game()
    recorder = _Recorder(game)
    valuations = {game.measures[0]: estimate(recorder, unit)}
    recorded = np.concatenate(recorder.answers)
    for column, utility in enumerate(game.measures[1:], 1):
        valuations[utility] = estimate(Replay(game.n_players, recorded[:, column]), unit)
    rows: list[Row] = []
    for column, (utility, valuation) in enumerate(valuations.items()):
        valuation = dataclasses.replace(valuation, seconds=valuations[game.measures[0]].seconds)
        cost, *values = value_rows(valuation, utility)
        rows += [{**cost, "utilities": _compact(recorded[:, column])}, *values]
    return [{**row, "identity": game.identity()} for row in rows]


def value_rows(valuation: Valuation, utility: str) -> list[Row]:
    """Return what the values cost, and one row a sample: value, standard error, and values from even and odd draws."""
    n = len(valuation.values)
    stderr = np.zeros(n) if valuation.stderr is None else valuation.stderr  # enumeration has no error
    halves = np.stack([valuation.values] * 2) if valuation.halves is None else valuation.halves
    columns = zip(valuation.values.tolist(), stderr.tolist(), *halves.tolist(), strict=True)
    cost = {"metric": "utilities", "evaluations": valuation.evaluations, "seconds": valuation.seconds}
    return [
        {**cost, "utility": utility},
        *(
            {"metric": "value", "utility": utility, "sample": i, "value": v, "stderr": e, "even": even, "odd": odd}
            for i, (v, e, even, odd) in enumerate(columns)
        ),
    ]


def _compact(utilities: NDArray[np.float64]) -> NDArray[np.float32 | np.float64]:
    """Return the same numbers in half the space, where they come from models in single precision."""
    single = utilities.astype(np.float32)
    return single if np.array_equal(single, utilities) else utilities


def estimate(game: Game, unit: Unit) -> Valuation:
    """Return the values of one block; the order in which it asks for coalitions depends on nothing but the unit."""
    if game.n_players <= MOST_ENUMERATED:
        return exact_shapley(game)
    shifts = int(unit.settings["shifts"])
    return permutation_shapley(
        game,
        n_permutations=2 * shifts * int(unit.settings["draws"]),
        antithetic=True,
        shifts=shifts,
        rng=unit.random_seed,
    )


class Replay:
    """A game that answers from a list, in the order in which it is asked.

    Parameters
    ----------
    n_players : int
        Number of players.
    utilities : float64 [m]
        The answers.
    watched : set of int
        Positions whose coalitions are kept in `seen`.
    """

    def __init__(self, n_players: int, utilities: NDArray[np.float64], watched: frozenset[int] = frozenset()) -> None:
        self.n_players = n_players
        self.seen: dict[int, NDArray[np.bool_]] = {}
        self._utilities = utilities
        self._watched = watched
        self._asked = 0

    def __call__(self, coalitions: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the next utilities, float64 [m], one for each coalition of bool [m, n_players]."""
        first, self._asked = self._asked, self._asked + len(coalitions)
        if self._asked > len(self._utilities):
            raise ValueError(f"only {len(self._utilities)} utilities are stored, but the estimator asks for more")
        for position in self._watched.intersection(range(first, self._asked)):
            self.seen[position] = coalitions[position - first].copy()
        return self._utilities[first : self._asked]


class _Recorder:
    """Plays a game for the first of its measures, and keeps all of them."""

    def __init__(self, game: MeasuredGame) -> None:
        self.n_players = game.n_players
        self.answers: list[NDArray[np.float64]] = []
        self._game = game

    def __call__(self, coalitions: NDArray[np.bool_]) -> NDArray[np.float64]:
        self.answers.append(self._game.measure(coalitions))
        return self.answers[-1][:, 0]
