"""In-Run Data Shapley: the task's own training run, once, with the engine watching."""

from __future__ import annotations

import time
from functools import partial

import numpy as np

from baselines import Valuation
from inrun_bench.attribution import InRunShapley
from inrun_bench.methods.method import Method
from tasks import Task


def inrun(task: Task, _seed: np.random.SeedSequence, *, order: str) -> Valuation:
    """Train once by the task's recipe and return the ledger's values; `parameters` holds the ledger's accounts."""
    start = time.perf_counter()
    model = task.model()
    optimizer = task.optimizer(model)
    engine = InRunShapley(model, optimizer, task.n_train, order, validation=lambda: task.loss(model, task.validation))
    for index in task.batches():
        with engine.step(index):
            task.train_on(model, optimizer, index)
    return Valuation(
        values=engine.values(),
        stderr=None,
        evaluations=1,
        seconds=time.perf_counter() - start,
        method=f"inrun-{order}",
        parameters={"order": order, **engine.ledger.accounts},
    )


LABELS = {"first": "In-Run, first order", "second": "In-Run, second order", "integrated": "In-Run, integrated"}

METHODS = {f"inrun-{order}": Method(partial(inrun, order=order), label, "in-run") for order, label in LABELS.items()}
