"""Selection: train on the samples that a method values most, and on nothing else, and look at the test set.

For each method, the top 20, 40, 60 and 80 % of the training samples by value are kept, and models are trained on them
alone, by runs of other seeds: conventional retraining, as whoever selects data does it. Beside them stand random
subsets of the same sizes, the mean of several draws, and all samples. Higher accuracy, and lower loss, is better; the
values were made with the validation set, and the models are judged by the test set.

The paper's Table 5 asks this of language models (arXiv 2406.11011); simple rankings, by loss and by gradient norm, are
methods here like any other (:mod:`inrun_bench.methods.rankings`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import tasks
from inrun_bench import metrics
from inrun_bench.report.intervals import over_seeds
from inrun_bench.report.looks import band, foremost, in_order, in_table_alone, legend, look, panels, shaded
from inrun_bench.report.markdown import count, interval_cell, markdown
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.stored_values import read_values, values_unit
from inrun_bench.runs.unit import Row, Unit

SUMMARY = "test loss and accuracy of training on the top 20, 40, 60, 80 % alone"
NEEDS = "tasks that are not large"
EXCLUSIVE = False
DEFAULT = False

SHARES = (0.2, 0.4, 0.6, 0.8)
RANDOM, ALL = "random", "all samples"


@dataclass(frozen=True)
class Knobs:
    """How often models are trained.

    Attributes
    ----------
    runs : int
        Of other seeds, over which each model's utilities are averaged.
    draws : int
        Random subsets of each size.
    """

    runs: int
    draws: int


KNOBS = {"quick": Knobs(runs=4, draws=10), "standard": Knobs(runs=10, draws=50)}


def units(plan: Plan) -> list[Unit]:
    """One unit a method, and one of random subsets and of all samples."""
    knobs, found = plan.of_profile(KNOBS), []
    for task in plan.tasks_with_reference:
        for seed in plan.seeds:
            found.append(Unit("selection", task, RANDOM, seed, {"runs": knobs.runs, "draws": knobs.draws}))
            found += [
                Unit("selection", task, method, seed, {"runs": knobs.runs}, needs=(values_unit(task, method, seed),))
                for method in plan.methods
                if method != RANDOM
            ]
    return found


def measure(unit: Unit, needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Train on what one method selects, or on random subsets and on all."""
    task = tasks.load(unit.task, unit.seed)
    game = task.conventional_game(split="test", seeds=int(unit.settings["runs"]))
    if unit.method == RANDOM:
        rng, draws = np.random.default_rng(unit.random_seed), int(unit.settings["draws"])
        orders = [rng.permutation(task.n_train) for _ in range(draws)]
    else:
        orders = [np.argsort(-read_values(needs[unit.needs[0]]), kind="stable")]
    shares = SHARES if unit.method != RANDOM else (*SHARES, 1.0)
    kept = np.concatenate([selected(order, shares) for order in orders])
    utilities = game.measure(kept).reshape(len(orders), len(shares), -1).mean(axis=0)
    return [
        {"metric": f"test_{name}", "share": share, "value": float(-utility if name == "loss" else utility)}
        for share, judged in zip(shares, utilities, strict=True)
        for name, utility in zip(game.measures, judged, strict=True)
    ]


def selected(order: np.ndarray, shares: tuple[float, ...]) -> np.ndarray:
    """Return which samples are kept, bool [shares, n], where the first ones of an order, int [n], are."""
    return ~metrics.kept_along(order, np.array(shares))


METRICS = {"test_accuracy": "test accuracy", "test_loss": "test loss"}
BY = ("task", "method", "metric", "share")


def draw(rows: pd.DataFrame) -> Figure:
    """Draw the utility of training on the top samples over their share; a row a metric, a column a task.

    Means with 95 % intervals over seeds; the dashed line is training on all samples.
    """
    rows = rows[rows["metric"].isin(METRICS)] if len(rows) else rows
    if rows.empty:
        return Figure()
    means, shown = over_seeds(rows, BY), [metric for metric in METRICS if metric in set(rows["metric"])]
    methods = foremost(rows["method"])
    figure, names, axes = panels(rows, len(shown), height=2.5, sharex=True)
    for axes_row, metric in zip(axes, shown, strict=True):
        for ax, task in zip(axes_row, names, strict=True):
            _curves(ax, means, task, metric, methods)
        axes_row[0].set_ylabel(METRICS[metric])
    for ax in axes[-1]:
        ax.set_xlabel("samples kept (%)")
    legend(figure, methods, [Line2D([], [], color="black", linestyle="--", linewidth=1, label=ALL), shaded()])
    figure.suptitle(in_table_alone(rows["method"]), fontsize=8)
    return figure


def _curves(ax: Axes, means: pd.DataFrame, task: str, metric: str, methods: list[str]) -> None:
    if (task, RANDOM, metric, 1.0) in means.index:
        ax.axhline(means.loc[(task, RANDOM, metric, 1.0), "mean"], color="black", linestyle="--", linewidth=1)
    elif not any(key[0] == task and key[2] == metric for key in means.index):
        ax.set_yticks([])
        ax.text(0.5, 0.5, "none: no classes", transform=ax.transAxes, ha="center", va="center", color="0.4")
    for method in methods:
        keys = [key for share in SHARES if (key := (task, method, metric, share)) in means.index]
        if keys:
            band(ax, [100 * share for *_, share in keys], means.loc[keys], look(method))
    ax.set_xticks([100 * share for share in SHARES])


def table(rows: pd.DataFrame) -> str:
    """Return one table a task: the utility by method and share kept."""
    rows = rows[rows["metric"].isin(METRICS)] if len(rows) else rows
    if rows.empty:
        return ""
    means, parts = over_seeds(rows, BY), []
    for task, own in rows.groupby("task", sort=False):
        metric = next(metric for metric in METRICS if metric in set(own["metric"]))
        seeds = own["seed"].nunique()
        cells = [
            [look(m).markdown, *(interval_cell(means, (task, m, metric, share), seeds) for share in SHARES)]
            for m in in_order(own["method"])
        ]
        cells.append([f"*{ALL}*", *[""] * (len(SHARES) - 1), interval_cell(means, (task, RANDOM, metric, 1.0), seeds)])
        heads = [f"top {100 * share:.0f} %" for share in SHARES]
        title = f"{task}, {count(seeds, 'seed')}: {METRICS[metric]}"
        parts.append(f"{title}\n\n{markdown(cells, ['method', *heads])}")
    return (
        "**Selection**: training on the top samples alone, by runs of other seeds, judged by the test set "
        "[95 % confidence interval over seeds]; random: the mean of random subsets of that size.\n\n"
        + "\n\n".join(parts)
    )
