r"""Shapley values along the diagonal of the multilinear extension (Owen sampling).

Let every player join with probability :math:`q`, independently: :math:`S_q`. The Shapley value is the mean marginal
contribution to such a coalition, over :math:`q` from 0 to 1 (Owen: *Multilinear Extensions of Games*, Management
Science 18, 1972)

.. math:: \phi_i = \int_0^1 \mathbb{E}\,[v(S_q \cup \{i\}) - v(S_q \setminus \{i\})] \, dq.

A coalition drawn is evaluated with each player in turn added, or taken away: :math:`n + 1` evaluations give one
marginal contribution of each player, about the price of a permutation. The integral is stratified: a draw has one
random :math:`q` in each of `levels` equal parts of [0, 1], which keeps it unbiased where fixed nodes (Okhrati, Lipani:
*A Multilinear Sampling Algorithm to Estimate Shapley Values*, ICPR 2020, arXiv 2010.12082) do not. `antithetic` adds to
each coalition its complement, which belongs to :math:`1 - q` (their "halved sampling").

Unlike permutations, the estimate is not efficient: values add up to the total only in the mean.

**Variance**: that of a draw over the number of draws; estimated by their sample variance.

**Cost**: :math:`L (n + 1)` evaluated coalitions for each draw, twice that if antithetic.
"""

from collections.abc import Iterator
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from baselines.arguments import flag, whole_number
from baselines.convergence import Estimate, StoppingRule
from baselines.draws import Moments, Rng, random_streams
from baselines.game import Game, evaluate_in_batches, player_count
from baselines.monte_carlo import draw_limits, estimate_by_draws, from_moments
from baselines.valuation import Valuation

__all__ = ["owen_shapley"]


def owen_shapley(
    game: Game,
    *,
    budget: int | None = None,
    stop: StoppingRule | None = None,
    levels: int = 2,
    antithetic: bool = True,
    rng: Rng = None,
    batch_size: int = 4096,
    progress: bool = False,
) -> Valuation:
    """Unbiased estimate of Shapley values by sampling the multilinear extension.

    Parameters
    ----------
    game : Game
        The game of n players.
    budget : int, optional
        Most coalitions to evaluate; as many whole draws are used as it pays for.
    stop : StoppingRule, optional
        When to stop before the budget is spent; see `baselines.convergence`.
    levels : int
        Strata of the probability of joining; a draw has one coalition (or pair) in each.
    antithetic : bool
        Whether each coalition drawn is accompanied by its complement.
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
    TypeError, ValueError
        If a number is no integer or too small, or the game returns something that is not a finite utility for each
        coalition.

    Warns
    -----
    InterruptedEstimateWarning
        If it is interrupted, by Ctrl-C, and returns the draws made so far; see `baselines.monte_carlo`.

    References
    ----------
    Owen, Multilinear Extensions of Games, Management Science 18, 1972. Okhrati, Lipani, A Multilinear Sampling
    Algorithm to Estimate Shapley Values, ICPR 2020, arXiv 2010.12082.
    """
    started = perf_counter()
    n = player_count(game)
    whole_number("levels", levels)
    whole_number("batch_size", batch_size)
    antithetic = flag("antithetic", antithetic)
    draw_cost = levels * (n + 1) * (2 if antithetic else 1)
    return estimate_by_draws(
        "owen_shapley",
        _Diagonal(game, rng, levels, antithetic, draw_cost, batch_size),
        started=started,
        limits=draw_limits(budget, stop, draw_cost=draw_cost),
        stop=stop,
        progress=progress,
        parameters=lambda draws: {"draws": draws, "budget": budget, "levels": int(levels), "antithetic": antithetic},
    )


class _Diagonal:
    """Draws of coalitions along the diagonal, and the moments of the marginal contributions to them."""

    least_draws = 1

    def __init__(self, game: Game, rng: Rng, levels: int, antithetic: bool, draw_cost: int, batch_size: int) -> None:
        self._game = game
        self._streams = random_streams(rng)
        self._levels = levels
        self._antithetic = antithetic
        self._draw_cost = draw_cost
        self._batch_size = batch_size
        self._moments = Moments(game.n_players)

    def extend(self, n_draws: int) -> Iterator[int]:
        """Make so many draws, as many to a call of the game as it takes."""
        n = self._game.n_players
        coalitions_a_draw = self._draw_cost // (n + 1)
        while n_draws > 0:
            d = min(n_draws, max(1, self._batch_size // self._draw_cost))
            bases = np.concatenate([self._draw(next(self._streams)) for _ in range(d)])  # [d * coalitions_a_draw, n]
            utilities = self._utilities_of_neighbours(bases)
            added = np.where(bases, utilities[:, :1] - utilities[:, 1:], utilities[:, 1:] - utilities[:, :1])
            for draw in added.reshape(d, coalitions_a_draw, n):
                self._moments = self._moments.with_draw(draw.mean(axis=0))
                yield self._draw_cost
            n_draws -= d

    def estimate(self) -> Estimate:
        """Return the mean of the draws."""
        return from_moments(self._moments, self._moments.count * self._draw_cost)

    def _draw(self, stream: np.random.Generator) -> NDArray[np.bool_]:
        """Coalitions of one draw (bool [levels, n], twice that if antithetic)."""
        q = (np.arange(self._levels) + stream.random(self._levels)) / self._levels
        bases = stream.random((self._levels, self._game.n_players)) < q[:, None]
        return np.concatenate([bases, ~bases]) if self._antithetic else bases

    def _utilities_of_neighbours(self, bases: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Utilities (float64 [b, n + 1]) of the coalitions `bases` [b, n], and of each with one player changed over."""
        b, n = bases.shape
        changes = np.eye(n + 1, n, k=-1, dtype=np.bool_)  # nobody, then one player each

        def neighbours(numbers: NDArray[np.intp]) -> NDArray[np.bool_]:
            base, change = np.divmod(numbers, n + 1)
            neighbour: NDArray[np.bool_] = bases[base] ^ changes[change]
            return neighbour

        return evaluate_in_batches(self._game, b * (n + 1), neighbours, self._batch_size).reshape(b, n + 1)
