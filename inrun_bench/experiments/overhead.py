"""Overhead: what values cost, on top of training.

Two kinds of units. *Steps*: a regular training step against the same step with the engine at each order, and against
a loop that computes one sample's gradient at a time; time, and peak memory. All variants take turns within a round,
ratios are formed within a round, and the median over rounds is reported with its quartiles, so that a machine that
slows down does not favour anyone. *Runs*: the wall time of each method for the values of a whole task, in units of
one plain training run.

One thread, as everywhere. The gradient of the validation loss, which In-Run Data Shapley cannot do without, is also
timed apart ("validation"): what an order costs beyond it is the price of the scores.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import torch
from torch import nn

import tasks
from inrun_bench.attribution import InRunShapley
from inrun_bench.experiments.values import reference_blocks, values_unit
from inrun_bench.memory import peak_bytes
from inrun_bench.plan import Plan
from inrun_bench.unit import REFERENCE, Row, Setting, Unit

SUMMARY = "time and memory of in-run orders against regular training, and of every method for a whole task"
EXCLUSIVE = True
DEFAULT = True

STEPS = "steps"
ORDERS = ("first", "second", "integrated")
SIZES: tuple[dict[str, Setting], ...] = (
    {"width": 0, "batch": 0},  # the task's own model and batch
    {"width": 1024, "batch": 64},  # two hidden layers wide enough that arithmetic, and not Python, takes the time
)
ROUND_SECONDS = 0.02  # a variant is called until a regular step's calls take this long


def units(plan: Plan) -> list[Unit]:
    """For each task the steps of its own model and of a wide one, and a run a method; of the first seed."""
    seed = plan.seeds[0]
    repeats: dict[str, Setting] = {"repeats": plan.profile.timing_repeats}
    found = []
    for task in plan.tasks:
        found += [Unit("overhead", task, STEPS, seed, {**repeats, **size}) for size in SIZES]
        needs: dict[str, tuple[Unit, ...]]
        needs = {method: (values_unit(task, method, seed),) for method in plan.methods if method != "random"}
        needs[REFERENCE] = reference_blocks(plan, task, seed)
        found += [Unit("overhead", task, method, seed, repeats, needs=of) for method, of in needs.items()]
    return found


def measure(unit: Unit, needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Time the steps of one model, or put a method's time in units of one plain run."""
    return _time_steps(unit) if unit.method == STEPS else _time_run(unit, needs)


def _time_steps(unit: Unit) -> list[Row]:
    task = tasks.load(unit.task, unit.seed)
    variants = {
        name: _variant(name, task, int(unit.settings["width"]), int(unit.settings["batch"]))
        for name in ("regular", "validation", *(f"inrun-{order}" for order in ORDERS), "per-sample-loop")
    }
    for step in variants.values():
        _seconds(step, 2)  # warm up
    calls = max(1, round(ROUND_SECONDS / _seconds(variants["regular"], 3)))
    rounds = [
        {name: _seconds(step, 1 if name == "per-sample-loop" else calls) for name, step in variants.items()}
        for _ in range(int(unit.settings["repeats"]))
    ]
    rows: list[Row] = []
    for name, step in variants.items():
        seconds = statistics.median(taken[name] for taken in rounds)
        ratios = np.array([taken[name] / taken["regular"] for taken in rounds])
        low, middle, high = (float(q) for q in np.quantile(ratios, (0.25, 0.5, 0.75)))
        cost = {"method": name, "seconds": seconds, "peak_bytes": peak_bytes(step)}
        rows.append({**cost, "metric": "step_ratio", "value": middle, "low": low, "high": high})
    return rows


def _variant(name: str, task: tasks.Task, width: int, batch: int) -> Callable[[], object]:
    """Return a training step, ready to be called again and again, from the task's initial weights."""
    model = _wide(task, width) if width else task.model()
    index = torch.arange(min(batch or task.recipe.batch_size, task.n_train))
    parameters = list(model.parameters())
    optimizer = task.optimizer(model)

    def validation() -> torch.Tensor:
        return task.loss(model, task.validation)

    def regular() -> None:
        task.train_on(model, optimizer, index)

    def validation_gradient() -> object:
        return torch.autograd.grad(validation(), parameters)

    def per_sample_loop() -> torch.Tensor:
        probe = [v * task.recipe.learning_rate for v in torch.autograd.grad(validation(), parameters)]
        total = [torch.zeros_like(p) for p in parameters]
        scores = torch.empty(len(index))
        for position, sample in enumerate(index):
            loss = task.loss(model, task.train, sample[None]) / len(index)
            own = torch.autograd.grad(loss, parameters)
            scores[position] = sum(((g * q).sum() for g, q in zip(own, probe, strict=True)), start=torch.zeros(()))
            torch._foreach_add_(total, own)
        for parameter, gradient in zip(parameters, total, strict=True):
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad()
        return scores

    if name == "regular":
        return regular
    if name == "validation":
        return validation_gradient
    if name == "per-sample-loop":
        return per_sample_loop
    engine = InRunShapley(model, optimizer, task.n_train, name.removeprefix("inrun-"), validation=validation)

    def valued() -> None:
        with engine.step(index):
            regular()

    return valued


def _wide(task: tasks.Task, width: int) -> nn.Module:
    """Return a perceptron of two hidden layers of the given width for the task's data."""
    n_features = task.train.x[0].numel()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        layers = (nn.Linear(n_features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        return nn.Sequential(*layers, nn.Linear(width, task.n_classes))


def _seconds(step: Callable[[], object], calls: int) -> float:
    """Return the mean wall time of a call."""
    start = time.perf_counter()
    for _ in range(calls):
        step()
    return (time.perf_counter() - start) / calls


def _time_run(unit: Unit, needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Return the method's wall time, as it was when its values were made, over that of one plain training run."""
    task = tasks.load(unit.task, unit.seed)
    plain = statistics.median(_seconds(lambda: _train(task), 1) for _ in range(int(unit.settings["repeats"])))
    costs = [rows[rows["metric"] == "cost"].iloc[0] for rows in needs.values()]
    seconds = float(sum(cost["seconds"] for cost in costs))
    evaluations = int(sum(cost["evaluations"] for cost in costs))
    cost = {"seconds": seconds, "evaluations": evaluations, "plain_seconds": plain}
    return [{"metric": "run_ratio", "value": seconds / plain, **cost}]


def _train(task: tasks.Task) -> None:
    model = task.model()
    optimizer = task.optimizer(model)
    for index in task.batches():
        task.train_on(model, optimizer, index)
