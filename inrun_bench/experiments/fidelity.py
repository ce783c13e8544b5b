"""Fidelity: how close each order of In-Run Data Shapley comes to the Shapley values of single steps.

At several moments of training and several learning rates, the Shapley values of the step game (:mod:`tasks.step`) are
computed from real optimiser steps: by enumeration for batches of at most 12 samples, by antithetic Monte Carlo with
standard errors above. Then the engine scores the same step, from the same weights, in float64.

The relative error is ``||scores - shapley|| / ||shapley||``; its standard error is the noise of the judge,
``||stderr|| / ||shapley||``: an error below it cannot be told from none.
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


def units(plan: Plan) -> list[Unit]:
    """One unit an order, task, seed and learning rate; each needs the judge's unit of the same."""
    found = []
    for task in plan.tasks:
        for seed in plan.seeds:
            for factor in plan.profile.rate_factors:
                settings: dict[str, Setting] = {
                    "rate_factor": factor,
                    "moments": " ".join(f"{moment:g}" for moment in plan.profile.moments),
                }
                judge = Unit(
                    "fidelity", task, JUDGE, seed, {**settings, "permutations": plan.profile.step_permutations}
                )
                found += [
                    Unit("fidelity", task, method, seed, settings, needs=(judge,))
                    for method in plan.methods
                    if method.startswith(PREFIX)
                ]
    return found


def measure(unit: Unit, needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Judge the steps of one run: return Shapley values (the judge's unit), or one order's errors."""
    rows: list[Row] = []
    for moment, learning_rate, task, model, index in _steps(unit):
        place: Row = {"moment": moment, "learning_rate": learning_rate}
        if unit.method == JUDGE:
            shapley = _step_shapley(unit, task, model, index)
            stderr = np.zeros(len(index)) if shapley.stderr is None else shapley.stderr
            cost = {"evaluations": shapley.evaluations, "seconds": shapley.seconds}
            rows += [
                {**place, **cost, "metric": "value", "sample": int(sample), "value": float(v), "stderr": float(e)}
                for sample, v, e in zip(index, shapley.values, stderr, strict=True)
            ]
            continue
        judged = needs[unit.needs[0]].query("moment == @moment")
        values, stderr = judged["value"].to_numpy(), judged["stderr"].to_numpy()
        scores, residual_share = _score(unit.method, task, model, index)
        error = float(np.linalg.norm(scores - values) / np.linalg.norm(values))
        noise = float(np.linalg.norm(stderr) / np.linalg.norm(values))
        correlations = metrics(scores, values)
        rows += [
            {**place, "metric": "relative_error", "value": error, "stderr": noise},
            {**place, "metric": "spearman", "value": correlations["spearman"]},
            {**place, "metric": "pearson", "value": correlations["pearson"]},
            {**place, "metric": "residual_share", "value": residual_share},
        ]
    return rows


def _steps(unit: Unit) -> Iterator[tuple[float, float, tasks.Task, nn.Module, torch.Tensor]]:
    """Train at the unit's learning rate and stop before the step at each moment of the run."""
    task = tasks.load(unit.task, unit.seed, dtype=torch.float64)
    learning_rate = task.recipe.learning_rate * float(unit.settings["rate_factor"])
    task = dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, learning_rate=learning_rate))
    model = task.model()
    optimizer = task.optimizer(model)
    batches = task.batches()
    moments = {round(float(m) * (len(batches) - 1)): float(m) for m in str(unit.settings["moments"]).split()}
    for number, index in enumerate(batches):
        if number in moments:
            yield moments[number], learning_rate, task, model, index
        task.train_on(model, optimizer, index)


def _step_shapley(unit: Unit, task: tasks.Task, model: nn.Module, index: torch.Tensor) -> Valuation:
    game = tasks.StepGame(task, model, task.optimizer(model), index)
    if game.n_players <= ENUMERATED:
        return exact_shapley(game)
    permutations = int(unit.settings["permutations"])
    return permutation_shapley(game, n_permutations=permutations, antithetic=True, rng=unit.random_seed)


def _score(method: str, task: tasks.Task, model: nn.Module, index: torch.Tensor) -> tuple[np.ndarray, float]:
    """Return the engine's scores of one step taken on a copy of `model`, and |residual| / |drop|."""
    model = copy.deepcopy(model)
    optimizer = task.optimizer(model)
    engine = InRunShapley(
        model,
        optimizer,
        task.n_train,
        method.removeprefix(PREFIX),
        validation=lambda: task.loss(model, task.validation),
    )
    with engine.step(index):
        task.train_on(model, optimizer, index)
    entry = engine.ledger.steps[0]
    return entry.scores, abs(entry.residual / entry.drop)
