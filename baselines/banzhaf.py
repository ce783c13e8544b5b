r"""Banzhaf values by maximum sample reuse: every coalition drawn tells of every player.

The Banzhaf value of player :math:`i` is its mean marginal contribution to a uniformly random coalition of the others,
which is a difference of two means over *all* coalitions

.. math:: \phi_i = \mathbb{E}\,[v(S) \mid i \in S] - \mathbb{E}\,[v(S) \mid i \notin S].

So any sample of uniformly random coalitions (each player is in with probability 1/2) estimates all values at once: the
mean utility of those with the player less that of those without (Wang, Jia: *Data Banzhaf: A Robust Data Valuation
Framework for Machine Learning*, AISTATS 2023, arXiv 2205.15466, equation 7). Among semivalues the Banzhaf value keeps
its ranking best when utilities are noisy (Theorem 4.6 there). It is not efficient: values do not add up to the total.

The estimate is unbiased, given that each player is in some of the coalitions drawn and out of others. The chance that
this fails for any player in :math:`m` draws is below :math:`2 n 2^{-m}`; with the :math:`21 + \log_2 n` draws that are
the fewest allowed, it is one in a million, and an error.

**Variance**: that of the difference of two means, :math:`\sigma_{in}^2 / m_{in} + \sigma_{out}^2 / m_{out}`.

**Cost**: 1 evaluated coalition for each draw, whatever the number of players.
"""

import math
from collections.abc import Iterator
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from baselines.arguments import whole_number
from baselines.convergence import StoppingRule
from baselines.draws import DRAWS_A_STREAM, Rng, random_streams, weighted_sums
from baselines.game import Game, player_count
from baselines.monte_carlo import SampledCoalitions, UndeterminedError, draw_limits, estimate_by_draws
from baselines.valuation import Valuation

__all__ = ["banzhaf"]


def banzhaf(
    game: Game,
    *,
    budget: int | None = None,
    stop: StoppingRule | None = None,
    rng: Rng = None,
    batch_size: int = 4096,
    progress: bool = False,
) -> Valuation:
    """Unbiased estimate of Banzhaf values by maximum sample reuse.

    Parameters
    ----------
    game : Game
        The game of n players.
    budget : int, optional
        Most coalitions to evaluate; at least 21 + log2(n).
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
        If a number is no integer or too small, or the game returns something that is not a finite utility for each
        coalition.

    Warns
    -----
    InterruptedEstimateWarning
        If it is interrupted, by Ctrl-C, and returns the draws made so far; see `baselines.monte_carlo`.

    References
    ----------
    Wang, Jia, Data Banzhaf, AISTATS 2023, arXiv 2205.15466.
    """
    started = perf_counter()
    n = player_count(game)
    whole_number("batch_size", batch_size)
    least_draws = 21 + math.ceil(math.log2(n))
    limits = draw_limits(budget, stop, draw_cost=1, least_draws=least_draws)

    streams = random_streams(rng)

    def blocks() -> Iterator[NDArray[np.bool_]]:
        for stream in streams:
            yield stream.integers(2, size=(DRAWS_A_STREAM, 1, n), dtype=np.uint8).view(np.bool_)

    return estimate_by_draws(
        "banzhaf",
        SampledCoalitions(
            game,
            blocks(),
            _difference_of_means,
            fixed_cost=limits.fixed_cost,
            least_draws=least_draws,
            batch_size=batch_size,
        ),
        started=started,
        limits=limits,
        stop=stop,
        progress=progress,
        parameters=lambda draws: {"budget": budget, "coalitions": draws},
    )


def _difference_of_means(
    members: NDArray[np.bool_], utilities: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    levels = utilities[:, 0] - utilities.mean()
    counts, sums, squares = weighted_sums(np.stack([np.ones_like(levels), levels, levels**2]), members)
    n_without = len(levels) - counts
    if not (counts.all() and n_without.all()):
        raise UndeterminedError(
            f"{len(levels)} coalitions hold a player always or never; give a larger budget, or another rng"
        )
    mean, mean_without = sums / counts, (levels.sum() - sums) / n_without
    variance = (squares / counts - mean**2) / np.maximum(counts - 1, 1)
    variance_without = ((levels**2).sum() - squares) / n_without - mean_without**2
    stderr = np.sqrt(np.maximum(variance + variance_without / np.maximum(n_without - 1, 1), 0.0))
    return mean - mean_without, stderr
