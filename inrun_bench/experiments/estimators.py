"""Estimators: how far each retraining estimator is from the reference, as trainings and seconds are spent.

One run of an estimator gives its whole curve: it is looked at whenever its draws have grown by a quarter. The error is
the root mean square difference from the reference in units of the reference's own spread over the samples: 1 is what
a constant would score, 0.1 ranks the samples well. The reference has an error of its own, by its standard errors; a
curve that reaches it says no more.

Utility: minus the validation loss. It needs reference values, from 'inrun-bench reference'.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

import tasks
from baselines import (
    Estimate,
    Game,
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
from inrun_bench.experiments.agreement import metrics
from inrun_bench.plan import Plan
from inrun_bench.store import Store
from inrun_bench.unit import REFERENCE, Row, Setting, Unit

SUMMARY = "error of each retraining estimator against the reference, over trainings and seconds"
EXCLUSIVE = True
DEFAULT = False

Run = Callable[[Game, int, Rng, StoppingRule | None], Valuation]


def _permutation(**options: bool | int) -> Run:
    def run(game: Game, budget: int, rng: Rng, stop: StoppingRule | None) -> Valuation:
        return permutation_shapley(game, budget=budget, rng=rng, stop=stop, **options)  # type: ignore[arg-type]

    return run


ESTIMATORS: dict[str, Run] = {
    "permutation": _permutation(),
    "permutation-antithetic": _permutation(antithetic=True),
    "permutation-shifts": _permutation(antithetic=True, shifts=reference.SHIFTS),
    "tmc": lambda game, budget, rng, stop: tmc_shapley(
        game, budget=budget, tolerance=0.05, lookahead=10, rng=rng, stop=stop
    ),
    "owen": lambda game, budget, rng, stop: owen_shapley(game, budget=budget, rng=rng, stop=stop),
    "complementary": lambda game, budget, rng, stop: complementary_shapley(game, budget=budget, rng=rng, stop=stop),
    "kernel-leverage": lambda game, budget, rng, stop: kernel_shapley(game, budget=budget, rng=rng, stop=stop),
    "kernel": lambda game, budget, rng, stop: kernel_shapley(
        game, budget=budget, sampling="kernel", rng=rng, stop=stop
    ),
    "group-testing": lambda game, budget, rng, stop: group_testing_shapley(game, budget=budget, rng=rng, stop=stop),
}


def units(plan: Plan) -> list[Unit]:
    """One unit an estimator, task and repetition, and one for the reference's own error."""
    found = []
    store = Store(reference.FOLDER, create=False)
    for task in plan.tasks:
        of_task = reference.read(store, task)
        budget = plan.profile.budget_for(task)
        settings: dict[str, Setting] = {"reference": of_task.digest(), "budget_per_player": budget}
        found.append(Unit("estimators", task, REFERENCE, 0, settings))
        found += [
            Unit("estimators", task, name, 0, {**settings, "repetition": repetition})
            for name in ESTIMATORS
            for repetition in range(plan.profile.repetitions)
        ]
    return found


def measure(unit: Unit, _needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Follow one estimator to the end of its budget."""
    truth = reference.read(Store(reference.FOLDER, create=False), unit.task).valuations["loss"]
    spread = float(truth.values.std())
    assert truth.stderr is not None
    if unit.method == REFERENCE:
        noise = float(np.sqrt(np.square(truth.stderr).mean())) / spread
        return [{"metric": "error", "value": noise, "evaluations": truth.evaluations, "seconds": truth.seconds}]
    game = tasks.load(unit.task, unit.seed).trajectory_game()
    game(np.ones((1, game.n_players), dtype=np.bool_))  # what torch loads when first used is not the estimator's time
    rows: list[Row] = []
    start = time.perf_counter()

    def look(estimate: Estimate) -> bool:
        place = {
            "look": len(rows) // 2,
            "evaluations": estimate.evaluations,
            "seconds": time.perf_counter() - start,
        }
        error = float(np.sqrt(np.square(estimate.values - truth.values).mean())) / spread
        rows.append({"metric": "error", "value": error, **place})
        rows.append({"metric": "spearman", "value": metrics(estimate.values, truth.values)["spearman"], **place})
        return False

    budget = 2 + int(unit.settings["budget_per_player"]) * game.n_players
    ESTIMATORS[unit.method](game, budget, unit.random_seed, look)
    return rows
