"""Retraining-based Data Shapley at small budgets: permutation sampling, plain, shifted and truncated.

The number behind a name is the number of permutations; one costs about as many trainings as there are samples.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from baselines import Valuation, permutation_shapley, tmc_shapley
from tasks import Task

TRUNCATION = 0.05  # share of v(N) - v(empty) that the rest of a permutation may still be worth
SHIFTS = 5
LOOKAHEAD = 10  # a batched trainer is several times faster on 100 coalitions than on 10


def monte_carlo(task: Task, seed: np.random.SeedSequence, *, n_permutations: int) -> Valuation:
    """Return permutation estimates of the trajectory game's Shapley values (utility: loss)."""
    return permutation_shapley(task.trajectory_game(), n_permutations=n_permutations, rng=seed)


def shifted(task: Task, seed: np.random.SeedSequence, *, n_permutations: int) -> Valuation:
    """Return the same from permutations that share draws: five shifts of each, and the reverses."""
    return permutation_shapley(
        task.trajectory_game(), n_permutations=n_permutations, antithetic=True, shifts=SHIFTS, rng=seed
    )


def truncated(task: Task, seed: np.random.SeedSequence, *, n_permutations: int) -> Valuation:
    """Return truncated Monte Carlo estimates of the trajectory game's Shapley values (utility: loss)."""
    return tmc_shapley(
        task.trajectory_game(), n_permutations=n_permutations, tolerance=TRUNCATION, rng=seed, lookahead=LOOKAHEAD
    )


METHODS = {
    **{f"mc-{n}": partial(monte_carlo, n_permutations=n) for n in (2, 10)},
    **{f"mc-shifted-{n}": partial(shifted, n_permutations=n) for n in (10,)},
    **{f"tmc-{n}": partial(truncated, n_permutations=n) for n in (10,)},
}
