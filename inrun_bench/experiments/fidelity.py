"""Fidelity: how close each order of In-Run Data Shapley comes to the Shapley values of single steps.

At several moments of training, for each recipe of a task and several learning rates, the Shapley values of the step
game (:mod:`tasks.step_game`) are computed from real optimiser steps: by enumeration for batches of at most 12 samples,
by antithetic Monte Carlo with standard errors above. Then the engine scores the same step, from the same weights and
the same state of the optimiser, in float64.

The relative error is ``||scores - shapley|| / ||shapley||``; its standard error is the noise of the judge,
``||stderr|| / ||shapley||``: an error below it cannot be told from none. ``residual_share`` is ``|residual| / |drop|``
of the same step, what the ledger says without any judge.

The learning rates reach beyond the edge of what can be trained. The judge's units also hold the loss over the whole
training set, before training and after every epoch: a learning rate *converges* if, in every seed, that loss falls from
epoch to epoch.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
import torch
from torch import nn

import tasks
from baselines import Valuation, exact_shapley, permutation_shapley
from inrun_bench.attribution import InRunShapley
from inrun_bench.experiments.agreement import metrics
from inrun_bench.plan import Plan
from inrun_bench.unit import Row, Setting, Unit

SUMMARY = "in-run scores of single steps against the step game's Shapley values"
EXCLUSIVE = False
DEFAULT = True

ENUMERATED = 12  # players up to which the judge enumerates
JUDGE = "step-shapley"
PREFIX = "inrun-"
RUNS_WITH = {  # each order, and the method that it is run with; cheap forms of the integral are no methods of their own
    "first": "inrun-first",
    "second": "inrun-second",
    "midpoint": "inrun-integrated",
    "trapezoid": "inrun-integrated",
    "integrated": "inrun-integrated",
}


def units(plan: Plan) -> list[Unit]:
    """One unit an order, task, recipe, seed and learning rate; each needs the judge's unit of the same."""
    orders = [order for order, method in RUNS_WITH.items() if method in plan.methods]
    profile = plan.profile
    found = []
    for task in plan.tasks:
        for recipe in (name for name in profile.rate_factors if name in tasks.CATALOG[task].recipes):
            for seed in plan.seeds:
                for factor in profile.rate_factors[recipe]:
                    settings: dict[str, Setting] = {
                        "recipe": recipe,
                        "rate_factor": factor,
                        "moments": " ".join(f"{moment:g}" for moment in profile.moments[recipe]),
                    }
                    judge = Unit("fidelity", task, JUDGE, seed, {**settings, "permutations": profile.step_permutations})
                    found += [Unit("fidelity", task, PREFIX + o, seed, settings, needs=(judge,)) for o in orders]
    return found


def measure(unit: Unit, needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Judge the steps of a run: return Shapley values and training losses (the judge's unit), or an order's errors."""
    task = _load(unit)
    rows = _judge(unit, task) if unit.method == JUDGE else _errors(unit, task, needs[unit.needs[0]])
    return [{"learning_rate": task.recipe.learning_rate, **row} for row in rows]


def _load(unit: Unit) -> tasks.Task:
    """Return the task, in float64, with the unit's recipe and learning rate."""
    task = tasks.load(unit.task, unit.seed, recipe=str(unit.settings["recipe"]), dtype=torch.float64)
    learning_rate = task.recipe.learning_rate * float(unit.settings["rate_factor"])
    return dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, learning_rate=learning_rate))


@dataclasses.dataclass(frozen=True)
class _Moment:
    """Training, stopped before the step on the samples `index`; `place` says where."""

    place: Row
    task: tasks.Task
    model: nn.Module
    optimizer: torch.optim.Optimizer
    index: torch.Tensor


def _moments(unit: Unit, task: tasks.Task) -> Iterator[_Moment]:
    """Train, and stop at the unit's moments."""
    model = task.model()
    optimizer = task.optimizer(model)
    batches = task.batches()
    moments = {round(float(m) * (len(batches) - 1)): float(m) for m in str(unit.settings["moments"]).split()}
    for step, index in enumerate(batches):
        if step in moments:
            yield _Moment({"moment": moments[step], "step": step}, task, model, optimizer, index)
        task.train_on(model, optimizer, index)


def _judge(unit: Unit, task: tasks.Task) -> Iterator[Row]:
    for moment in _moments(unit, task):
        shapley = _step_shapley(unit, moment)
        stderr = np.zeros(len(moment.index)) if shapley.stderr is None else shapley.stderr
        shared = {**moment.place, "metric": "value", "evaluations": shapley.evaluations, "seconds": shapley.seconds}
        for sample, value, error in zip(moment.index, shapley.values, stderr, strict=True):
            yield {**shared, "sample": int(sample), "value": float(value), "stderr": float(error)}
    for epoch, loss in enumerate(_training_losses(task)):
        yield {"metric": "training_loss", "epoch": epoch, "value": loss}


def _errors(unit: Unit, task: tasks.Task, judged: pd.DataFrame) -> Iterator[Row]:
    for moment in _moments(unit, task):
        own = judged[(judged["metric"] == "value") & (judged["step"] == moment.place["step"])]
        values, stderr = own["value"].to_numpy(), own["stderr"].to_numpy()
        scores, residual_share = _score(unit.method.removeprefix(PREFIX), moment)
        error = float(np.linalg.norm(scores - values) / np.linalg.norm(values))
        noise = float(np.linalg.norm(stderr) / np.linalg.norm(values))
        correlations = metrics(scores, values)
        yield {**moment.place, "metric": "relative_error", "value": error, "stderr": noise}
        yield {**moment.place, "metric": "spearman", "value": correlations["spearman"]}
        yield {**moment.place, "metric": "pearson", "value": correlations["pearson"]}
        yield {**moment.place, "metric": "residual_share", "value": residual_share}


def _step_shapley(unit: Unit, moment: _Moment) -> Valuation:
    game = tasks.StepGame(moment.task, moment.model, moment.optimizer, moment.index)
    if game.n_players <= ENUMERATED:
        return exact_shapley(game)
    permutations = int(unit.settings["permutations"])
    return permutation_shapley(game, n_permutations=permutations, antithetic=True, rng=unit.random_seed)


def _score(order: str, moment: _Moment) -> tuple[np.ndarray, float]:
    """Return the engine's scores of the step, taken on a copy of model and optimiser, and |residual| / |drop|."""
    task, model = moment.task, copy.deepcopy(moment.model)
    optimizer = task.optimizer(model)
    optimizer.load_state_dict(copy.deepcopy(moment.optimizer.state_dict()))  # loading alone would share its tensors
    engine = InRunShapley(model, optimizer, task.n_train, order, validation=lambda: task.loss(model, task.validation))
    with engine.step(moment.index):
        task.train_on(model, optimizer, moment.index)
    entry = engine.ledger.steps[0]
    return entry.scores, abs(entry.residual / entry.drop)


@torch.no_grad()
def _training_losses(task: tasks.Task) -> list[float]:
    """Return the loss over the training set before training and after every epoch."""
    model = task.model()
    optimizer = task.optimizer(model)
    losses = [float(task.loss(model, task.train))]
    batches = task.batches()
    for step, index in enumerate(batches, 1):
        with torch.enable_grad():
            task.train_on(model, optimizer, index)
        if step % (len(batches) // task.recipe.epochs) == 0:
            losses.append(float(task.loss(model, task.train)))
    return losses
