r"""Unbiased Shapley values from far fewer trainings: only what the differentiated runs leave open is sampled.

**Mathematics.** The Shapley value is linear in the game. With h the surrogate of
:mod:`~inrun_bench.adjoint.surrogate`, whose values are known,

.. math:: \phi(U) = \phi(h) + \phi(U - h),

and the second term is estimated from trainings on coalitions. That is unbiased whatever h is worth; how well h follows
U decides the variance alone (a control variate; for surrogates of Shapley values: Witter, Liu, Musco,
*Regression-adjusted Monte Carlo Estimators for Shapley Values and Probabilistic Values*, 2025, arXiv 2506.11849).

The residual game is sampled by complementary contributions (:mod:`baselines.complementary`), not along permutations. A
marginal contribution is a difference of neighbouring utilities, from which the level and most of the rest have gone
already: its noise is the interaction of single players, which h does not know. A complementary contribution tells of
all players at once but carries the whole size of the game, which is why it loses against permutations on U itself, and
wins on U - h, which is small.

**Variance**: that of :mod:`baselines.complementary` on U - h. **Cost**: K differentiated runs, and the trainings.
Standard errors are those of the second term, as the first has none; all else that is said of the estimate on the way,
to stopping rules too, is said of the sum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from baselines import Game, Valuation, complementary_shapley
from baselines.arguments import whole_number
from baselines.convergence import Estimate, Rule, StoppingRule, allowance, name_of
from baselines.draws import Rng
from inrun_bench.adjoint.checkpoints import AUTOMATIC, Storage
from inrun_bench.adjoint.relaxed_game import relaxed_game
from inrun_bench.adjoint.smoothing import SMOOTHING
from inrun_bench.adjoint.surrogate import taylor_surrogate
from inrun_bench.adjoint.sweep import TRAININGS_A_RUN
from inrun_bench.adjoint.utilities import Utility
from tasks import Task
from tasks.data import HeldOut

__all__ = ["control_variate_shapley"]


def control_variate_shapley(
    task: Task,
    *,
    budget: int | None = None,
    stop: StoppingRule | None = None,
    points: int = 8,
    smoothing: float = SMOOTHING,
    rng: Rng = None,
    utility: Utility = "loss",
    split: HeldOut = "validation",
    groups: ArrayLike | None = None,
    storage: Storage = AUTOMATIC,
    progress: bool = False,
) -> Valuation:
    """Unbiased Shapley values of the trajectory game: differentiated runs, corrected by trainings on coalitions.

    Parameters
    ----------
    task : Task
        Data, model and recipe, of at least 2 players.
    budget : int, optional
        Most trainings on coalitions; at least about 2 n.
    stop : StoppingRule, optional
        When to stop before the budget is spent; see `baselines.convergence`. It sees the values themselves, not those
        of the residual game, and its evaluations are runs, the differentiated ones included.
    points : int
        Differentiated runs behind the surrogate.
    rng : int, SeedSequence, Generator or None
        Seed; see `baselines.draws.random_permutations`.
    smoothing, utility, split, groups, storage
        As in :func:`inrun_bench.adjoint.few_run_shapley`.
    progress : bool
        Whether to show a progress bar, in trainings, on stderr.

    Returns
    -------
    Valuation
        `evaluations` counts runs, the differentiated ones included; `parameters` say how many these are and what one
        costs.

    Raises
    ------
    TypeError, ValueError, OSError
        As :func:`inrun_bench.adjoint.sweep.differentiate` and :func:`baselines.complementary_shapley`.

    Warns
    -----
    InterruptedEstimateWarning
        If it is interrupted, by Ctrl-C, and returns the draws made so far; see `baselines.monte_carlo`.
    """
    started = perf_counter()
    whole_number("points", points)
    game = relaxed_game(task, utility, split, groups, storage, smoothing)
    surrogate = taylor_surrogate(game, points)
    known = _Known(surrogate.shapley(), int(points))
    rest = complementary_shapley(
        _Difference(game, surrogate), budget=budget, stop=known.rule(stop), rng=rng, progress=progress
    )
    return replace(
        known.added_to(rest),
        seconds=perf_counter() - started,
        method="control_variate_shapley",
        parameters={
            **rest.parameters,
            "points": int(points),
            "smoothing": float(smoothing),
            "trainings_a_differentiated_run": TRAININGS_A_RUN,
        },
    )


_Found = TypeVar("_Found", Estimate, Valuation)


@dataclass(frozen=True, eq=False)
class _Known:
    """What is known of the values before the residual game is sampled, and the runs that it took."""

    values: NDArray[np.float64]
    runs: int

    def added_to(self, rest: _Found) -> _Found:
        """Return what was found of the residual game as what that says of the whole."""
        return replace(
            rest,
            values=rest.values + self.values,
            halves=None if rest.halves is None else rest.halves + self.values,
            evaluations=rest.evaluations + self.runs,
        )

    def rule(self, stop: StoppingRule | None) -> StoppingRule | None:
        """Return the rule for the residual game that stops it when `stop` would stop the whole."""
        if stop is None or not callable(stop):  # what is no rule is refused by the estimator
            return stop
        return Rule(name_of(stop), lambda rest: stop(self.added_to(rest)), allowance(stop) - self.runs)


@dataclass(frozen=True, eq=False)
class _Difference:
    """The game worth what one game is worth beyond another."""

    game: Game
    other: Game

    @property
    def n_players(self) -> int:
        return self.game.n_players

    def __call__(self, coalitions: NDArray[np.bool_]) -> NDArray[np.float64]:
        utilities: NDArray[np.float64] = self.game(coalitions) - self.other(coalitions)
        return utilities
