"""The adjoint probe: the final utility differentiated through whole training runs, see :mod:`inrun_bench.adjoint`."""

from __future__ import annotations

from functools import partial

import numpy as np

from baselines import Valuation
from inrun_bench.adjoint import (
    coalition_gradient_shapley,
    control_variate_shapley,
    few_run_shapley,
    unrolled_influence,
)
from tasks import Task


def few_run(task: Task, _seed: np.random.SeedSequence, *, points: int) -> Valuation:
    """Return the Aumann-Shapley values of the trajectory game from a few differentiated runs."""
    return few_run_shapley(task, points=points)


def coalition_gradients(task: Task, seed: np.random.SeedSequence, *, coalitions: int) -> Valuation:
    """Return values from differentiated runs at random coalitions."""
    return coalition_gradient_shapley(task, coalitions=coalitions, rng=seed)


def control_variate(task: Task, seed: np.random.SeedSequence, *, trainings_a_sample: int) -> Valuation:
    """Return unbiased values: differentiated runs, corrected by trainings on random coalitions."""
    return control_variate_shapley(task, budget=trainings_a_sample * task.n_train, rng=seed)


def unrolled(task: Task, _seed: np.random.SeedSequence) -> Valuation:
    """Return the influence of each sample on the one run that sees them all."""
    return unrolled_influence(task)


METHODS = {
    **{f"few-run-{points}": partial(few_run, points=points) for points in (4, 8)},
    "coalition-gradients-128": partial(coalition_gradients, coalitions=128),
    "control-variate-10": partial(control_variate, trainings_a_sample=10),
    "unrolled": unrolled,
}
