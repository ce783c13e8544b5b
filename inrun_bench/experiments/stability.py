"""Stability: how far the values of one run agree with those of another run of the same data.

A run is its initial weights and the order of its batches; data, split and recipe stay. Values that follow one run tell
what samples were worth to it, and a reader who trains again wants what they are worth to the algorithm. So each method
values the same samples in several runs, and in each of them twice, by other random numbers of its own:

==================  ============================================================================================
agreement           mean Spearman correlation
==================  ============================================================================================
between runs        of values in different runs
within a run        of two valuations of one run: 1 for a method that draws no random numbers, or its own noise
==================  ============================================================================================

What is between the two is the run's. The retraining reference (permutations of the run's own game) stands beside the
methods: no method that sees one run can be asked to agree with another run better than retraining does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

import tasks
from baselines import permutation_shapley
from baselines.permutation import SHIFTS
from inrun_bench import metrics
from inrun_bench.methods import valued
from inrun_bench.report.intervals import over_seeds
from inrun_bench.report.leaderboard import Question
from inrun_bench.report.looks import dot, in_order, look, panels
from inrun_bench.report.markdown import interval_cell, markdown
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.stored_values import warm_up
from inrun_bench.runs.unit import REFERENCE, Row, Unit

SUMMARY = "agreement of a method's values between runs of other weights and batches, and within one"
EXCLUSIVE = False
DEFAULT = False
TASKS = ("breast-cancer-logreg", "digits-mlp", "wine-logreg")
NEEDS = "tasks that are not large, whose run can be another"
BETWEEN, WITHIN = "between runs", "within a run"
QUESTIONS = (Question("stability between runs", "spearman", "Spearman correlation", where={"of": BETWEEN}),)


@dataclass(frozen=True)
class Knobs:
    """How often samples are valued.

    Attributes
    ----------
    runs : int
        At least 2.
    permutations : int
        Behind one valuation by retraining, a multiple of ``2 * SHIFTS``.
    left_out : tuple of str
        Methods that are not asked: each is a mean over runs of its own already.
    """

    runs: int
    permutations: int
    left_out: tuple[str, ...] = ("few-run-4-seeds-20", "inrun-first-seeds-20", "inrun-integrated-seeds-20")


KNOBS = {"quick": Knobs(runs=2, permutations=20), "standard": Knobs(runs=4, permutations=100)}


def units(plan: Plan) -> list[Unit]:
    """One unit a method, and one for the reference."""
    knobs = plan.of_profile(KNOBS)
    return [
        Unit("stability", task, method, seed, {"runs": knobs.runs, **more})
        for task in plan.tasks_with_reference
        for seed in plan.seeds
        for method, more in (
            (REFERENCE, {"permutations": knobs.permutations}),
            *((method, {}) for method in plan.methods if method not in knobs.left_out),
        )
    ]


def measure(unit: Unit, _needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Value the samples twice in every run, by a method."""
    return list(_rows(unit, lambda task, stream: valued(unit.method, task, stream).values))


def measure_reference(unit: Unit, _needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Value the samples twice in every run, by retraining."""
    permutations = int(unit.settings["permutations"])

    def retrained(task: tasks.Task, stream: np.random.SeedSequence) -> NDArray[np.float64]:
        game = task.trajectory_game()
        return permutation_shapley(game, n_permutations=permutations, antithetic=True, shifts=SHIFTS, rng=stream).values

    return list(_rows(unit, retrained))


def _rows(unit: Unit, value: Callable[[tasks.Task, np.random.SeedSequence], NDArray[np.float64]]) -> Iterable[Row]:
    task, runs = tasks.load(unit.task, unit.seed), int(unit.settings["runs"])
    warm_up(unit.task)
    streams = unit.random_seed.spawn(2 * runs)
    found = [
        [value(task.rerun(seed), stream) for stream in streams[2 * run : 2 * run + 2]]
        for run, seed in enumerate(task.run_seeds(runs))
    ]
    pairs = {
        BETWEEN: [(one[0], other[1]) for one, other in itertools.permutations(found, 2)],
        WITHIN: [(one, other) for one, other in found],
    }
    for of, several in pairs.items():
        seen = [metrics.agreement(one, other)["spearman"] for one, other in several]
        yield {"metric": "spearman", "of": of, "value": float(np.mean(seen))}


def draw(rows: pd.DataFrame) -> Figure:
    """Draw mean correlations with intervals, a panel a task: between runs filled, within a run hollow."""
    rows = rows[rows["metric"] == "spearman"]
    if rows.empty:
        return Figure()
    methods = in_order(rows["method"])
    figure, names, axes = panels(rows, 1, height=0.24 * len(methods) + 1.1, most_columns=3, sharex=True, sharey=True)
    means = over_seeds(rows, ("task", "method", "of", "metric"))
    for ax, task in zip(axes[0], names, strict=True):
        for place, method in enumerate(methods):
            for of, filled in ((WITHIN, False), (BETWEEN, True)):
                key = (task, method, of, "spearman")
                if key in means.index:
                    dot(ax, means.loc[key], place, look(method), filled=filled)
        ax.set_yticks(range(len(methods)), [look(method).label for method in methods])
        ax.set_ylim(len(methods) - 0.5, -0.5)
        ax.set_xlabel("Spearman correlation")
    handles = [
        Line2D([], [], color="0.3", marker="o", linestyle="none", label="filled: between runs"),
        Line2D(
            [],
            [],
            color="0.3",
            marker="o",
            linestyle="none",
            fillstyle="none",
            label="hollow: within a run",
        ),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def table(rows: pd.DataFrame) -> str:
    """Return both correlations of each method, by task."""
    rows = rows[rows["metric"] == "spearman"] if len(rows) else rows
    if rows.empty:
        return ""
    means, seeds = over_seeds(rows, ("task", "method", "of", "metric")), rows["seed"].nunique()
    names = list(dict.fromkeys(rows["task"]))
    cells = [
        [
            look(method).markdown,
            *(
                interval_cell(means, (task, method, of, "spearman"), seeds)
                for task in names
                for of in (BETWEEN, WITHIN)
            ),
        ]
        for method in in_order(rows["method"])
    ]
    heads = ["method", *(f"{task}, {of}" for task in names for of in (BETWEEN, WITHIN))]
    return (
        "**Stability**: Spearman correlation of the values of the same samples between runs of other initial weights "
        "and batches, and between two valuations of one run [95 % confidence interval over seeds].\n\n"
        f"{markdown(cells, heads)}"
    )
