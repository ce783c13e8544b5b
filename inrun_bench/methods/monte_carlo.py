"""Retraining-based Data Shapley at small budgets: permutation sampling, plain, shifted and truncated.

The number behind a name is the number of permutations; one costs about as many trainings as there are samples.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from baselines import Valuation, permutation_shapley, tmc_shapley
from baselines.permutation import SHIFTS
from inrun_bench.methods.method import Method
from tasks import Task

TRUNCATION = 0.05  # share of v(N) - v(empty) that the rest of a permutation may still be worth
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


FAMILY = "permutations"

METHODS = {
    **{
        f"mc-{n}": Method(partial(monte_carlo, n_permutations=n), f"Monte Carlo, {n} permutations", FAMILY)
        for n in (2, 10)
    },
    "mc-shifted-10": Method(partial(shifted, n_permutations=10), "Monte Carlo, 10 shifted permutations", FAMILY),
    "tmc-10": Method(partial(truncated, n_permutations=10), "Truncated MC, 10 permutations", FAMILY),
}
