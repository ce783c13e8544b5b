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
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import tasks
from baselines import Estimate
from inrun_bench import metrics
from inrun_bench.methods import method_of, valued
from inrun_bench.reference import blocks as reference
from inrun_bench.report.looks import TASKS_A_ROW, in_order, legend, look, panels
from inrun_bench.report.markdown import markdown
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.unit import REFERENCE, Row, Setting, Unit

SUMMARY = "error of each retraining estimator against the reference, over trainings and seconds"
EXCLUSIVE = True
DEFAULT = False


@dataclass(frozen=True)
class Knobs:
    """How long estimators are followed.

    Attributes
    ----------
    budgets : mapping of str to int
        Trainings per sample, at most, by task; ``"default"`` is for tasks not named.
    repetitions : int
        Runs of each estimator.
    """

    budgets: Mapping[str, int]
    repetitions: int


KNOBS = {
    "quick": Knobs({"mnist-cnn": 4, "default": 20}, repetitions=2),
    "standard": Knobs({"mnist-cnn": 10, "mnist-mlp": 50, "default": 100}, repetitions=3),
}

METHODS = (
    "permutation",
    "permutation-antithetic",
    "permutation-shifts",
    "tmc",
    "owen",
    "complementary",
    "kernel-leverage",
    "kernel",
    "group-testing",
    "coalition-gradients",
    "control-variate",
)
NEEDS = "methods that take a budget and can be stopped"


def units(plan: Plan) -> list[Unit]:
    """One unit an estimator, task and repetition, and one for the reference's own error."""
    found, knobs = [], plan.of_profile(KNOBS)
    methods = [name for name in plan.methods if {"budget", "stop"} <= method_of(name).options]
    for task in plan.tasks_with_reference if methods else ():
        values = reference.as_unit(reference.read(reference.references(plan.reference_folder), task))
        settings: dict[str, Setting] = {
            **values.settings,
            "budget_per_player": knobs.budgets.get(task, knobs.budgets["default"]),
        }
        found.append(Unit("estimators", task, REFERENCE, 0, settings, (values,)))
        found += [
            Unit("estimators", task, name, 0, {**settings, "repetition": repetition}, (values,))
            for name in methods
            for repetition in range(knobs.repetitions)
        ]
    return found


