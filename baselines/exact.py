r"""Exact Shapley values by enumeration of all coalitions.

The Shapley value of player :math:`i` of a game :math:`v` with :math:`n` players is the weighted sum (Shapley: *A value
for n-person games*, Contributions to the Theory of Games II, 1953)

.. math:: \phi_i = \sum_{S \not\ni i} \frac{1}{n \binom{n-1}{|S|}} \, [v(S \cup \{i\}) - v(S)].

**Variance**: none; the values are exact to rounding.

**Cost**: all :math:`2^n` coalitions, each evaluated once; then :math:`n 2^{n-1}` multiplications. Each further player
doubles it, so that the limit is 20 players, a million coalitions.
"""

import math
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from baselines.arguments import whole_number
from baselines.game import Game, evaluate, player_count
from baselines.valuation import Valuation

__all__ = ["exact_shapley"]

_MOST_PLAYERS = 20


def exact_shapley(game: Game, progress: bool = False, *, batch_size: int = 4096) -> Valuation:
    """Exact Shapley values from all 2^n coalitions.

    Parameters
    ----------
    game : Game
        A game of at most 20 players.
    progress : bool
        Whether to show a progress bar, in evaluated coalitions, on stderr.
    batch_size : int
        Most coalitions that the game is asked for at a time.

    Returns
    -------
    Valuation
        `values` in units of the utility, no standard errors.

    Raises
    ------
    ValueError
        If the game has more than 20 players or returns something that is not a finite utility for each coalition.

    References
    ----------
    Shapley, A value for n-person games, Contributions to the Theory of Games II, 1953.
    """
    start = perf_counter()
    n = player_count(game)
    whole_number("batch_size", batch_size)
    if n > _MOST_PLAYERS:
        raise ValueError(
            f"exact_shapley enumerates all 2^n coalitions and is limited to n = {_MOST_PLAYERS} players, got n = {n}; "
            "use permutation_shapley or tmc_shapley instead"
        )
    values = _shapley_values(_all_utilities(game, n, batch_size, progress), n)
    return Valuation(
        values=values,
        stderr=None,
        evaluations=2**n,
        seconds=perf_counter() - start,
        method="exact_shapley",
        parameters={},
    )


def _all_utilities(game: Game, n: int, batch_size: int, progress: bool) -> NDArray[np.float64]:
    """Utilities of all coalitions (float64 [2^n]); player i is in the coalition number c if bit i of c is set."""
    utilities = np.empty(2**n)
    players = np.arange(n)
    with tqdm(total=2**n, desc="exact_shapley", unit="coalition", disable=not progress) as bar:
        for first in range(0, 2**n, batch_size):
            numbers = np.arange(first, min(first + batch_size, 2**n))
            coalitions = (numbers[:, None] >> players & 1).astype(np.bool_)
            utilities[numbers] = evaluate(game, coalitions)
            bar.update(len(numbers))
    return utilities


def _shapley_values(utilities: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    weight_of_size = np.array([1 / (n * math.comb(n - 1, size)) for size in range(n)] + [0.0])
    weights = weight_of_size[np.bitwise_count(np.arange(2**n))]
    values = np.empty(n)
    for player in range(n):
        # axis 1 is the bit of this player: [higher bits, without or with the player, lower bits]
        shape = (2 ** (n - 1 - player), 2, 2**player)
        by_membership = utilities.reshape(shape)
        marginals = by_membership[:, 1] - by_membership[:, 0]
        values[player] = np.sum(marginals * weights.reshape(shape)[:, 0])
    return values
