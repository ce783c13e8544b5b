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

**Stratified by position**: with `shifts` = :math:`K > 1` a permutation is followed by :math:`K - 1` cyclic shifts of
it, by :math:`n/K` places each (rounded down in sum). So every player has one position in each of :math:`K` equal parts
of the order (where :math:`K` divides :math:`n`), and most of the variance that comes from where a player stands, in
small coalitions or large, goes. Each shift alone is a uniformly random permutation: the mean is unbiased. A permutation
with its shifts (and their reverses, if antithetic) is one draw.

**Cost**: :math:`2 + m (n - 1)` evaluated coalitions, the empty and the grand coalition being evaluated once.
"""

import math
from collections.abc import Iterator
from itertools import islice
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from baselines.arguments import flag, whole_number
from baselines.convergence import Estimate, StoppingRule
from baselines.draws import Moments, Rng, random_permutations
from baselines.game import Game, evaluate_in_batches, player_count
from baselines.monte_carlo import Limits, draw_limits, ends, estimate_by_draws, from_moments
from baselines.valuation import Valuation

__all__ = ["SHIFTS", "Permutations", "permutation_limits", "permutation_shapley"]

SHIFTS = 5  # of each permutation, where the experiments of this project take any


def permutation_shapley(
    game: Game,
    n_permutations: int | None = None,
    *,
    budget: int | None = None,
    stop: StoppingRule | None = None,
    antithetic: bool = False,
    shifts: int = 1,
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
        Number of permutations, reverses and shifts included: a multiple of `shifts`, or of twice that if `antithetic`.
        Give at least one of this, `budget` and `stop`; not the first two together.
    budget : int, optional
        Most coalitions to evaluate, the empty and the grand coalition included; as many whole draws are used as it pays
        for.
    stop : StoppingRule, optional
        When to stop before that; see `baselines.convergence`.
    antithetic : bool
        Whether each permutation is followed by its reverse.
    shifts : int
        Permutations that are made of each one drawn by cyclic shifts, itself included; at most n.
    rng : int, SeedSequence, Generator or None
        Seed; see `baselines.draws.random_permutations`. The result does not depend on `batch_size`.
    batch_size : int
        Most coalitions that the game is asked for at a time.
    progress : bool
        Whether to show a progress bar, in evaluated coalitions, on stderr.

    Returns
    -------
    Valuation
        `values` and `stderr` in units of the utility (`stderr` and `halves` are None after a single draw).

    Raises
    ------
    TypeError
        If a number is no integer, or `rng` is no seed.
    ValueError
        If none of `n_permutations`, `budget` and `stop` is given, or the first two together; if a number is out of
        range, `n_permutations` is no whole number of draws, or the game returns something that is not a finite utility
        for each coalition.

    Warns
    -----
    InterruptedEstimateWarning
        If it is interrupted, by Ctrl-C, and returns the draws made so far; see `baselines.monte_carlo`.

    References
    ----------
    Castro, Gómez, Tejada, Polynomial calculation of the Shapley value based on sampling, Computers & Operations
    Research 36, 2009. Mitchell, Cooper, Frank, Holmes, Sampling Permutations for Shapley Value Estimation, JMLR 23,
    2022, arXiv 2104.12199.
    """
    started = perf_counter()
    n = player_count(game)
    limits = permutation_limits(n_permutations, budget, stop, n_players=n, shifts=shifts, antithetic=antithetic)
    return estimate_by_draws(
        "permutation_shapley",
        Permutations(game, rng, np.ones(n), antithetic=antithetic, shifts=shifts, batch_size=batch_size),
        started=started,
        limits=limits,
        stop=stop,
        progress=progress,
        parameters=lambda draws: {
            "n_permutations": draws * shifts * (2 if antithetic else 1),
            "budget": budget,
            "antithetic": bool(antithetic),
            "shifts": int(shifts),
        },
    )


