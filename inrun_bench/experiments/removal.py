"""Removal: retrain without the samples that a method values most, or least, and look at the test set.

Removing what a method calls most valuable should hurt more than removing samples at random, and removing the least
valuable should hurt less, or help. The area between the two curves, over the share removed, is the summary: larger is
better. Retraining is that of the trajectory game: removed samples contribute nothing, steps keep their denominator.
There is a curve for each utility of the task: the loss, and where there are classes, the accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.integrate import trapezoid

import tasks
from inrun_bench.experiments.values import read_reference, read_values, reference_blocks, values_unit
from inrun_bench.plan import Plan
from inrun_bench.unit import REFERENCE, Row, Unit

SUMMARY = "test loss and accuracy after retraining without the top or bottom samples"
EXCLUSIVE = False
DEFAULT = True

FRACTIONS = np.arange(0, 0.501, 0.05)


def units(plan: Plan) -> list[Unit]:
    """One unit a method, the reference among them where there is one, and one for random removal."""
    found = []
    for task in plan.tasks:
        for seed in plan.seeds:
            blocks = reference_blocks(plan, task, seed)
            found.append(Unit("removal", task, "random", seed, {"draws": plan.profile.removal_draws}))
            if blocks:
                found.append(Unit("removal", task, REFERENCE, seed, needs=blocks))
            found += [
                Unit("removal", task, method, seed, needs=(values_unit(task, method, seed),))
                for method in plan.methods
                if method != "random"
            ]
    return found


def measure(unit: Unit, needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Retrain along the removal orders of one unit."""
    task = tasks.load(unit.task, unit.seed)
    if unit.method == "random":
        rng = np.random.default_rng(unit.random_seed)
        orders = {f"draw {i}": rng.permutation(task.n_train) for i in range(int(unit.settings["draws"]))}
    else:
        values = read_reference(needs.values()).mean(axis=0)
        if unit.method != REFERENCE:
            values = read_values(needs[unit.needs[0]])
        ascending = np.argsort(values, kind="stable")
        orders = {"top": ascending[::-1], "bottom": ascending}
    utilities = list(task.objective.utilities)
    curves = _curves(task, orders, utilities)
    rows: list[Row] = [
        {"metric": f"test_{utility}", "direction": name, "fraction": float(fraction), "value": float(value)}
        for name, curve in curves.items()
        for utility, column in zip(utilities, curve.T, strict=True)
        for fraction, value in zip(FRACTIONS, -column if utility == "loss" else column, strict=True)
    ]
    if unit.method != "random":
        areas = trapezoid(curves["bottom"] - curves["top"], FRACTIONS, axis=0)  # > 0 where good is told from bad
        rows += [{"metric": f"area_{name}", "value": float(area)} for name, area in zip(utilities, areas, strict=True)]
    return rows


def _curves(
    task: tasks.Task, orders: Mapping[str, NDArray[np.intp]], utilities: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Return utilities on the test set, float64 [fractions, utilities], as ever more of each order is removed."""
    removed = np.round(FRACTIONS * task.n_train).astype(int)
    places = np.argsort(np.stack(list(orders.values())), axis=1)  # of each sample in each order, [orders, n_train]
    keep = places[:, None, :] >= removed[:, None]  # [orders, fractions, n_train]
    outcomes = tasks.retrain(task, keep.reshape(-1, task.n_train), [(utility, "test") for utility in utilities])
    return dict(zip(orders, outcomes.reshape(len(orders), len(FRACTIONS), len(utilities)), strict=True))
