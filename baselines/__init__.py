"""Valuation of the players of any cooperative game, by evaluating coalitions of them.

In data valuation the players are training samples and the utility of a coalition is the quality of the model trained
on it, but nothing here knows that: a game is anything that tells the utilities of a batch of coalitions. NumPy, SciPy,
joblib and tqdm are all that is needed.

Examples
--------
>>> import numpy as np
>>> from baselines import tmc_shapley
>>> class Airport:  # the runway must suit the largest aircraft that uses it
...     costs = np.array([1.0, 2.0, 2.0, 5.0])
...     n_players = 4
...     def __call__(self, coalitions):  # bool [m, 4] -> float64 [m]
...         return (coalitions * self.costs).max(axis=1)
>>> valuation = tmc_shapley(Airport(), n_permutations=20_000, tolerance=0.0, rng=0)
>>> valuation.values.round(1).tolist()
[0.2, 0.6, 0.6, 3.6]
"""

from baselines.banzhaf import banzhaf
from baselines.beta import beta_shapley
from baselines.cache import CachedGame
from baselines.complementary import complementary_shapley
from baselines.convergence import Estimate, budget, gelman_rubin_below, rank_stability, stderr_below
from baselines.exact import exact_semivalue, exact_shapley
from baselines.game import Game, evaluate
from baselines.group_testing import group_testing_shapley
from baselines.grouped import GroupedGame
from baselines.kernel import kernel_shapley
from baselines.knn import (
    knn_regression_shapley,
    knn_shapley,
    soft_knn_shapley,
    threshold_knn_shapley,
    weighted_knn_shapley,
)
from baselines.leave_one_out import leave_one_out
from baselines.monte_carlo import InterruptedEstimateWarning
from baselines.owen import owen_shapley
from baselines.permutation import permutation_shapley
from baselines.semivalues import banzhaf_sizes, beta_sizes, shapley_sizes
from baselines.store import UtilityStore
from baselines.tmc import tmc_shapley
from baselines.valuation import Valuation

__all__ = [
    "CachedGame",
    "Estimate",
    "Game",
    "GroupedGame",
    "InterruptedEstimateWarning",
    "UtilityStore",
    "Valuation",
    "banzhaf",
    "banzhaf_sizes",
    "beta_shapley",
    "beta_sizes",
    "budget",
    "complementary_shapley",
    "evaluate",
    "exact_semivalue",
    "exact_shapley",
    "gelman_rubin_below",
    "group_testing_shapley",
    "kernel_shapley",
    "knn_regression_shapley",
    "knn_shapley",
    "leave_one_out",
    "owen_shapley",
    "permutation_shapley",
    "rank_stability",
    "shapley_sizes",
    "soft_knn_shapley",
    "stderr_below",
    "threshold_knn_shapley",
    "tmc_shapley",
    "weighted_knn_shapley",
]
