"""Axioms: how far each method's values are from what defines Shapley values, measured.

Shapley values are the only ones with all four properties (Shapley, *A value for n-person games*, 1953):

- efficiency: they add up to what training gained, the utility of the trained model minus that of the untrained one;
- symmetry: samples that do the same to every coalition are worth the same;
- null player: a sample that does nothing to any coalition is worth nothing;
- linearity: the values of a sum of utilities are the sums of the values.

The task is made so that the run's own game has such samples. Of a few training samples of a logistic task some are
copies of others, and one has features that are all zero; the model has no bias, so that this one has no gradient, and
every step takes all samples, so that copies take part in the same steps. For linearity the validation set is cut into
halves, whose values must have the mean that the values of the whole have.

Errors: of efficiency in units of the gain; of the others in units of the spread (standard deviation) of the values.
Zero, or rounding, where a property holds; the reference, all coalitions enumerated, has all four. Methods that draw
random numbers draw the same ones for the whole and for its halves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

import tasks
from baselines import exact_shapley
from inrun_bench import metrics
from inrun_bench.methods import valued
from inrun_bench.report.looks import in_order, look
from inrun_bench.report.markdown import count, markdown
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.unit import REFERENCE, Row, Unit
from tasks.corruption import corrupt

SUMMARY = "efficiency, symmetry, null player and linearity of every method's values"
NEEDS = "tasks of logistic regression"
TASKS = ("breast-cancer-logreg", "iris-logreg", "wine-logreg")
EXCLUSIVE = False
DEFAULT = False


@dataclass(frozen=True)
class Knobs:
    """How large the task is.

    Attributes
    ----------
    samples : int
        For training, of which all coalitions are trained for the reference.
    copies : int
        How many of them are copies of others.
    steps : int
        Of training.
    """

    samples: int
    copies: int
    steps: int


KNOBS = {"quick": Knobs(samples=10, copies=2, steps=20), "standard": Knobs(samples=14, copies=3, steps=40)}

AXIOMS = {
    "efficiency": "efficiency",
    "symmetry": "symmetry",
    "null_player": "null player",
    "linearity": "linearity",
}
ROUNDING = 1e-6  # of float64 runs; smaller errors are none


def units(plan: Plan) -> list[Unit]:
    """One unit a method, task and seed, and one of exact values."""
    knobs = plan.of_profile(KNOBS)
    settings = {"samples": knobs.samples, "copies": knobs.copies, "steps": knobs.steps}
    return [
        Unit("axioms", task, method, seed, settings)
        for task in plan.tasks
        if tasks.CATALOG[task].learner == "logistic"
        for seed in plan.seeds
        for method in (REFERENCE, *plan.methods)
    ]


def measure(unit: Unit, _needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Value the samples, for the whole validation set and for its halves, and see how far the axioms are off."""
    made = task_with_symmetries(unit)

    def values_by(judges: tasks.Split) -> np.ndarray:
        task = replace(made.task, validation=judges)
        if unit.method == REFERENCE:
            return exact_shapley(task.trajectory_game()).values
        return valued(unit.method, task, unit.random_seed).values

    whole = made.task.validation
    halves = [tasks.Split(whole.x[part], whole.y[part]) for part in torch.arange(len(whole)).chunk(2)]
    values, of_halves = values_by(whole), [values_by(half) for half in halves]
    ends = made.task.trajectory_game()(np.array([[False], [True]]).repeat(made.task.n_train, axis=1))
    errors = broken(values, np.mean(of_halves, axis=0), made, float(ends[1] - ends[0]))
    return [{"metric": axiom, "value": error} for axiom, error in errors.items()]


@dataclass(frozen=True)
class Symmetric:
    """A task some of whose samples do the same as others, or nothing.

    Attributes
    ----------
    task : Task
        In float64, trained by steps on all samples.
    copies, originals : int64 [k]
        Samples that are copies, and of which.
    null : int
        The sample without a gradient.
    """

    task: tasks.Task
    copies: np.ndarray
    originals: np.ndarray
    null: int


def task_with_symmetries(unit: Unit) -> Symmetric:
    """Return the unit's task; see the module's docstring."""
    spec, knobs = tasks.CATALOG[unit.task], unit.settings
    n, k = int(knobs["samples"]), int(knobs["copies"])
    recipe = replace(spec.recipes["sgd"], batch_size=n, epochs=int(knobs["steps"]))
    even = spec.n_validation - spec.n_validation % 2  # halves of one size, so that their mean is that of the whole
    spec = replace(spec, recipes={"sgd": recipe}, architecture=_without_bias(spec), n_validation=even)
    task = spec.build(unit.task, seed=unit.seed, n_train=n, flipped=0.0, dtype=torch.float64)
    copied = corrupt(task, "copies", k / n)
    others = np.setdiff1d(np.arange(n), np.concatenate([copied.samples, copied.originals]))
    x = copied.task.train.x.clone()
    x[others[0]] = 0.0
    task = replace(copied.task, train=tasks.Split(x, copied.task.train.y))
    return Symmetric(task, copied.samples, copied.originals, int(others[0]))


