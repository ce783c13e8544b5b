"""Retraining-based Data Shapley at small budgets: estimators that see nothing but utilities of the trajectory game.

The number behind a name is the number of permutations; one costs about as many trainings as there are players. Without
a number, an estimator spends the budget that it is given, or :data:`TRAININGS_A_PLAYER` where nobody says.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines import (
    Game,
    GroupedGame,
    Valuation,
    complementary_shapley,
    group_testing_shapley,
    kernel_shapley,
    owen_shapley,
    permutation_shapley,
    tmc_shapley,
)
from baselines.convergence import StoppingRule
from baselines.permutation import SHIFTS
from inrun_bench.methods.method import Method
from tasks import Task

__all__ = ["GAME_ESTIMATORS", "TRAININGS_A_PLAYER"]

TRUNCATION = 0.05  # share of v(N) - v(empty) that the rest of a permutation may still be worth
LOOKAHEAD = 10  # a batched trainer is several times faster on 100 coalitions than on 10
TRAININGS_A_PLAYER = 10

truncated = partial(tmc_shapley, tolerance=TRUNCATION, lookahead=LOOKAHEAD)


def shifted(game: Game, n_permutations: int | None = None, **options: Any) -> Valuation:
    """Return an estimate from permutations, five shifts of each, and the reverses."""
    if game.n_players < SHIFTS:
        raise ValueError(
            f"shifted permutations need {SHIFTS} players, samples or groups, and there are {game.n_players}"
        )
    return permutation_shapley(game, n_permutations, antithetic=True, shifts=SHIFTS, **options)


GAME_ESTIMATORS: dict[str, Callable[..., Valuation]] = {
    "permutation": permutation_shapley,
    "permutation-antithetic": partial(permutation_shapley, antithetic=True),
    "permutation-shifts": shifted,
    "tmc": truncated,
    "owen": owen_shapley,
    "complementary": complementary_shapley,
    "kernel-leverage": kernel_shapley,
    "kernel": partial(kernel_shapley, sampling="kernel"),
    "group-testing": group_testing_shapley,
}
"""Of any game: ``estimator(game, budget=..., rng=..., stop=...)``."""


def _game(task: Task, groups: NDArray[np.int64] | None) -> Game:
    game = task.trajectory_game()
    return game if groups is None else GroupedGame(game, groups)


def of_permutations(
    task: Task,
    seed: np.random.SeedSequence,
    *,
    groups: NDArray[np.int64] | None = None,
    estimator: Callable[..., Valuation],
    n_permutations: int,
) -> Valuation:
    """Return an estimate of the trajectory game's Shapley values from so many permutations (utility: loss)."""
    return estimator(_game(task, groups), n_permutations=n_permutations, rng=seed)


def of_a_budget(
    task: Task,
    seed: np.random.SeedSequence,
    *,
    groups: NDArray[np.int64] | None = None,
    budget: int | None = None,
    stop: StoppingRule | None = None,
    estimator: Callable[..., Valuation],
) -> Valuation:
    """Return an estimate of the trajectory game's Shapley values from so many trainings (utility: loss)."""
    game = _game(task, groups)
    if budget is None and stop is None:
        budget = 2 + TRAININGS_A_PLAYER * game.n_players
    return estimator(game, budget=budget, stop=stop, rng=seed)


FAMILY = "permutations"

LABELS = {
    "permutation": ("permutations", FAMILY),
    "permutation-antithetic": ("permutations, antithetic", FAMILY),
    "permutation-shifts": ("permutations, antithetic, shifted", FAMILY),
    "tmc": ("truncated permutations (TMC, 5 %)", FAMILY),
    "owen": ("Owen sampling, antithetic", "coalitions"),
    "complementary": ("complementary contributions", "coalitions"),
    "kernel-leverage": ("KernelSHAP, leverage sampling", "coalitions"),
    "kernel": ("KernelSHAP, kernel sampling", "coalitions"),
    "group-testing": ("group testing", "coalitions"),
}

METHODS = {
    name: Method(partial(of_permutations, estimator=estimator, n_permutations=n), label, FAMILY)
    for name, estimator, n, label in (
        ("mc-2", permutation_shapley, 2, "Monte Carlo, 2 permutations"),
        ("mc-10", permutation_shapley, 10, "Monte Carlo, 10 permutations"),
        ("mc-shifted-10", shifted, 10, "Monte Carlo, 10 shifted permutations"),
        ("tmc-10", truncated, 10, "Truncated MC, 10 permutations"),
    )
} | {
    name: Method(partial(of_a_budget, estimator=estimator), *LABELS[name])
    for name, estimator in GAME_ESTIMATORS.items()
}
