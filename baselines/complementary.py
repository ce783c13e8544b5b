r"""Shapley values from complementary contributions: a coalition against all others, for all players at once.

Swap the order of two sums in the Shapley value and marginal contributions become *complementary contributions*
:math:`c(S) = v(S) - v(N \setminus S)` (Zhang, Sun, Liu, Xiong, Pei, Ren: *Efficient Sampling Approaches to Shapley
Value Approximation*, SIGMOD 2023, Theorem 3)

.. math:: \phi_i = \frac1n \sum_{s=1}^{n} \mathbb{E}\,[c(S) \mid i \in S, |S| = s].

One pair :math:`(S, N \setminus S)` tells of every player: of the members of :math:`S` at size :math:`s`, of the others
at size :math:`n - s`. So sizes :math:`s` and :math:`n - s` make one stratum, :math:`s = 1, \dots, \lfloor n/2 \rfloor`;
with :math:`w_i(S) = n/s` for members and :math:`-n/(n-s)` for others, whose mean over coalitions of size :math:`s` is
zero, its share of :math:`n \phi_i` is :math:`\mathbb{E}[c(S) w_i(S)]` (half of it if :math:`2 s = n`, where it is
counted twice), which is a *covariance*. The estimate is the sample covariance: unbiased, and indifferent to the level
of :math:`c` in the stratum, which the plain stratum means of the paper are not (nor have they a value for a player that
no coalition of a size holds, the rule and not the exception where :math:`s` is small). The size :math:`n` needs no
sampling: :math:`c(N) = v(N) - v(\emptyset)`. Values add up to that.

**Variance**: sum over strata of :math:`\mathrm{Var}[(c - \bar c) w_i] / m_s`, divided by :math:`n^2`. A covariance is
:math:`m_s / (m_s - 1)` times the mean of :math:`m_s` products :math:`(c - \bar c) w_i`, and its variance is
that factor squared times their sample variance over :math:`m_s`. Strata get equal numbers of draws, within two.

**Cost**: 2 evaluated coalitions, and 2 for each draw; at least two draws a stratum, about :math:`n` draws.
"""

from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from baselines.arguments import whole_number
from baselines.convergence import StoppingRule
from baselines.draws import Rng, complementary_pairs, weighted_sums
from baselines.game import Game, player_count
from baselines.monte_carlo import SampledCoalitions, draw_limits, ends, estimate_by_draws
from baselines.valuation import Valuation

__all__ = ["complementary_shapley"]


def complementary_shapley(
    game: Game,
    *,
    budget: int | None = None,
    stop: StoppingRule | None = None,
    rng: Rng = None,
    batch_size: int = 4096,
    progress: bool = False,
) -> Valuation:
    """Unbiased estimate of Shapley values from complementary contributions, stratified by size.

    Parameters
    ----------
    game : Game
        The game of n players, at least 2.
    budget : int, optional
        Most coalitions to evaluate, the empty and the grand coalition included; at least about 2 n.
    stop : StoppingRule, optional
        When to stop before the budget is spent; see `baselines.convergence`.
    rng : int, SeedSequence, Generator or None
        Seed; see `baselines.draws.random_permutations`. The result does not depend on `batch_size`.
    batch_size : int
        Most coalitions that the game is asked for at a time.
    progress : bool
        Whether to show a progress bar, in evaluated coalitions, on stderr.

    Returns
    -------
    Valuation
        `values` and `stderr` in units of the utility.

    Raises
    ------
    TypeError, ValueError
        If a number is no integer or too small, there is one player alone, or the game returns something that is not a
        finite utility for each coalition.

    Warns
    -----
    InterruptedEstimateWarning
        If it is interrupted, by Ctrl-C, and returns the draws made so far; see `baselines.monte_carlo`.

    References
    ----------
    Zhang et al., Efficient Sampling Approaches to Shapley Value Approximation, SIGMOD 2023.
    """
    started = perf_counter()
    n = player_count(game)
    whole_number("n_players of a game with complementary coalitions", n, minimum=2)
    whole_number("batch_size", batch_size)
    strata = n // 2
    least_draws = 2 * strata
    limits = draw_limits(budget, stop, fixed_cost=2, draw_cost=2, least_draws=least_draws)
    pairs = complementary_pairs(rng, n)
    empty, grand = ends(game)

    def formula(
        members: NDArray[np.bool_], utilities: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        contributions = utilities[:, 0] - utilities[:, 1]
        sizes = np.count_nonzero(members, axis=1)
        total, variance = np.full(n, grand - empty), np.zeros(n)
        for size in range(1, strata + 1):
            in_stratum = np.flatnonzero(sizes == size)
            value, of_value = _covariance(members[in_stratum], contributions[in_stratum], size)
            share = 0.5 if 2 * size == n else 1.0
            total += share * value
            variance += share**2 * of_value
        return total / n, np.sqrt(variance) / n

    return estimate_by_draws(
        "complementary_shapley",
        SampledCoalitions(
            game, pairs, formula, fixed_cost=limits.fixed_cost, least_draws=least_draws, batch_size=batch_size
        ),
        started=started,
        limits=limits,
        stop=stop,
        progress=progress,
        parameters=lambda draws: {"budget": budget, "pairs": draws},
    )


def _covariance(
    members: NDArray[np.bool_], contributions: NDArray[np.float64], size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sample covariance of contributions [m] and weights of `members` [m, n], and its variance (float64 [n] each)."""
    m, n = members.shape
    deviations = contributions - contributions.mean()
    weight, other = n / size, -n / (n - size)
    squares = deviations**2
    inside, squares_inside = weighted_sums(np.stack([deviations, squares]), members)
    products = weight * inside + other * (deviations.sum() - inside)
    of_squares = weight**2 * squares_inside + other**2 * (squares.sum() - squares_inside)
    variance: NDArray[np.float64] = np.maximum(of_squares - products**2 / m, 0.0) * (m / (m - 1) ** 3)
    return products / (m - 1), variance
