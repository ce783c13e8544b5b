"""Budget: how many validation samples, and how many recorded steps, in-run values need.

In-Run Data Shapley pays for each validation sample and for each step that is scored. So the task's own run is watched
again with ever fewer validation samples, drawn at random, and with every second, fifth, tenth ... step scored alone.
Each time the values are compared with those of the whole run (all validation samples, all steps) and, where the task
has one, with the retraining reference, which is judged by all validation samples.

With fewer validation samples the values are noisier: of a smaller sample of the same loss. With fewer steps they miss
what the other steps did to the samples in their batches, most of all to samples that are seen in few of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import tasks
from inrun_bench import metrics
from inrun_bench.attribution import InRunShapley
from inrun_bench.report.intervals import over_seeds
from inrun_bench.report.looks import band, in_order, legend, look, panels, shaded
from inrun_bench.report.markdown import count, interval_cell, markdown
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.stored_values import read_reference, reference_blocks
from inrun_bench.runs.unit import Row, Setting, Unit

SUMMARY = "in-run values from fewer validation samples and fewer recorded steps"
NEEDS = "methods that follow the run (inrun-first, inrun-second, inrun-integrated), and tasks that are not large"
METHODS = ("inrun-first", "inrun-integrated")
EXCLUSIVE = False
DEFAULT = False


@dataclass(frozen=True)
class Knobs:
    """What is spared.

    Attributes
    ----------
    validation : tuple of int
        Numbers of validation samples, as far as the task has them.
    every : tuple of int
        Every so many-th step is scored.
    draws : int
        Random sets of validation samples of each size; and offsets of the steps, as far as there are such.
    """

    validation: tuple[int, ...]
    every: tuple[int, ...]
    draws: int


KNOBS = {
    "quick": Knobs(validation=(3, 10, 30, 100), every=(2, 5, 10), draws=3),
    "standard": Knobs(validation=(1, 3, 10, 30, 100, 200), every=(2, 3, 5, 10, 25), draws=10),
}
PREFIX = "inrun-"
ORDERS = ("first", "second", "integrated")
VALIDATION, EVERY = "validation samples", "every k-th step"
AGREEMENTS = {"spearman": "with the retraining reference", "spearman_whole": "with the values of the whole run"}


def units(plan: Plan) -> list[Unit]:
    """One unit a method, task and seed."""
    knobs = plan.of_profile(KNOBS)
    settings: dict[str, Setting] = {
        "validation": " ".join(map(str, knobs.validation)),
        "every": " ".join(map(str, knobs.every)),
        "draws": knobs.draws,
    }
    methods = [method for method in plan.methods if method.removeprefix(PREFIX) in ORDERS]
    return [
        Unit("budget", task, method, seed, settings, needs=reference_blocks(plan, task, seed))
        for task in plan.tasks_with_reference
        for seed in plan.seeds
        for method in methods
    ]


def measure(unit: Unit, needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Watch the run with all that there is, and with less."""
    task = tasks.load(unit.task, unit.seed)
    reference = read_reference(needs.values()).mean(axis=0) if needs else None
    whole = by_step(unit, task)
    return [
        {"spared": what, "amount": amount, "metric": name, "value": float(np.mean(values))}
        for what, amount, found in _spared(unit, task, whole)
        for name, values in _agreements(found, whole.sum(axis=0), reference).items()
    ]


def by_step(unit: Unit, task: tasks.Task, judges: torch.Tensor | None = None) -> np.ndarray:
    """Return the scores of the task's run, float64 [steps, n_train]; `judges` int64 [k], validation samples, or all."""
    order, model = unit.method.removeprefix(PREFIX), task.model()
    optimizer = task.optimizer(model)
    engine = InRunShapley(
        model, optimizer, task.n_train, order, validation=lambda: task.loss(model, task.validation, judges)
    )
    batches = task.batches()
    for index in batches:
        with engine.step(index):
            task.train_on(model, optimizer, index)
    scores = np.zeros((len(batches), task.n_train))
    for row, entry in zip(scores, engine.ledger.steps, strict=True):
        row[entry.index] = entry.scores
    return scores


