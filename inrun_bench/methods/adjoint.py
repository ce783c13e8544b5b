"""The adjoint probe: the final utility differentiated through whole training runs, see :mod:`inrun_bench.adjoint`.

A differentiated run counts as the trainings that it takes (:data:`~inrun_bench.adjoint.sweep.TRAININGS_A_RUN`).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from baselines import Valuation
from inrun_bench.adjoint import (
    coalition_gradient_shapley,
    control_variate_shapley,
    few_run_shapley,
    unrolled_influence,
)
from inrun_bench.adjoint.sweep import TRAININGS_A_RUN
from inrun_bench.methods.mean_over_runs import drawn_seeds
from inrun_bench.methods.method import Method
from tasks import Task


def few_run(task: Task, _seed: np.random.SeedSequence, *, points: int) -> Valuation:
    """Return the Aumann-Shapley values of the trajectory game from a few differentiated runs."""
    return _in_trainings(few_run_shapley(task, points=points), differentiated=points)


def few_run_over_seeds(task: Task, seed: np.random.SeedSequence, *, points: int, runs: int) -> Valuation:
    """Return the mean of these values over trajectory games of other initial weights and batch orders."""
    found = few_run_shapley(task, points=points, seeds=drawn_seeds(seed, runs))
    return _in_trainings(found, differentiated=points * runs)


def coalition_gradients(task: Task, seed: np.random.SeedSequence, *, coalitions: int) -> Valuation:
    """Return values from differentiated runs at random coalitions."""
    return _in_trainings(coalition_gradient_shapley(task, coalitions=coalitions, rng=seed), differentiated=coalitions)


def control_variate(task: Task, seed: np.random.SeedSequence, *, trainings_a_sample: int) -> Valuation:
    """Return unbiased values: differentiated runs, corrected by trainings on random coalitions."""
    found = control_variate_shapley(task, budget=trainings_a_sample * task.n_train, rng=seed)
    return _in_trainings(found, differentiated=int(found.parameters["points"]))


def unrolled(task: Task, _seed: np.random.SeedSequence) -> Valuation:
    """Return the influence of each sample on the one run that sees them all."""
    return _in_trainings(unrolled_influence(task), differentiated=1)


def _in_trainings(found: Valuation, differentiated: int) -> Valuation:
    """Return the valuation with its runs, some of them differentiated, counted in trainings."""
    return replace(found, evaluations=round(found.evaluations + (TRAININGS_A_RUN - 1) * differentiated))


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
}
