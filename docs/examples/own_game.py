"""A game of your own: power in the Security Council of the United Nations.

What you learn: a game is a number of players and a function of many coalitions at a time; exact values of up to 20
players; and what an estimate costs beside them. A resolution passes with nine votes, if no permanent member is against.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from baselines import exact_shapley, kernel_shapley, owen_shapley, permutation_shapley


class SecurityCouncil:
    """Players 0 to 4 are the permanent members."""

    n_players = 15

    def __call__(self, coalitions: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return 1 where a coalition, bool [m, 15], passes a resolution alone, float64 [m]."""
        passes = coalitions[:, :5].all(axis=1) & (coalitions.sum(axis=1) >= 9)
        return passes.astype(np.float64)


game = SecurityCouncil()
exact = exact_shapley(game)  # of all 32768 coalitions
print(f"a permanent member {exact.values[0]:.6f}, another one {exact.values[-1]:.6f}, all {exact.values.sum():.6f}")

estimators = (permutation_shapley, owen_shapley, kernel_shapley)
budgets = [500, 1000, 2000, 4000, 8000, 16000]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for estimator in estimators:
    estimates = [[estimator(game, budget=budget, rng=seed) for seed in range(8)] for budget in budgets]
    errors = [np.mean([np.linalg.norm(each.values - exact.values) for each in of_one]) for of_one in estimates]
    right.loglog(budgets, errors, "o-", label=estimator.__name__)
right.set(title="Error, mean of 8 seeds", xlabel="coalitions evaluated, at most", ylabel="norm of the error")
right.set_yticks([0.02, 0.05, 0.1], ["0.02", "0.05", "0.1"])
right.tick_params(which="minor", labelleft=False)
right.legend(frameon=False)

estimate = permutation_shapley(game, budget=4000, rng=0)
members = np.arange(game.n_players)
left.bar(members, exact.values, color="0.8", label="exact")
left.errorbar(members, estimate.values, estimate.stderr, fmt="C0o", ms=4, label="4000 coalitions")
left.set(title="Power in the Security Council", xlabel="member (0 to 4 are permanent)", ylabel="Shapley value")
left.set_xticks(members)
left.legend(frameon=False)
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "own_game.png", dpi=150)
