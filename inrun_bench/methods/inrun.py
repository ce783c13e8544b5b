"""In-Run Data Shapley: the task's own training run, once, with the engine watching; or the mean of runs of other seeds.

Seeds of runs are drawn from the method's own stream: they are not those of a reference that is averaged over runs.

A group's value is the sum of its samples': exact for the sum of the step games, each of which is close to additive, but
in general not the Shapley value of the grouped game.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np
from numpy.typing import NDArray

from baselines import Valuation
from inrun_bench.attribution import InRunShapley
from inrun_bench.methods.mean_over_runs import drawn_seeds, mean_over_runs, moments_of_runs
from inrun_bench.methods.method import Method
from inrun_bench.methods.stacked_inrun import first_order_values
from tasks import Task


def inrun(
    task: Task, _seed: np.random.SeedSequence, *, groups: NDArray[np.int64] | None = None, order: str
) -> Valuation:
    """Train once by the task's recipe and return the ledger's values; `parameters` holds the ledger's accounts."""
    start = time.perf_counter()
    model = task.model()
    optimizer = task.optimizer(model)
    engine = InRunShapley(model, optimizer, task.n_train, order, validation=lambda: task.loss(model, task.validation))
    for index in task.batches():
        with engine.step(index):
            task.train_on(model, optimizer, index)
    accounts = {
        name: amount for name, amount in engine.ledger.accounts.items() if name != "unscored"
    }  # all make scores
    return Valuation(
        values=_summed(engine.values(), groups),
        stderr=None,
        evaluations=1,
        seconds=time.perf_counter() - start,
        method=f"inrun-{order}",
        parameters={"order": order, **accounts},
    )


def _summed(values: NDArray[np.float64], groups: NDArray[np.int64] | None) -> NDArray[np.float64]:
    """Return the values of samples, or their sums by group."""
    return values if groups is None else np.bincount(groups, values).astype(np.float64)


def over_seeds(
    task: Task, seed: np.random.SeedSequence, *, groups: NDArray[np.int64] | None = None, order: str, runs: int
) -> Valuation:
    """Return the mean of in-run values over runs of other initial weights and batch orders, with its spread.

    Values of first order under SGD come from one stack of runs (:mod:`inrun_bench.methods.stacked_inrun`), without
    accounts.
    """
    seeds = drawn_seeds(seed, runs)
    if order != "first" or task.recipe.optimizer != "sgd":
        return mean_over_runs(task, seeds, partial(inrun, _seed=seed, groups=groups, order=order))
    start = time.perf_counter()
    of_runs = first_order_values([task.rerun(each) for each in seeds])
    moments = moments_of_runs([_summed(values, groups) for values in of_runs])
    return Valuation(
        values=moments.mean,
        stderr=moments.stderr(),
        evaluations=runs,
        seconds=time.perf_counter() - start,
        method=f"inrun-{order}",
        parameters={"order": order, "samples": float(moments.mean.sum()), "seeds": seeds},
        halves=moments.halves(),
    )


LABELS = {"first": "In-Run, first order", "second": "In-Run, second order", "integrated": "In-Run, integrated"}
RUNS = 20

METHODS = {
    f"inrun-{order}": Method(partial(inrun, order=order), label, "in-run") for order, label in LABELS.items()
} | {
    f"inrun-{order}-seeds-{RUNS}": Method(
        partial(over_seeds, order=order, runs=RUNS), f"{LABELS[order]}, mean of {RUNS} seeds", "in-run"
    )
    for order in ("first", "integrated")
}
