"""Agreement: how well each method's values agree with the retraining reference.

The noise ceiling says what agreement a perfect method would show, since the reference has Monte Carlo noise of its
own: the two halves of the reference are compared by the same metrics (one half against the other, a lower bound), and
for the correlations the ceiling is ``sqrt(2 r / (1 + r))``, r the split-half correlation (Spearman-Brown prophecy for
the reliability of the whole, square root since only one side is noisy).

Correlations come with their standard error over samples, by resampling these, so that few seeds have an interval, too.
Beside them: the overlap of the highest and of the lowest tenth; what error is left after the best scale; and, where
samples have classes, the correlation within these (a mean over classes, on Fisher's scale), since a method that told
nothing but classes apart would agree with the reference as far as their values differ.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

import tasks
from inrun_bench import metrics
from inrun_bench.report.intervals import left_out, over_seeds
from inrun_bench.report.leaderboard import Question
from inrun_bench.report.looks import in_order, legend, look, panels
from inrun_bench.report.paired import paired_differences
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.stored_values import read_reference, read_values, reference_blocks, values_unit
from inrun_bench.runs.unit import REFERENCE, Row, Unit

SUMMARY = "in-run orders, Monte Carlo, TMC, KNN and random against the retraining reference"
EXCLUSIVE = False
DEFAULT = True
QUESTIONS = (
    Question("agreement with the run's own game", "spearman", "Spearman correlation", bound="spearman_ceiling"),
)


def units(plan: Plan) -> list[Unit]:
    """One unit a method, and one for the reference against itself."""
    found = []
    for task in plan.tasks_with_reference:
        for seed in plan.seeds:
            blocks = reference_blocks(plan, task, seed)
            found.append(Unit("agreement", task, REFERENCE, seed, needs=blocks))
            found += [
                Unit("agreement", task, method, seed, needs=(values_unit(task, method, seed), *blocks))
                for method in plan.methods
            ]
    return found


def measure(unit: Unit, needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Compare one method's values, or the reference's halves, with the reference."""
    blocks = read_reference(rows for need, rows in needs.items() if need.method == REFERENCE)
    if unit.method == REFERENCE:
        values, truth = blocks[0::2].mean(axis=0), blocks[1::2].mean(axis=0)
        cost = [rows[rows["metric"] == "cost"].iloc[0] for rows in needs.values()]
    else:
        own = needs[unit.needs[0]]
        values, truth = read_values(own), blocks.mean(axis=0)
        cost = [own[own["metric"] == "cost"].iloc[0]]
    seen = {
        **metrics.agreement(values, truth),
        "bottom10_overlap": metrics.bottom_overlap(values, truth),
        "scaled_rmse": metrics.scaled_rmse(values, truth),
        "spearman_within_classes": _within(values, truth, tasks.load(unit.task, unit.seed)),
    }
    if unit.method == REFERENCE:
        seen |= {f"{name}_ceiling": metrics.ceiling(seen[name]) for name in ("spearman", "pearson")}
    stderr = metrics.agreement_stderr(values, truth, rng=unit.random_seed)
    evaluations, seconds = (sum(row[column] for row in cost) for column in ("evaluations", "seconds"))
    shared = {"evaluations": int(evaluations), "seconds": float(seconds)}
    return [
        {"metric": name, "value": value, "stderr": stderr.get(name, float("nan")), **shared}
        for name, value in seen.items()
        if not (name == "spearman_within_classes" and np.isnan(value))
    ]


FEWEST = 5  # samples of a class, within which there is a correlation
LARGEST = 1 - 1e-12  # correlation: Fisher's z of 1 is infinite


def _within(values: NDArray[np.float64], truth: NDArray[np.float64], task: tasks.Task) -> float:
    """Return the mean over classes of the correlation within them; NaN where there are none."""
    labels = task.train.y
    if labels.is_floating_point() or labels.dim() > 1:
        return float("nan")
    of_classes = [np.flatnonzero(labels.numpy() == label) for label in np.unique(labels.numpy())]
    own = [metrics.agreement(values[i], truth[i])["spearman"] for i in of_classes if len(i) >= FEWEST]
    told = [np.arctanh(np.clip(each, -LARGEST, LARGEST)) for each in own if not np.isnan(each)]
    return float(np.tanh(np.mean(told))) if told else float("nan")


A_ROW = 3  # tasks


def draw(rows: pd.DataFrame) -> Figure:
    """Draw Spearman correlation over wall time, one panel a task, with the noise ceiling and chance.

    Means with 95 % intervals over seeds, at the median of their wall times.
    """
    spearman = rows[rows["metric"].isin(["spearman", "spearman_ceiling"])]
    means = over_seeds(spearman)["mean"]
    table = over_seeds(spearman)
    figure, names, axes = panels(rows, 1, height=4.0, most_columns=A_ROW, sharey=True)
    methods = in_order(m for m in rows["method"] if m not in ("reference", "random"))
    for number, (ax, task) in enumerate(zip(axes[0], names, strict=True)):
        ceiling = means.get((task, "reference", "spearman_ceiling"))
        if ceiling is not None:
            ax.axhline(ceiling, color="black", linewidth=1, linestyle="--")
        if (task, "random", "spearman") in means:
            ax.axhline(means[task, "random", "spearman"], color=look("random").color, linewidth=1, linestyle=":")
        for method in methods:
            found = rows.query("task == @task and method == @method and metric == 'spearman'")
            if found.empty:
                continue
            mean, low, high = table.loc[(task, method, "spearman"), ["mean", "low", "high"]]
            style = look(method)
            ax.errorbar(
                found["seconds"].median(),
                mean,
                yerr=[[mean - low], [high - mean]],
                color=style.color,
                marker=style.marker,
                markersize=7,
                linestyle="none",
            )
        ax.set_xscale("log")
        ax.margins(x=0.12)
        ax.set_xlabel("wall time for all values, one core (s)")
        if number % A_ROW == 0:
            ax.set_ylabel("Spearman correlation with\nthe reference (95 % CI)")
    extra = [
        Line2D([], [], color="black", linestyle="--", label="noise ceiling of the reference"),
        Line2D([], [], color=look("random").color, linestyle=":", label="random values"),
    ]
    legend(figure, methods, extra)
    if note := left_out(table):
        figure.suptitle(note, fontsize=8)
    return figure


def table(rows: pd.DataFrame) -> str:
    """Return how much more each method agrees with the reference than In-Run Data Shapley of first order does."""
    return paired_differences(rows)