def _spared(unit: Unit, task: tasks.Task, whole: np.ndarray) -> Iterable[tuple[str, int, list[np.ndarray]]]:
    """Yield what is spared, how much is left of it, and values of several draws."""
    rng, draws, steps = np.random.default_rng(unit.random_seed), int(unit.settings["draws"]), len(whole)
    for size in map(int, str(unit.settings["validation"]).split()):
        if size < len(task.validation):
            chosen = [torch.from_numpy(rng.permutation(len(task.validation))[:size]) for _ in range(draws)]
            yield VALIDATION, size, [by_step(unit, task, judges).sum(axis=0) for judges in chosen]
    yield VALIDATION, len(task.validation), [whole.sum(axis=0)]
    yield EVERY, 1, [whole.sum(axis=0)]
    for every in map(int, str(unit.settings["every"]).split()):
        if every < steps:
            yield EVERY, every, [whole[start::every].sum(axis=0) for start in range(min(every, draws))]


def _agreements(found: list[np.ndarray], whole: np.ndarray, reference: np.ndarray | None) -> dict[str, list[float]]:
    judges = {"spearman_whole": whole} if reference is None else {"spearman_whole": whole, "spearman": reference}
    return {name: [metrics.agreement(values, judge)["spearman"] for values in found] for name, judge in judges.items()}


BY = ("task", "spared", "amount", "method", "metric")


def draw(rows: pd.DataFrame) -> Figure:
    """Draw Spearman correlations over what is left, a column a task; solid: with retraining, dashed: with the whole.

    Means with 95 % intervals over seeds.
    """
    if rows.empty:
        return Figure()
    means, methods = over_seeds(rows, BY), in_order(rows["method"])
    figure, names, axes = panels(rows, 2, height=2.5, sharey=True)
    for axes_row, what in zip(axes, (VALIDATION, EVERY), strict=True):
        for ax, task in zip(axes_row, names, strict=True):
            amounts = sorted(rows[(rows["task"] == task) & (rows["spared"] == what)]["amount"].unique())
            for method in methods:
                for metric, line in (("spearman", "-"), ("spearman_whole", "--")):
                    keys = [(task, what, amount, method, metric) for amount in amounts]
                    there = [key for key in keys if key in means.index]
                    band(ax, [key[2] for key in there], means.loc[there], look(method), line)
            ax.set_xscale("log")
            ax.set_xticks(amounts, [f"{amount:g}" for amount in amounts])
            ax.minorticks_off()
            ax.set_xlabel("validation samples" if what == VALIDATION else "k: every k-th step")
        axes_row[0].set_ylabel("Spearman correlation")
    extra: list[Artist] = [
        Line2D([], [], color="0.3", linestyle="-", label=AGREEMENTS["spearman"]),
        Line2D([], [], color="0.3", linestyle="--", label=AGREEMENTS["spearman_whole"]),
        shaded(),
    ]
    legend(figure, methods, extra)
    return figure


def table(rows: pd.DataFrame) -> str:
    """Return one table a task: agreement by what is left, a column a method and judge."""
    if rows.empty:
        return ""
    means, methods, parts = over_seeds(rows, BY), in_order(rows["method"]), []
    columns = [(method, metric) for method in methods for metric in AGREEMENTS]
    for task, own in rows.groupby("task", sort=False):
        seeds = own["seed"].nunique()
        cells = [
            [
                f"{amount:g} {VALIDATION}"
                if what == VALIDATION
                else f"every {amount:g}. step"
                if amount > 1
                else "every step",
                *(interval_cell(means, (task, what, amount, *column), seeds) for column in columns),
            ]
            for what, amount in dict.fromkeys(zip(own["spared"], own["amount"], strict=True))
        ]
        heads = [f"{look(method).markdown}, {AGREEMENTS[metric]}" for method, metric in columns]
        parts.append(f"{task}, {count(seeds, 'seed')}\n\n{markdown(cells, ['left', *heads])}")
    return (
        "**Budget**: Spearman correlation of in-run values from fewer validation samples and fewer recorded steps "
        "[95 % confidence interval over seeds].\n\n" + "\n\n".join(parts)
    )
