"""Estimators: how far each retraining estimator is from the reference, as trainings and seconds are spent.

One run of an estimator gives its whole curve: it is looked at whenever its draws have grown by a quarter. The error is
the root mean square difference from the reference in units of the reference's own spread over the samples: 1 is what
a constant would score, 0.1 ranks the samples well. The reference has an error of its own, by its standard errors; a
curve that reaches it says no more. Beside it, the root mean square of the standard errors that the estimator claims, in
the same unit: they fall as one over the root of the trainings and know of no bias, but have no noise of a reference.

A differentiated run counts as the trainings that it takes (:data:`~inrun_bench.adjoint.sweep.TRAININGS_A_RUN`).

Utility: minus the validation loss. It needs reference values, from 'inrun-bench reference'.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import count

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import tasks
from baselines import (
    Estimate,
    Valuation,
    complementary_shapley,
    group_testing_shapley,
    kernel_shapley,
    owen_shapley,
    permutation_shapley,
    tmc_shapley,
)
from baselines.convergence import StoppingRule
from baselines.draws import Rng
from inrun_bench import reference
from inrun_bench.adjoint import coalition_gradient_shapley, control_variate_shapley
from inrun_bench.adjoint.coalitions import COALITIONS_A_DRAW
from inrun_bench.adjoint.sweep import TRAININGS_A_RUN
from inrun_bench.experiments.agreement import metrics
from inrun_bench.plan import Plan
from inrun_bench.unit import REFERENCE, Row, Setting, Unit
from tasks import Task

SUMMARY = "error of each retraining estimator against the reference, over trainings and seconds"
EXCLUSIVE = True
DEFAULT = False

POINTS = 8  # differentiated runs behind the control variate

Run = Callable[[Task, int, Rng, StoppingRule], Valuation]
"""From a task, the trainings to spend, a seed and a rule that is shown every estimate, its evaluations in trainings."""


GAME_ESTIMATORS: dict[str, Callable[..., Valuation]] = {
    "permutation": permutation_shapley,
    "permutation-antithetic": partial(permutation_shapley, antithetic=True),
    "permutation-shifts": partial(permutation_shapley, antithetic=True, shifts=reference.SHIFTS),
    "tmc": partial(tmc_shapley, tolerance=0.05, lookahead=10),
    "owen": owen_shapley,
    "complementary": complementary_shapley,
    "kernel-leverage": kernel_shapley,
    "kernel": partial(kernel_shapley, sampling="kernel"),
    "group-testing": group_testing_shapley,
}
"""Of any game: ``estimator(game, budget=..., rng=..., stop=...)``."""


def _of_the_game(
    estimator: Callable[..., Valuation], task: Task, budget: int, rng: Rng, stop: StoppingRule
) -> Valuation:
    return estimator(task.trajectory_game(), budget=budget, rng=rng, stop=stop)


def _control_variate(task: Task, budget: int, rng: Rng, stop: StoppingRule) -> Valuation:
    differentiated = round(POINTS * TRAININGS_A_RUN)
    return control_variate_shapley(
        task,
        budget=budget - differentiated,
        points=POINTS,
        rng=rng,
        stop=_in_trainings(stop, lambda runs: runs - POINTS + differentiated),
    )


def _coalition_gradients(task: Task, budget: int, rng: Rng, stop: StoppingRule) -> Valuation:
    draws = math.floor(budget / (COALITIONS_A_DRAW * TRAININGS_A_RUN))
    return coalition_gradient_shapley(
        task,
        coalitions=draws * COALITIONS_A_DRAW,
        rng=rng,
        stop=_in_trainings(stop, lambda runs: round(runs * TRAININGS_A_RUN)),
    )


def _in_trainings(stop: StoppingRule, trainings: Callable[[int], int]) -> StoppingRule:
    """Return the rule for an estimator that counts runs, some of them differentiated."""
    return lambda estimate: stop(replace(estimate, evaluations=trainings(estimate.evaluations)))


ESTIMATORS: dict[str, Run] = {
    **{name: partial(_of_the_game, estimator) for name, estimator in GAME_ESTIMATORS.items()},
    "coalition-gradients": _coalition_gradients,
    "control-variate": _control_variate,
}


def units(plan: Plan) -> list[Unit]:
    """One unit an estimator, task and repetition, and one for the reference's own error."""
    found = []
    for task in plan.tasks_with_reference:
        values = reference.as_unit(reference.read(plan.references, task))
        settings: dict[str, Setting] = {**values.settings, "budget_per_player": plan.profile.budget_for(task)}
        found.append(Unit("estimators", task, REFERENCE, 0, settings, (values,)))
        found += [
            Unit("estimators", task, name, 0, {**settings, "repetition": repetition}, (values,))
            for name in ESTIMATORS
            for repetition in range(plan.profile.repetitions)
        ]
    return found


def measure(unit: Unit, needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Follow one estimator to the end of its budget."""
    truth = reference.of_rows(unit.task, unit.seed, unit.recipe, list(needs.values())).valuations["loss"]
    spread = float(truth.values.std())
    assert truth.stderr is not None
    if unit.method == REFERENCE:
        noise = _root_mean_square(truth.stderr) / spread
        return [{"metric": "error", "value": noise, "evaluations": truth.evaluations, "seconds": truth.seconds}]
    task = tasks.load(unit.task, unit.seed)
    run = ESTIMATORS[unit.method]
    budget = 2 + int(unit.settings["budget_per_player"]) * task.n_train
    run(task, budget, unit.random_seed, lambda _: True)  # what torch loads when first used is not the estimator's time
    rows: list[Row] = []
    looks = count()
    start = time.perf_counter()

    def look(estimate: Estimate) -> bool:
        seen = {
            "error": _root_mean_square(estimate.values - truth.values) / spread,
            "spearman": metrics(estimate.values, truth.values)["spearman"],
        }
        if estimate.stderr is not None:
            seen["stderr"] = _root_mean_square(estimate.stderr) / spread
        place = {"look": next(looks), "evaluations": estimate.evaluations, "seconds": time.perf_counter() - start}
        rows.extend({"metric": name, "value": value, **place} for name, value in seen.items())
        return False

    run(task, budget, unit.random_seed, look)
    return rows


def _root_mean_square(numbers: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.square(numbers).mean()))
