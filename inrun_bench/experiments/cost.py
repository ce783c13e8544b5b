"""Cost: agreement with the stored reference values, over the time that a method takes in units of one training.

A training is the task's own run, one model, as a user would write it. The same reference judges all methods on a task,
so that few-run values, which agree with retraining to a few thousandths, can be told apart from noise; what noise
there is lowers the agreement of a perfect method to the ceiling (:mod:`~inrun_bench.experiments.agreement`), which
stands in the reference's own rows. Rows of a method also hold its parameters, the diagnostics among them.

It needs reference values, from 'inrun-bench reference', and judges methods by each recipe and seed for which a task has
them; correlations are means over these seeds, times medians.
"""

from __future__ import annotations

import itertools
import statistics
import textwrap
from collections.abc import Iterable, Mapping
from functools import partial

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import tasks
from inrun_bench import metrics
from inrun_bench.experiments.values import diagnostics
from inrun_bench.methods import valued
from inrun_bench.reference import blocks as reference
from inrun_bench.report.intervals import left_out, over_seeds
from inrun_bench.report.leaderboard import Question
from inrun_bench.report.looks import foremost, in_order, in_table_alone, legend, look, points
from inrun_bench.report.markdown import interval_cell, markdown, mean_cell, of_several
from inrun_bench.report.paired import paired_differences
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.stored_values import parameter_rows, with_recipes
from inrun_bench.runs.timing import wall_seconds
from inrun_bench.runs.unit import DEFAULT_RECIPE, REFERENCE, Row, Unit

SUMMARY = "agreement with the stored reference over time, in units of one training"
EXCLUSIVE = True
DEFAULT = False
QUESTIONS = (
    Question(
        "agreement with the stored reference",
        "spearman",
        "Spearman correlation",
        by={"recipe": "{}"},
        bound="spearman_ceiling",
    ),
)

TRAININGS = 7  # timed, of which the median counts


def units(plan: Plan) -> list[Unit]:
    """One unit a method, task, recipe and seed with a reference, and one for the reference itself."""
    store, found = reference.references(plan.reference_folder), []
    for task in plan.tasks_with_reference:
        judged = [(seed, recipe) for seed in plan.seeds for recipe in reference.recipes(store, task, seed)]
        judged = judged or [(plan.seeds[0], DEFAULT_RECIPE)]  # which says how to make it
        for seed, recipe in sorted(judged, key=lambda each: each[1] != DEFAULT_RECIPE):
            values = reference.as_unit(reference.read(store, task, seed, recipe))
            found += [
                Unit("cost", task, method, seed, values.settings, needs=(values,))
                for method in (REFERENCE, *plan.methods)
            ]
    return found


