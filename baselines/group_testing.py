r"""Shapley values by group testing: every coalition drawn is a test of all players at once.

Draw a coalition :math:`S` of random size :math:`k` with probability :math:`q(k) = (1/k + 1/(n-k)) / Z`,
:math:`k = 1, \dots, n - 1`, :math:`Z = 2 \sum_{k=1}^{n-1} 1/k`, and let :math:`\beta_i` say whether it holds player
:math:`i`. Then (Jia et al.: *Towards Efficient Data Valuation Based on the Shapley Value*, AISTATS 2019,
arXiv 1902.10275, Lemma 2)

.. math:: \phi_i - \phi_j = Z \, \mathbb{E}\,[v(S) (\beta_i - \beta_j)],

which with the total :math:`v(N) - v(\emptyset)` determines all values; averaging over :math:`j` (instead of the linear
programme of the paper, whose constraints the answer satisfies),

.. math:: \phi_i = \frac{v(N) - v(\emptyset)}{n} + Z \, \mathbb{E}\,[(v(S) - c) (\beta_i - k / n)].

Any constant :math:`c` may be taken off, since :math:`\beta_i - k/n` is zero in the mean; here it is
:math:`(v(N) + v(\emptyset)) / 2`, which takes away the variance that the mere level of utilities would bring. The
estimate is unbiased and efficient.

**Variance**: that of :math:`Z (v(S) - c)(\beta_i - k/n)` over the number of draws; it grows with :math:`\log^2 n`, and
even an additive game has some. It is the oldest of the methods that share coalitions, and seldom the best of them.

**Cost**: 2 evaluated coalitions, and 1 for each draw.
"""

from collections.abc import Iterator
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from baselines.arguments import whole_number
from baselines.convergence import StoppingRule
from baselines.draws import DRAWS_A_STREAM, Rng, random_coalitions, random_streams, weighted_sums
from baselines.game import Game, player_count
from baselines.monte_carlo import SampledCoalitions, draw_limits, ends, estimate_by_draws
from baselines.valuation import Valuation

__all__ = ["group_testing_shapley"]


def group_testing_shapley(
    game: Game,
    *,
    budget: int | None = None,
    stop: StoppingRule | None = None,
    rng: Rng = None,
    batch_size: int = 4096,
    progress: bool = False,
) -> Valuation:
    """Unbiased estimate of Shapley values by group testing.

    Parameters
    ----------
    game : Game
        The game of n players, at least 2.
    budget : int, optional
        Most coalitions to evaluate, the empty and the grand coalition included.
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
        `values` and `stderr` in units of the utility; values add up to the difference between all players and none.

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
    Jia et al., Towards Efficient Data Valuation Based on the Shapley Value, AISTATS 2019, arXiv 1902.10275.
    """
    started = perf_counter()
    n = player_count(game)
    whole_number("n_players of a game to be tested in groups", n, minimum=2)
    whole_number("batch_size", batch_size)
    limits = draw_limits(budget, stop, fixed_cost=2, draw_cost=1)
    streams = random_streams(rng)
    empty, grand = ends(game)
    sizes = np.arange(1, n)
    chance_of_size = 1 / sizes + 1 / (n - sizes)
    scale = chance_of_size.sum()  # Z

    def blocks() -> Iterator[NDArray[np.bool_]]:
        for stream in streams:
            drawn = stream.choice(sizes, size=DRAWS_A_STREAM, p=chance_of_size / scale)
            yield random_coalitions(stream, drawn, n)[:, None]

    def formula(
        members: NDArray[np.bool_], utilities: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        levels = utilities[:, 0] - (grand + empty) / 2
        m = len(members)
        shares = np.count_nonzero(members, axis=1) / n
        # (beta - share)^2 is share^2, and 1 - 2 share more for members
        of_members = weighted_sums(np.stack([levels, levels**2 * (1 - 2 * shares)]), members)
        means = (of_members[0] - levels @ shares) / m
        squares = (of_members[1] + levels**2 @ shares**2) / m
        values = (grand - empty) / n + scale * means
        stderr = scale * np.sqrt(np.maximum(squares - means**2, 0.0) / (m - 1)) if m > 1 else None
        return values, stderr

    return estimate_by_draws(
        "group_testing_shapley",
        SampledCoalitions(game, blocks(), formula, fixed_cost=limits.fixed_cost, least_draws=1, batch_size=batch_size),
        started=started,
        limits=limits,
        stop=stop,
        progress=progress,
        parameters=lambda draws: {"budget": budget, "tests": draws},
    )
