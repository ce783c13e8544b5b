r"""Shapley values by Monte Carlo over permutations.

Let the players join one after the other, in a uniformly random order :math:`\pi`. The Shapley value of player :math:`i`
is the expectation of its marginal contribution to those who came before (Castro, Gómez, Tejada: *Polynomial calculation
of the Shapley value based on sampling*, Computers & Operations Research 36, 2009)

.. math:: \phi_i = \mathbb{E}_\pi \, [v(P_i(\pi) \cup \{i\}) - v(P_i(\pi))],

so the mean over :math:`m` permutations is an unbiased estimate, and one permutation serves all players: its
:math:`n + 1` prefixes give :math:`n` marginal contributions, which add up to :math:`v(N) - v(\emptyset)` whatever the
order. The estimate is therefore efficient to rounding.

**Variance**: :math:`\sigma_i^2 / m`, with :math:`\sigma_i^2` the variance of a marginal contribution of player
:math:`i` over permutations, estimated by the sample variance. The errors of the players are not independent: they add
up to zero.

**Antithetic pairs**: each permutation is followed by its reverse (Mitchell, Cooper, Frank, Holmes: *Sampling
Permutations for Shapley Value Estimation*, JMLR 23, 2022, arXiv 2104.12199). A player that comes early in one comes
late in the other; where the marginal contribution falls (or rises) steadily as the coalition grows, the errors of the
two largely cancel. For a game that is quadratic in membership, each pair gives the Shapley values exactly. The two are
not independent, so a pair counts as one draw for standard errors and halves.

**Cost**: :math:`2 + m (n - 1)` evaluated coalitions, the empty and the grand coalition being evaluated once.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from baselines.arguments import either_permutations_or_budget, whole_number
from baselines.draws import Moments, Rng, random_permutations
from baselines.game import Game, evaluate, player_count
from baselines.valuation import Valuation

__all__ = ["permutation_shapley"]


def permutation_shapley(
    game: Game,
    n_permutations: int | None = None,
    *,
    budget: int | None = None,
    antithetic: bool = False,
    rng: Rng = None,
    batch_size: int = 4096,
    progress: bool = False,
) -> Valuation:
    """Unbiased Monte Carlo estimate of Shapley values from random permutations.

    Parameters
    ----------
    game : Game
        The game of n players.
    n_permutations : int, optional
        Number of permutations; even if `antithetic`. Give either this or `budget`.
    budget : int, optional
        Most coalitions to evaluate, the empty and the grand coalition included; as many whole permutations (or pairs)
        are used as it pays for.
    antithetic : bool
        Whether each permutation drawn is followed by its reverse.
    rng : int, SeedSequence, Generator or None
        Seed; see `baselines.draws.random_permutations`. The result does not depend on `batch_size`.
    batch_size : int
        Most coalitions that the game is asked for at a time.
    progress : bool
        Whether to show a progress bar, in permutations, on stderr.

    Returns
    -------
    Valuation
        `values` and `stderr` in units of the utility (`stderr` and `halves` are None after a single draw).

    Raises
    ------
    TypeError
        If a number is no integer, or `rng` is no seed.
    ValueError
        If both or neither of `n_permutations` and `budget` are given, a number is too small, `n_permutations` is odd
        with `antithetic`, or the game returns something that is not a finite utility for each coalition.

    References
    ----------
    Castro, Gómez, Tejada, Polynomial calculation of the Shapley value based on sampling, Computers & Operations
    Research 36, 2009. Mitchell, Cooper, Frank, Holmes, Sampling Permutations for Shapley Value Estimation, JMLR 23,
    2022, arXiv 2104.12199.
    """
    start = perf_counter()
    n = player_count(game)
    whole_number("batch_size", batch_size)
    orders_per_draw = 2 if antithetic else 1
    draw_cost = orders_per_draw * (n - 1)
    either_permutations_or_budget(n_permutations, budget, minimum_budget=2 + draw_cost)
    if n_permutations is not None and n_permutations % orders_per_draw:
        raise ValueError(f"n_permutations must be even with antithetic=True, got {n_permutations}")
    if budget is not None:
        # a single player has but one permutation, which costs nothing
        n_permutations = orders_per_draw * ((budget - 2) // draw_cost if n > 1 else 1)
    assert n_permutations is not None

    permutations = random_permutations(rng, n)
    if antithetic:
        permutations = _with_reverses(permutations)
    moments = Moments(n)
    walks = _marginal_contributions(game, islice(permutations, n_permutations), batch_size)
    with tqdm(walks, total=n_permutations, desc="permutation_shapley", unit="perm", disable=not progress) as bar:
        for draw in _means_of_pairs(bar) if antithetic else bar:
            moments.add(draw)
    return Valuation(
        values=moments.mean,
        stderr=moments.stderr(),
        evaluations=2 + n_permutations * (n - 1),
        seconds=perf_counter() - start,
        method="permutation_shapley",
        parameters={"n_permutations": n_permutations, "budget": budget, "antithetic": antithetic},
        halves=moments.halves(),
    )


def _with_reverses(permutations: Iterator[NDArray[np.intp]]) -> Iterator[NDArray[np.intp]]:
    for permutation in permutations:
        yield permutation
        yield permutation[::-1]


def _means_of_pairs(walks: Iterable[NDArray[np.float64]]) -> Iterator[NDArray[np.float64]]:
    remaining = iter(walks)
    for walk, reverse_walk in zip(remaining, remaining, strict=True):
        yield (walk + reverse_walk) / 2


def _marginal_contributions(
    game: Game, permutations: Iterator[NDArray[np.intp]], batch_size: int
) -> Iterator[NDArray[np.float64]]:
    """Marginal contributions (float64 [n], by player) of each permutation, many permutations to a call of the game."""
    n = game.n_players
    empty, grand = evaluate(game, np.array([[False] * n, [True] * n]))
    permutations_per_group = max(1, batch_size // max(1, n - 1))
    while group := list(islice(permutations, permutations_per_group)):
        orders = np.array(group)  # [p, n]
        utilities = np.empty((len(group), n + 1))
        utilities[:, 0], utilities[:, n] = empty, grand
        utilities[:, 1:n] = _utilities_of_inner_prefixes(game, orders, batch_size)
        by_player = np.empty((len(group), n))
        np.put_along_axis(by_player, orders, np.diff(utilities, axis=1), axis=1)
        yield from by_player


def _utilities_of_inner_prefixes(game: Game, orders: NDArray[np.intp], batch_size: int) -> NDArray[np.float64]:
    """Utilities (float64 [p, n - 1]) of the prefixes of 1 to n - 1 players of the permutations `orders` [p, n]."""
    p, n = orders.shape
    ranks = np.argsort(orders, axis=1).astype(np.int32)  # the position at which each player joins
    utilities = np.empty((p, n - 1))
    lengths_per_call = batch_size // p  # all of them, unless there is just one permutation
    for shortest in range(1, n, lengths_per_call):
        lengths = np.arange(shortest, min(shortest + lengths_per_call, n), dtype=np.int32)
        coalitions = ranks[:, None, :] < lengths[:, None]  # [p, lengths, n]
        utilities[:, lengths - 1] = evaluate(game, coalitions.reshape(-1, n)).reshape(p, -1)
    return utilities