def measure(unit: Unit, needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Compare a method's values with the reference, and its time with that of a training."""
    stored = reference.of_rows(unit.task, unit.seed, unit.recipe, list(needs.values()))
    truth = stored.valuations["loss"]
    training = _seconds_of_a_training(unit)
    if unit.method == REFERENCE:
        found, halves = truth, 1.0 if stored.exact else truth.reliability()
        agreement = {"spearman": halves, "spearman_ceiling": metrics.ceiling(halves)}
    else:
        found = valued(unit.method, _task(unit), unit.random_seed)
        found = valued(unit.method, _task(unit), unit.random_seed)  # the first may have loaded what it uses
        agreement = metrics.agreement(found.values, truth.values)
    spent = {"evaluations": found.evaluations, "seconds": found.seconds, "trainings": found.seconds / training}
    rows: list[Row] = [{"metric": name, "value": value, **spent} for name, value in agreement.items()]
    return [*rows, *parameter_rows(found)]


def _task(unit: Unit) -> tasks.Task:
    return tasks.load(unit.task, unit.seed, recipe=unit.recipe)


def _train(
    task: tasks.Task, model: torch.nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[torch.Tensor]
) -> None:
    for index in batches:
        task.train_on(model, optimizer, index)


def _seconds_of_a_training(unit: Unit) -> float:
    taken = []
    for _ in range(TRAININGS):
        task = _task(unit)
        model = task.model()
        taken.append(wall_seconds(partial(_train, task, model, task.optimizer(model), task.batches()), 1))
    return statistics.median(taken)


NO_TIME = ("random", REFERENCE)
BY = ("task", "recipe", "method", "metric")


LOWEST, HIGHEST = 0.95, 2.6  # inches, of a panel
ALL_PANELS = 7.7


def draw(rows: pd.DataFrame) -> Figure:
    """Draw Spearman correlation over cost, and what a perfect method would reach: a row a task, a column a recipe.

    Of many methods the foremost; the table has them all.
    """
    rows = with_recipes(rows)
    spearman = rows[rows["metric"] == "spearman"]
    if spearman.empty:
        return Figure()
    means = over_seeds(rows[rows["metric"].isin(["spearman", "spearman_ceiling"])], BY)
    prices = spearman.groupby(["task", "recipe", "method"])["trainings"].median()
    judged = set(spearman["method"]) - {*NO_TIME}
    methods = foremost(judged)
    measured = {key[:2] for key in means.index}
    names, recipes = list(dict.fromkeys(spearman["task"])), list(dict.fromkeys(spearman["recipe"]))
    lowest = min([0.0, *(mean for key, mean in means["mean"].items() if key[2] in methods)]) - 0.05
    height = min(max(ALL_PANELS / len(names), LOWEST), HIGHEST)
    figure = Figure(figsize=(max(2.3 * len(recipes), 4.2) + 0.5, height * len(names) + 1.6), layout="constrained")
    grid = figure.subplots(len(names), len(recipes), squeeze=False, sharex=True, sharey=True)
    bottom: dict[int, Axes] = {}
    for (row, task), (column, recipe) in itertools.product(enumerate(names), enumerate(recipes)):
        ax = grid[row, column]
        if (task, recipe) not in measured:
            ax.remove()
            continue
        for method in methods:
            key = (task, recipe, method, "spearman")
            if key in means.index:
                style, price = look(method), prices[key[:-1]]
                mean, low, high = means.loc[key, ["mean", "low", "high"]]
                ax.plot(price, mean, **points(style), markersize=5)
                ax.plot([price, price], [low, high], color=style.color, linewidth=0.8, zorder=1)
        if (task, recipe, REFERENCE, "spearman_ceiling") in means.index:
            ceiling = means["mean"][task, recipe, REFERENCE, "spearman_ceiling"]
            ax.axhline(ceiling, color="black", linewidth=1, linestyle="--")
        bottom[column] = ax
    for ax in bottom.values():
        ax.tick_params(labelbottom=True)
        ax.set_xlabel("wall time (one training = 1)")
    grid[0, 0].set_xscale("log")
    grid[0, 0].margins(x=0.1)
    grid[0, 0].set_ylim(lowest, 1.05)  # intervals of few seeds may be cut off, points are not
    for ax, recipe in zip(grid[0], recipes, strict=True):
        ax.set_title(f"recipe {recipe}")
    for ax, task in zip(grid[:, 0], names, strict=True):
        ax.set_ylabel(textwrap.fill(task, 14), fontsize=8)
    figure.supylabel("Spearman correlation with the reference (mean, 95 % interval over seeds)", fontsize=9)
    noise = Line2D([], [], color="black", linestyle="--", label="noise ceiling of the reference")
    legend(figure, methods, [noise])
    if note := "; ".join(filter(None, (in_table_alone(judged), left_out(means)))):
        figure.suptitle(note, fontsize=8)
    return figure


def table(rows: pd.DataFrame) -> str:
    """Return one table a recipe, and the diagnostics of differentiated runs."""
    if rows.empty:
        return ""
    rows = with_recipes(rows)
    by_recipe = [_cost_by_recipe(str(recipe), own) for recipe, own in rows.groupby("recipe", sort=False)]
    return "\n\n".join(part for part in (*by_recipe, diagnostics(rows)) if part)


def _cost_by_recipe(recipe: str, rows: pd.DataFrame) -> str:
    tasks = list(dict.fromkeys(rows["task"]))
    means = over_seeds(rows)
    spearman = rows[rows["metric"] == "spearman"]
    prices = spearman.groupby(["task", "method"])["trainings"].median()
    seeds = spearman.groupby("task")["seed"].nunique()

    def told(task: str, method: str) -> str:
        if (task, method) not in prices.index:
            return ""
        if several := of_several(means, (task, method, "spearman")):
            return several
        return f"{interval_cell(means, (task, method, 'spearman'), seeds[task])}, {prices[task, method]:,.3g}"

    methods = in_order(spearman["method"])
    cells = [[look(method).markdown, *(told(task, method) for task in tasks)] for method in methods]
    cells.append(["*noise ceiling*", *(mean_cell(means, (task, REFERENCE, "spearman_ceiling")) for task in tasks)])
    cells.append(["*seeds*", *(str(seeds.get(task, "")) for task in tasks)])
    parts = [
        f"**Cost**, recipe {recipe}: Spearman correlation with the stored reference values (of the reference: one half "
        "against the other) [95 % confidence interval over seeds], and median wall time in units of one training of "
        "one model, on one core.",
        markdown(cells, ["method", *tasks]),
        paired_differences(rows, f", recipe {recipe},"),
    ]
    return "\n\n".join(part for part in parts if part)
