r"""Exact Shapley values, and those of any other semivalue, by enumeration of all coalitions.

The Shapley value of player :math:`i` of a game :math:`v` with :math:`n` players is the weighted sum (Shapley: *A value
for n-person games*, Contributions to the Theory of Games II, 1953)

.. math:: \phi_i = \sum_{S \not\ni i} \frac{1}{n \binom{n-1}{|S|}} \, [v(S \cup \{i\}) - v(S)];

for another semivalue its size distribution :math:`p` takes the place of :math:`1/n`, see `baselines.semivalues`.

**Variance**: none; the values are exact to rounding.

**Cost**: all :math:`2^n` coalitions, each evaluated once; then :math:`n 2^{n-1}` multiplications. Each further player
doubles it, so that the limit is 20 players, a million coalitions. All of them are needed: Ctrl-C raises
KeyboardInterrupt, and what was evaluated is lost unless the game keeps it (`baselines.CachedGame`).
"""

import math
from collections.abc import Callable
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from baselines.arguments import whole_number
from baselines.game import Game, evaluate_in_batches, player_count
from baselines.semivalues import shapley_sizes
from baselines.valuation import Valuation

__all__ = ["exact_semivalue", "exact_shapley"]

_MOST_PLAYERS = 20


def exact_shapley(game: Game, *, batch_size: int = 4096, progress: bool = False) -> Valuation:
    """Exact Shapley values from all 2^n coalitions.

    Parameters
    ----------
    game : Game
        A game of at most 20 players.
    batch_size : int
        Most coalitions that the game is asked for at a time.
    progress : bool
        Whether to show a progress bar, in evaluated coalitions, on stderr.

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
    return _enumerate("exact_shapley", game, shapley_sizes, batch_size, progress)


def exact_semivalue(
    game: Game,
    sizes: Callable[[int], NDArray[np.float64]],
    *,
    batch_size: int = 4096,
    progress: bool = False,
) -> Valuation:
    """Exact values of any semivalue from all 2^n coalitions.

    Parameters
    ----------
    game : Game
        A game of at most 20 players.
    sizes : callable
        From the number of players n to the size distribution, float64 [n], which sums to 1: for instance
        `baselines.banzhaf_sizes`, or ``lambda n: baselines.beta_sizes(n, 4, 1)``.
    batch_size : int
        Most coalitions that the game is asked for at a time.
    progress : bool
        Whether to show a progress bar, in evaluated coalitions, on stderr.

    Returns
    -------
    Valuation
        `values` in units of the utility, no standard errors.

    Raises
    ------
    TypeError
        If `sizes` cannot be called.
    ValueError
        If the game has more than 20 players or returns something that is not a finite utility for each coalition, or
        `sizes` does not give a distribution.

    References
    ----------
    Dubey, Neyman, Weber, Value theory without efficiency, Mathematics of Operations Research 6, 1981.
    """
    return _enumerate("exact_semivalue", game, sizes, batch_size, progress)


def _enumerate(
    method: str, game: Game, sizes: Callable[[int], NDArray[np.float64]], batch_size: int, progress: bool
) -> Valuation:
    start = perf_counter()
    n = player_count(game)
    whole_number("batch_size", batch_size)
    if n > _MOST_PLAYERS:
        raise ValueError(
            f"{method} enumerates all 2^n coalitions and is limited to n = {_MOST_PLAYERS} players, got n = {n}; "
            "use a Monte Carlo estimator, such as kernel_shapley, permutation_shapley, beta_shapley or banzhaf"
        )
    if not callable(sizes):
        raise TypeError(f"sizes must be a function such as baselines.banzhaf_sizes, got {type(sizes).__name__}")
    chance_of_size = np.asarray(sizes(n))
    if chance_of_size.shape != (n,) or not np.isclose(chance_of_size.sum(), 1) or (chance_of_size < 0).any():
        raise ValueError(f"sizes must give a distribution over the {n} sizes 0 to {n - 1}, got {chance_of_size}")
    players = np.arange(n)
    utilities = evaluate_in_batches(  # player i is in the coalition number c if bit i of c is set
        game,
        2**n,
        lambda numbers: (numbers[:, None] >> players & 1).astype(np.bool_),
        batch_size,
        bar=method if progress else None,
    )
    values = _semivalues(utilities, n, chance_of_size)
    return Valuation(values=values, stderr=None, evaluations=2**n, seconds=perf_counter() - start, method=method)


def _semivalues(utilities: NDArray[np.float64], n: int, chance_of_size: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values (float64 [n]) from the utilities of all coalitions (float64 [2^n]), numbered by their bits."""
    weight_of_size = np.array([p / math.comb(n - 1, size) for size, p in enumerate(chance_of_size)] + [0.0])
    size = np.zeros(1, np.intp)
    for _ in range(n):  # twice as many coalitions, of which the latter half has one player more
        size = np.concatenate([size, size + 1])
    weights = weight_of_size[size]
    values = np.empty(n)
    for player in range(n):
        # axis 1 is the bit of this player: [higher bits, without or with the player, lower bits]
        shape = (2 ** (n - 1 - player), 2, 2**player)
        by_membership = utilities.reshape(shape)
        marginals = by_membership[:, 1] - by_membership[:, 0]
        values[player] = np.sum(marginals * weights.reshape(shape)[:, 0])
    return values
