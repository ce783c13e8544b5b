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

from baselines.exact import exact_shapley
from baselines.game import Game, evaluate
from baselines.knn import knn_shapley
from baselines.permutation import permutation_shapley
from baselines.tmc import tmc_shapley
from baselines.valuation import Valuation

__all__ = [
    "Game",
    "Valuation",
    "evaluate",
    "exact_shapley",
    "knn_shapley",
    "permutation_shapley",
    "tmc_shapley",
]
