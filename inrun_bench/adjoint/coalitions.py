r"""Shapley values from derivatives at random coalitions: one differentiated run informs of all players.

**Mathematics.** A coalition S of a size drawn uniformly from 0 .. n holds a player i, or not, with chances that make
the mean over S of "the marginal contribution of i to the others in S" its Shapley value. The derivative
:math:`\partial U / \partial x_i` at :math:`x = 1_S` stands in for that difference. Here it is taken at

.. math:: x = c\, 1_S + (1 - c)\, u\, 1, \qquad u \sim \mathrm{Uniform}(0, 1), \quad |S| = \lfloor u (n + 1) \rfloor,

with *spread* c: between the diagonal (c = 0, the Aumann-Shapley value by Monte Carlo, see
:mod:`~inrun_bench.adjoint.diagonal`) and coalitions themselves (c = 1).

**Bias.** A derivative in place of a difference. Let U curve in x_i. At c = 1 it is taken at the ends of the way from
absent to present, in small coalitions nearly always at the end where the player is absent and the slope steepest; at
c = 0 the variety of coalitions is lost, of which :math:`c^2` is kept. c = 1/2, the default, has little more of the
first than the diagonal, half of the noise of c = 1, and a look off the diagonal.

**Variance.** That of a draw over the number of draws. A draw is four pairs of complementary coalitions (S and N \ S, at
u and 1 - u), one pair from each quarter of the sizes up to n / 2; draws are independent and identically distributed.

**Cost**: 8 differentiated runs a draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from time import perf_counter

import numpy as np
from numpy.typing import ArrayLike, NDArray

from baselines import Estimate, Valuation
from baselines.arguments import whole_number
from baselines.convergence import StoppingRule
from baselines.draws import Moments, Rng, random_coalitions, random_streams
from baselines.monte_carlo import draw_limits, estimate_by_draws, from_moments
from inrun_bench.adjoint.checkpoints import AUTOMATIC, Storage
from inrun_bench.adjoint.relaxed_game import RelaxedGame, relaxed_game
from inrun_bench.adjoint.smoothing import SMOOTHING
from inrun_bench.adjoint.sweep import TRAININGS_A_RUN
from inrun_bench.adjoint.utilities import Utility
from tasks import Task
from tasks.data import HeldOut

__all__ = ["coalition_gradient_shapley"]

STRATA = 4  # pairs of a draw, one from each quarter of the sizes
COALITIONS_A_DRAW = 2 * STRATA
DRAWS_AT_A_TIME = 16  # the sweep makes stacks of these, as memory allows


def coalition_gradient_shapley(
    task: Task,
    coalitions: int | None = 128,
    *,
    spread: float = 0.5,
    smoothing: float = SMOOTHING,
    stop: StoppingRule | None = None,
    rng: Rng = None,
    utility: Utility = "loss",
    split: HeldOut = "validation",
    groups: ArrayLike | None = None,
    storage: Storage = AUTOMATIC,
    progress: bool = False,
) -> Valuation:
    """Shapley values of the trajectory game, approximated by derivatives at random coalitions.

    Parameters
    ----------
    task : Task
        Data, model and recipe.
    coalitions : int, optional
        Differentiated runs: a multiple of 8. None leaves the end to `stop`.
    spread : float
        In [0, 1]: 1 differentiates at coalitions themselves, 0 on the diagonal, values in between in between.
    stop : StoppingRule, optional
        When to stop before that; see `baselines.convergence`. Its evaluations are differentiated runs.
    rng : int, SeedSequence, Generator or None
        Seed; see `baselines.draws.random_permutations`.
    smoothing, utility, split, groups, storage
        As in :func:`inrun_bench.adjoint.few_run_shapley`.
    progress : bool
        Whether to show a progress bar, in differentiated runs, on stderr.

    Returns
    -------
    Valuation
        `stderr` is the Monte Carlo error alone, not the bias. `evaluations` counts differentiated runs; `parameters`
        say what one costs.

    Raises
    ------
    TypeError, ValueError, OSError
        As :func:`inrun_bench.adjoint.sweep.differentiate`; if neither `coalitions` nor `stop` is given, or a number is
        out of range.

    Warns
    -----
    InterruptedEstimateWarning
        If it is interrupted, by Ctrl-C, and returns the draws made so far; see `baselines.monte_carlo`.
    """
    started = perf_counter()
    if not 0 <= spread <= 1:
        raise ValueError(f"spread must lie in [0, 1], got {spread!r}")
    n_draws: float = math.inf
    if coalitions is not None:
        n_draws, rest = divmod(whole_number("coalitions", coalitions), COALITIONS_A_DRAW)
        if rest:
            raise ValueError(
                f"coalitions must be a multiple of {COALITIONS_A_DRAW}, those of one draw, got {coalitions}"
            )
    limits = draw_limits(None, stop, n_draws=n_draws, draw_cost=COALITIONS_A_DRAW)
    game = relaxed_game(task, utility, split, groups, storage, smoothing)
    return estimate_by_draws(
        "coalition_gradient_shapley",
        _GradientDraws(game, rng, spread),
        started=started,
        limits=limits,
        stop=stop,
        progress=progress,
        parameters=lambda draws: {
            "coalitions": draws * COALITIONS_A_DRAW,
            "spread": float(spread),
            "smoothing": float(smoothing),
            "trainings_a_differentiated_run": TRAININGS_A_RUN,
        },
    )


class _GradientDraws:
    """The estimator in the making; a :class:`baselines.monte_carlo.Estimator`."""

    least_draws = 1

    def __init__(self, game: RelaxedGame, rng: Rng, spread: float) -> None:
        self._game = game
        self._spread = spread
        self._streams = random_streams(rng)
        self._moments = Moments(game.n_players)

    def extend(self, n_draws: int) -> Iterator[int]:
        """Differentiate at the coalitions of so many further draws."""
        while n_draws > 0:
            streams = list(islice(self._streams, min(n_draws, DRAWS_AT_A_TIME)))
            weights = np.concatenate([_weights(stream, self._game.n_players, self._spread) for stream in streams])
            gradients = self._game.differentiate(weights).gradients
            for draw in gradients.reshape(len(streams), COALITIONS_A_DRAW, -1).mean(axis=1):
                self._moments = self._moments.with_draw(draw)
                yield COALITIONS_A_DRAW
            n_draws -= len(streams)

    def estimate(self) -> Estimate:
        """Return the mean of the draws."""
        return from_moments(self._moments, self._moments.count * COALITIONS_A_DRAW)


def _weights(stream: np.random.Generator, n: int, spread: float) -> NDArray[np.float64]:
    """Return the weights of a draw, float64 [COALITIONS_A_DRAW, n]."""
    level = (np.arange(STRATA) + stream.random(STRATA)) / COALITIONS_A_DRAW  # u, in quarters of [0, 1/2)
    members = random_coalitions(stream, (level * (n + 1)).astype(np.intp), n)
    levels = np.concatenate([level, 1 - level])[:, None]
    weights: NDArray[np.float64] = spread * np.concatenate([members, ~members]) + (1 - spread) * levels
    return weights