def _without_bias(spec: tasks.TaskSpec) -> Callable[[], nn.Module]:
    linear = next(layer for layer in spec.architecture().modules() if isinstance(layer, nn.Linear))
    return lambda: nn.Linear(linear.in_features, linear.out_features, bias=False)


def broken(values: np.ndarray, of_halves: np.ndarray, made: Symmetric, gain: float) -> dict[str, float]:
    """Return by how much values break each axiom; see the module's docstring for the units.

    Parameters
    ----------
    values, of_halves : float64 [n]
        By the whole validation set, and the mean of those by its halves.
    made : Symmetric
        Which samples are alike, and which does nothing.
    gain : float
        Of utility by training.
    """
    spread = float(values.std()) or float("nan")
    apart = values[made.copies] - values[made.originals]
    return {  # NaN where all values are the same
        "efficiency": abs(float(values.sum()) - gain) / abs(gain),
        "symmetry": float(np.abs(apart).max()) / spread,
        "null_player": abs(float(values[made.null])) / spread,
        "linearity": metrics.root_mean_square(values - of_halves) / spread,
    }


FLOOR = 1e-7  # where errors that are none are drawn


def draw(rows: pd.DataFrame) -> Figure:
    """Draw a panel an axiom: the error of every method, a small mark a task and seed, a large one the median."""
    rows = rows[rows["metric"].isin(AXIOMS)] if len(rows) else rows
    if rows.empty:
        return Figure()
    methods = in_order(rows["method"])[::-1]
    figure = Figure(figsize=(2.0 * len(AXIOMS) + 2.4, 0.2 * len(methods) + 1.1), layout="constrained")
    axes = figure.subplots(1, len(AXIOMS), sharey=True, squeeze=False)[0]
    for ax, (axiom, label) in zip(axes, AXIOMS.items(), strict=True):
        for position, method in enumerate(methods):
            style = look(method)
            own = rows[(rows["metric"] == axiom) & (rows["method"] == method)]["value"].clip(lower=FLOOR)
            ax.plot(own, [position] * len(own), "|", color=style.color, markersize=6, alpha=0.6)
            ax.plot(own.median(), position, color=style.color, marker=style.marker, markersize=6)
        ax.axvspan(FLOOR / 3, ROUNDING, color="0.93", zorder=0)
        ax.set_xscale("log")
        ax.set_xlim(FLOOR / 3, None)
        ax.set_title(label)
        ax.set_xlabel(f"error ({'gain' if axiom == 'efficiency' else 'spread of values'} = 1)")
    axes[0].set_yticks(range(len(methods)), [look(m).label for m in methods])
    marks = "the median, and | each task and seed"
    figure.suptitle(f"how far the values break each axiom: {marks} (shaded: not at all, but for rounding)", fontsize=10)
    return figure


def table(rows: pd.DataFrame) -> str:
    """Return the median error of every method by axiom, over tasks and seeds, and the largest in brackets."""
    rows = rows[rows["metric"].isin(AXIOMS)] if len(rows) else rows
    if rows.empty:
        return ""
    errors = rows.groupby(["method", "metric"])["value"].agg(["median", "max"])
    cells = [
        [
            look(method).markdown,
            *(_told(errors.loc[(method, axiom)]) for axiom in AXIOMS if (method, axiom) in errors.index),
        ]
        for method in in_order(rows["method"])
    ]
    made = f"{count(rows['task'].nunique(), 'task')} of logistic regression, {count(rows['seed'].nunique(), 'seed')}"
    return (
        f"**Axioms**: how far values break what defines Shapley values, on {made}: median (largest). Efficiency in "
        "units of what training gained, the others in units of the spread of the values; holds: below "
        f"{ROUNDING:g}.\n\n{markdown(cells, ['method', *AXIOMS.values()])}"
    )


def _told(error: pd.Series) -> str:
    if error["max"] < ROUNDING:
        return "holds"
    median = f"{error['median']:.2g}" if error["median"] >= ROUNDING else "0"
    return f"{median} ({error['max']:.2g})"
