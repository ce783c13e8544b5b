"""The adjoint probe: the final utility differentiated through whole training runs, see :mod:`inrun_bench.adjoint`.

A differentiated run counts as the trainings that it takes (:data:`~inrun_bench.adjoint.sweep.TRAININGS_A_RUN`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from baselines import Valuation
from baselines.convergence import StoppingRule
from inrun_bench.adjoint import (
    coalition_gradient_shapley,
    control_variate_shapley,
    few_run_shapley,
    unrolled_influence,
)
from inrun_bench.adjoint.coalitions import COALITIONS_A_DRAW
from inrun_bench.adjoint.sweep import TRAININGS_A_RUN
from inrun_bench.methods.mean_over_runs import drawn_seeds
from inrun_bench.methods.method import Method
from inrun_bench.methods.monte_carlo import TRAININGS_A_PLAYER
from tasks import Task

Groups: TypeAlias = NDArray[np.int64] | None

POINTS = 8  # differentiated runs behind the control variate


def few_run(task: Task, _seed: np.random.SeedSequence, *, groups: Groups = None, points: int) -> Valuation:
    """Return the Aumann-Shapley values of the trajectory game from a few differentiated runs."""
    return _in_trainings(few_run_shapley(task, points=points, groups=groups), differentiated=points)


def few_run_over_seeds(
    task: Task, seed: np.random.SeedSequence, *, groups: Groups = None, points: int, runs: int
) -> Valuation:
    """Return the mean of these values over trajectory games of other initial weights and batch orders."""
    found = few_run_shapley(task, points=points, seeds=drawn_seeds(seed, runs), groups=groups)
    return _in_trainings(found, differentiated=points * runs)


def coalition_gradients(
    task: Task, seed: np.random.SeedSequence, *, groups: Groups = None, coalitions: int
) -> Valuation:
    """Return values from differentiated runs at random coalitions."""
    found = coalition_gradient_shapley(task, coalitions=coalitions, rng=seed, groups=groups)
    return _in_trainings(found, differentiated=coalitions)


def coalition_gradients_of_a_budget(
    task: Task,
    seed: np.random.SeedSequence,
    *,
    groups: Groups = None,
    budget: int | None = None,
    stop: StoppingRule | None = None,
) -> Valuation:
    """Return the same from as many as a budget of trainings allows."""
    if budget is None and stop is None:
        budget = _usual_budget(task, groups)
    a_draw = COALITIONS_A_DRAW * TRAININGS_A_RUN
    _refuse_less(budget, math.ceil(a_draw), f"{COALITIONS_A_DRAW} differentiated coalitions take")
    draws = None if budget is None else math.floor(budget / a_draw)
    found = coalition_gradient_shapley(
        task,
        coalitions=None if draws is None else draws * COALITIONS_A_DRAW,
        rng=seed,
        groups=groups,
        stop=stop and _told_trainings(stop, lambda runs: round(runs * TRAININGS_A_RUN)),
    )
    return _in_trainings(found, differentiated=found.evaluations)


def control_variate(
    task: Task, seed: np.random.SeedSequence, *, groups: Groups = None, trainings_a_sample: int
) -> Valuation:
    """Return unbiased values: differentiated runs, corrected by trainings on random coalitions."""
    found = control_variate_shapley(task, budget=trainings_a_sample * _players(task, groups), rng=seed, groups=groups)
    return _in_trainings(found, differentiated=int(found.parameters["points"]))


def control_variate_of_a_budget(
    task: Task,
    seed: np.random.SeedSequence,
    *,
    groups: Groups = None,
    budget: int | None = None,
    stop: StoppingRule | None = None,
) -> Valuation:
    """Return the same, the trainings that differentiated runs take being part of the budget."""
    differentiated = round(POINTS * TRAININGS_A_RUN)
    if budget is None and stop is None:
        budget = differentiated + _usual_budget(task, groups)
    _refuse_less(budget, differentiated + 1, f"{POINTS} differentiated runs and one more take")
    found = control_variate_shapley(
        task,
        budget=None if budget is None else budget - differentiated,
        points=POINTS,
        rng=seed,
        groups=groups,
        stop=stop and _told_trainings(stop, lambda runs: runs - POINTS + differentiated),
    )
    return _in_trainings(found, differentiated=POINTS)


def unrolled(task: Task, _seed: np.random.SeedSequence, *, groups: Groups = None) -> Valuation:
    """Return the influence of each sample on the one run that sees them all."""
    return _in_trainings(unrolled_influence(task, groups=groups), differentiated=1)


def _players(task: Task, groups: Groups) -> int:
    return task.n_train if groups is None else int(np.max(groups)) + 1


def _usual_budget(task: Task, groups: Groups) -> int:
    return 2 + TRAININGS_A_PLAYER * _players(task, groups)


def _refuse_less(budget: int | None, least: int, what: str) -> None:
    if budget is not None and budget < least:
        raise ValueError(f"budget must be at least the {least} trainings that {what}, got {budget}")


def _in_trainings(found: Valuation, differentiated: int) -> Valuation:
    """Return the valuation with its runs, some of them differentiated, counted in trainings."""
    return replace(found, evaluations=round(found.evaluations + (TRAININGS_A_RUN - 1) * differentiated))


def _told_trainings(stop: StoppingRule, trainings: Callable[[int], int]) -> StoppingRule:
    """Return the rule for an estimator that counts runs, some of them differentiated."""
    return lambda estimate: stop(replace(estimate, evaluations=trainings(estimate.evaluations)))


FAMILY = "differentiated runs"

METHODS = {
    "unrolled": Method(unrolled, "one differentiated run (unrolled)", FAMILY),
    **{
        f"few-run-{points}": Method(partial(few_run, points=points), f"{points} differentiated runs", FAMILY)
        for points in (4, 8)
    },
    "few-run-4-seeds-20": Method(
        partial(few_run_over_seeds, points=4, runs=20), "4 differentiated runs, each of 20 seeds", FAMILY
    ),
    "coalition-gradients-128": Method(
        partial(coalition_gradients, coalitions=128), "128 differentiated coalitions", FAMILY
    ),
    "control-variate-10": Method(
        partial(control_variate, trainings_a_sample=10), "control variate, 10 trainings a sample", FAMILY
    ),
    "coalition-gradients": Method(coalition_gradients_of_a_budget, "differentiated coalitions", FAMILY),
    "control-variate": Method(control_variate_of_a_budget, f"control variate of {POINTS} differentiated runs", FAMILY),
}