def measure(unit: Unit, needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Follow one estimator to the end of its budget."""
    truth = reference.of_rows(unit.task, unit.seed, unit.recipe, list(needs.values())).valuations["loss"]
    spread = float(truth.values.std())
    assert truth.stderr is not None
    if unit.method == REFERENCE:
        noise = metrics.root_mean_square(truth.stderr) / spread
        return [{"metric": "error", "value": noise, "evaluations": truth.evaluations, "seconds": truth.seconds}]
    task = tasks.load(unit.task, unit.seed)
    budget = 2 + int(unit.settings["budget_per_player"]) * task.n_train
    run = partial(valued, unit.method, task, unit.random_seed, budget=budget)
    run(stop=lambda _: True)  # what torch loads when first used is not the estimator's time
    rows: list[Row] = []
    looks = count()
    start = time.perf_counter()

    shown: list[Estimate] = []

    def look(estimate: Estimate) -> bool:
        shown.append(estimate)
        seen = {
            "error": metrics.root_mean_square(estimate.values - truth.values) / spread,
            "spearman": metrics.agreement(estimate.values, truth.values)["spearman"],
        }
        if estimate.stderr is not None:
            seen["stderr"] = metrics.root_mean_square(estimate.stderr) / spread
        place = {"look": next(looks), "evaluations": estimate.evaluations, "seconds": time.perf_counter() - start}
        rows.extend({"metric": name, "value": value, **place} for name, value in seen.items())
        return False

    found = run(stop=look)
    if not shown or not np.allclose(shown[-1].values, found.values, rtol=1e-6, atol=1e-9 * spread):
        raise ValueError(
            f"method {unit.method!r} must show its rule `stop` every estimate, the last of them that which it returns: "
            f"it was asked {len(shown)} times, and " + ("returned another one" if shown else "never by it")
        )
    return rows


LARGEST = 3.0  # errors shown: a constant would score 1
BIASED = ("tmc", "coalition-gradients")
AXES = {"evaluations": "trainings", "seconds": "seconds on one core"}


def draw(rows: pd.DataFrame) -> Figure:
    """Draw two panels a task: medians over repetitions on logarithmic axes, and the error of the reference itself."""
    errors = rows[rows["metric"] == "error"]
    if errors.empty:
        return Figure()
    figure, names, axes = panels(errors, len(AXES), height=2.5, most_columns=TASKS_A_ROW)
    methods = in_order(m for m in errors["method"] if m != REFERENCE)
    for (axis, label), row in zip(AXES.items(), axes, strict=True):
        for number, (ax, task) in enumerate(zip(row, names, strict=True)):
            _panel(ax, errors[errors["task"] == task], methods, axis)
            ax.set_xlabel(label)
            if number % TASKS_A_ROW == 0:
                ax.set_ylabel("error (spread of\nthe values = 1)")
    noise = Line2D([], [], color="black", linestyle="--", label="standard error of the reference itself")
    legend(figure, methods, [noise])
    return figure


def efficiencies(rows: pd.DataFrame) -> pd.DataFrame:
    """Return how many times fewer trainings than plain permutations give the same standard error.

    A variance falls as one over the trainings, so that their product says what an estimator needs. Biased estimators
    are left out: their standard errors say little of their errors.

    Parameters
    ----------
    rows : DataFrame
        Those of the estimators experiment.

    Returns
    -------
    DataFrame
        One row an unbiased estimator, one column a task; empty where no rows hold standard errors.
    """
    errors = rows[(rows["metric"] == "stderr") & ~rows["method"].isin(BIASED)]
    if errors.empty:
        return errors
    last = errors.loc[errors.groupby(["task", "method", "repetition"])["look"].idxmax()]
    need = last.assign(need=last["value"] ** 2 * last["evaluations"]).groupby(["task", "method"])["need"].median()
    by_method = need.unstack("task")
    return by_method.rdiv(by_method.loc["permutation"]) if "permutation" in by_method.index else by_method.iloc[:0]


def _panel(ax: Axes, errors: pd.DataFrame, methods: list[str], axis: str) -> None:
    for method in methods:
        found = errors[errors["method"] == method].groupby("look")[[axis, "value"]].median()
        found = found[found["value"] <= LARGEST]
        if len(found):
            style = look(method)
            ax.plot(
                found[axis],
                found["value"],
                color=style.color,
                marker=style.marker,
                markersize=4.5,
                markevery=4,
                linewidth=1.1,
            )
    noise = errors[errors["method"] == REFERENCE]["value"]
    if len(noise) and noise.iloc[0] > 0:
        ax.axhline(noise.iloc[0], color="black", linewidth=1, linestyle="--")
    ax.set_xscale("log")
    ax.set_yscale("log")


def table(rows: pd.DataFrame) -> str:
    """Return errors at the end of the budget, and efficiencies relative to plain permutations."""
    return "\n\n".join(part for part in (_errors_table(rows), _efficiency_table(rows)) if part)


def _errors_table(rows: pd.DataFrame) -> str:
    errors = rows[rows["metric"] == "error"] if len(rows) else rows
    if errors.empty:
        return ""
    tasks = list(dict.fromkeys(errors["task"]))
    of_estimators = errors[errors["method"] != REFERENCE]
    if of_estimators.empty:
        return ""
    last = of_estimators.loc[of_estimators.groupby(["task", "method", "repetition"])["look"].idxmax()]
    medians = last.groupby(["task", "method"])[["value", "evaluations", "seconds"]].median()
    cells = []
    for method in in_order(of_estimators["method"]):
        found = (medians.loc[(task, method)] if (task, method) in medians.index else None for task in tasks)
        texts = ("" if own is None else f"{own['value']:.2g}, {own['seconds']:.2g} s" for own in found)
        cells.append([look(method).markdown, *texts])
    noise = errors[errors["method"] == REFERENCE].set_index("task")["value"]
    cells.append(
        ["*standard error of the reference*", *(f"{noise[task]:.2g}" if task in noise else "" for task in tasks)]
    )
    heads = [f"{task} ({medians.loc[task, 'evaluations'].max():,.0f})" for task in tasks]
    return (
        "**Estimators**: root mean square error against the reference, in units of the spread of its values, and wall "
        "time on one core, after the number of trainings in brackets; medians over repetitions.\n\n"
        f"{markdown(cells, ['estimator', *heads])}"
    )


def _efficiency_table(rows: pd.DataFrame) -> str:
    found = efficiencies(rows) if len(rows) else rows
    if found.empty:
        return ""
    cells = [
        [look(method).markdown, *("" if math.isnan(ratio) else f"{ratio:.2g}" for ratio in found.loc[method])]
        for method in in_order(found.index)
    ]
    return (
        "**Efficiency**: how many times fewer trainings than plain permutations take to the same standard error (root "
        "mean square over the samples), at the end of the budget; medians over repetitions. Estimators with a bias, "
        "of which standard errors do not know, are left out.\n\n"
        f"{markdown(cells, ['estimator', *found.columns])}"
    )
