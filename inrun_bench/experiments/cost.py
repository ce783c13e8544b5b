"""Cost: agreement with the stored reference values, over the time that a method takes in units of one training.

A training is the task's own run, one model, as a user would write it. The same reference judges all methods on a task,
so that few-run values, which agree with retraining to a few thousandths, can be told apart from noise; what noise
there is lowers the agreement of a perfect method to the ceiling (:mod:`~inrun_bench.experiments.agreement`), which
stands in the reference's own rows. Rows of a method also hold its parameters, the diagnostics among them.

It needs reference values, from 'inrun-bench reference', and judges methods by each recipe for which a task has them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import pandas as pd

import tasks
from inrun_bench import reference
from inrun_bench.experiments.agreement import ceiling, metrics
from inrun_bench.experiments.values import parameter_rows
from inrun_bench.methods import valued
from inrun_bench.plan import Plan
from inrun_bench.unit import DEFAULT_RECIPE, REFERENCE, Row, Unit

SUMMARY = "agreement with the stored reference over time, in units of one training"
EXCLUSIVE = True
DEFAULT = False

TRAININGS = 7  # timed, of which the median counts


def units(plan: Plan) -> list[Unit]:
    """One unit a method, task and recipe, and one for the reference itself; seed 0 has references."""
    found = []
    for task in plan.tasks_with_reference:
        others = [recipe for recipe in reference.recipes(plan.references, task) if recipe != DEFAULT_RECIPE]
        for recipe in (DEFAULT_RECIPE, *others):
            values = reference.as_unit(reference.read(plan.references, task, recipe=recipe))
            found += [
                Unit("cost", task, method, 0, values.settings, needs=(values,)) for method in (REFERENCE, *plan.methods)
            ]
    return found


def measure(unit: Unit, needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Compare a method's values with the reference, and its time with that of a training."""
    stored = reference.of_rows(unit.task, unit.seed, unit.recipe, list(needs.values()))
    truth = stored.valuations["loss"]
    training = _seconds_of_a_training(unit)
    if unit.method == REFERENCE:
        found, halves = truth, 1.0 if stored.exact else truth.reliability()
        agreement = {"spearman": halves, "spearman_ceiling": ceiling(halves)}
    else:
        found = valued(unit.method, _task(unit), unit.random_seed)
        found = valued(unit.method, _task(unit), unit.random_seed)  # the first may have loaded what it uses
        agreement = metrics(found.values, truth.values)
    spent = {"evaluations": found.evaluations, "seconds": found.seconds, "trainings": found.seconds / training}
    rows: list[Row] = [{"metric": name, "value": value, **spent} for name, value in agreement.items()]
    return [*rows, *parameter_rows(found)]


def _task(unit: Unit) -> tasks.Task:
    return tasks.load(unit.task, recipe=unit.recipe)


def _seconds_of_a_training(unit: Unit) -> float:
    taken = []
    for _ in range(TRAININGS):
        task = _task(unit)
        model = task.model()
        optimizer = task.optimizer(model)
        batches = task.batches()
        start = time.perf_counter()
        for index in batches:
            task.train_on(model, optimizer, index)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