def permutation_limits(
    n_permutations: int | None,
    budget: int | None,
    stop: StoppingRule | None,
    *,
    n_players: int,
    shifts: int = 1,
    antithetic: bool = False,
) -> Limits:
    """Return how far the estimate may grow, having checked that what limits it is given; see `permutation_shapley`."""
    flag("antithetic", antithetic)
    if whole_number("shifts", shifts) > n_players:
        raise ValueError(f"shifts must be at most the number of players, {n_players}, got {shifts}")
    orders_a_draw = shifts * (2 if antithetic else 1)
    n_draws: float = math.inf
    if n_permutations is not None:
        if budget is not None:
            raise ValueError(
                "give n_permutations or a budget (in evaluated coalitions), not both; "
                f"got n_permutations={n_permutations!r} and budget={budget!r}"
            )
        n_draws, rest = divmod(whole_number("n_permutations", n_permutations), orders_a_draw)
        if rest:
            raise ValueError(
                f"n_permutations must be a multiple of {orders_a_draw}, a draw's permutations, got {n_permutations}"
            )
    elif budget is None and stop is None:
        raise ValueError(
            "give n_permutations, a budget (in evaluated coalitions), or a stopping rule (stop=); got none of them"
        )
    return draw_limits(budget, stop, n_draws=n_draws, fixed_cost=2, draw_cost=orders_a_draw * (n_players - 1))


class Permutations:
    """Draws of permutations, and the moments of the marginal contributions along them, weighted by position.

    Parameters
    ----------
    game : Game
        The game.
    rng : int, SeedSequence, Generator or None
        Seed.
    weights : float64 [n]
        Of the marginal contribution of whoever joins first, second, ...: n times the probability that a semivalue gives
        to a coalition of that size; all 1 for Shapley.
    antithetic, shifts, batch_size
        As in `permutation_shapley`.
    """

    least_draws = 1

    def __init__(
        self,
        game: Game,
        rng: Rng,
        weights: NDArray[np.float64],
        *,
        antithetic: bool = False,
        shifts: int = 1,
        batch_size: int = 4096,
    ) -> None:
        self._game = game
        self._weights = weights
        self._batch_size = whole_number("batch_size", batch_size)
        self._antithetic = antithetic
        self._places = [k * game.n_players // shifts for k in range(shifts)]  # by which orders are shifted
        self._orders_a_draw = shifts * (2 if antithetic else 1)
        self._draw_cost = self._orders_a_draw * (game.n_players - 1)
        self._orders = self._all_orders(rng)
        self._moments = Moments(game.n_players)
        self._ends = ends(game)

    def extend(self, n_draws: int) -> Iterator[int]:
        """Follow so many permutations, each with its shifts and reverses."""
        k = self._orders_a_draw
        walks = self._marginal_contributions(islice(self._orders, n_draws * k))
        for draw in walks:
            for other in islice(walks, k - 1):
                draw += other
            self._moments = self._moments.with_draw(draw / k)
            yield self._draw_cost

    def estimate(self) -> Estimate:
        """Return the mean of the draws."""
        return from_moments(self._moments, 2 + self._moments.count * self._draw_cost)

    def _all_orders(self, rng: Rng) -> Iterator[NDArray[np.intp]]:
        permutations = random_permutations(rng, self._game.n_players)  # now: a seed that is none is refused here

        def orders() -> Iterator[NDArray[np.intp]]:
            for permutation in permutations:
                for place in self._places:
                    order = np.roll(permutation, place)
                    yield order
                    if self._antithetic:
                        yield order[::-1]

        return orders()

    def _marginal_contributions(self, orders: Iterator[NDArray[np.intp]]) -> Iterator[NDArray[np.float64]]:
        """Weighted marginal contributions (float64 [n], by player) along each order, many orders to a game's call."""
        n = self._game.n_players
        orders_at_a_time = max(1, self._batch_size // max(1, n - 1))
        while group := list(islice(orders, orders_at_a_time)):
            followed = np.array(group)  # [p, n]
            utilities = np.empty((len(group), n + 1))
            utilities[:, 0], utilities[:, n] = self._ends
            utilities[:, 1:n] = self._utilities_of_inner_prefixes(followed)
            by_player = np.empty((len(group), n))
            np.put_along_axis(by_player, followed, np.diff(utilities, axis=1) * self._weights, axis=1)
            yield from by_player

    def _utilities_of_inner_prefixes(self, orders: NDArray[np.intp]) -> NDArray[np.float64]:
        """Utilities (float64 [p, n - 1]) of the prefixes of 1 to n - 1 players of the permutations `orders` [p, n]."""
        p, n = orders.shape
        ranks = np.argsort(orders, axis=1).astype(np.int32)  # the position at which each player joins

        def prefixes(numbers: NDArray[np.intp]) -> NDArray[np.bool_]:
            order, last = np.divmod(numbers, n - 1)
            prefix: NDArray[np.bool_] = ranks[order] <= last[:, None]
            return prefix

        return evaluate_in_batches(self._game, p * (n - 1), prefixes, self._batch_size).reshape(p, n - 1)
