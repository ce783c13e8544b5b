"""Detection: how well low values point at the training samples whose target was made wrong.

These are flipped labels or, in regression, the targets of other samples (:mod:`tasks.data`). AUROC is the chance that
such a sample has a lower value than a clean one (0.5 for random values); average precision is that of a search from the
lowest value upwards (the share of flipped samples for random values).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import tasks
from inrun_bench import metrics
from inrun_bench.report.intervals import left_out, over_seeds
from inrun_bench.report.leaderboard import Question
from inrun_bench.report.looks import break_labels, dot, in_order, look, panels
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.stored_values import read_reference, read_values, reference_blocks, values_unit
from inrun_bench.runs.unit import REFERENCE, Row, Unit

SUMMARY = "AUROC and average precision of low values for wrong labels and targets"
NEEDS = "tasks some of whose targets were made wrong (flipped= of tasks.from_arrays and tasks.load)"
EXCLUSIVE = False
DEFAULT = True
QUESTIONS = (Question("wrong labels found", "auroc", "AUROC of low values"),)


def units(plan: Plan) -> list[Unit]:
    """One unit a method, the reference among them where there is one; none of tasks without wrong targets."""
    found = []
    for task in (name for name in plan.tasks if tasks.CATALOG[name].defaults.get("flipped") != 0):
        for seed in plan.seeds:
            blocks = reference_blocks(plan, task, seed)
            if blocks:
                found.append(Unit("detection", task, REFERENCE, seed, needs=blocks))
            found += [
                Unit("detection", task, method, seed, needs=(values_unit(task, method, seed),))
                for method in plan.methods
            ]
    return found


def measure(unit: Unit, needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Score one method's values as detectors of the task's wrong targets."""
    task = tasks.load(unit.task, unit.seed)
    if not len(task.flipped):
        raise ValueError(
            f"task {task.name!r} has no sample whose target was made wrong, which detection looks for: make it with "
            "flipped= (tasks.from_arrays, tasks.load)"
        )
    flipped = np.zeros(task.n_train, dtype=bool)
    flipped[task.flipped] = True
    if unit.method == REFERENCE:
        values = read_reference(needs.values()).mean(axis=0)
    else:
        values = read_values(needs[unit.needs[0]])
    found = metrics.detection(values, flipped)
    found["share_flipped"] = found.pop("share_wrong")
    return [{"metric": name, "value": value} for name, value in found.items()]


METRICS = {"auroc": "AUROC", "average_precision": "average precision"}
BESIDE = 2.5  # inches that names of methods take


def draw(rows: pd.DataFrame) -> Figure:
    """Draw means with 95 % intervals over seeds; one row of panels a metric, chance as a line."""
    table = over_seeds(rows[rows["metric"].isin(METRICS)])
    methods = in_order(rows["method"])[::-1]
    figure, names, axes = panels(rows, len(METRICS), height=0.27 * len(methods) + 0.8, sharey=True)
    for axes_row, (metric, label) in zip(axes, METRICS.items(), strict=True):
        for ax, task in zip(axes_row, names, strict=True):
            shares = rows.query("task == @task and metric == 'share_flipped'")["value"]
            ax.axvline(0.5 if metric == "auroc" else shares.mean(), color="0.4", linestyle=":", linewidth=1)
            for position, method in enumerate(methods):
                if (task, method, metric) in table.index:
                    dot(ax, table.loc[(task, method, metric)], position, look(method), size=7)
            ax.set_xlim(0, 1.02)
            ax.set_xlabel(label)
        axes_row[0].set_yticks(range(len(methods)), [look(m).label for m in methods])
    break_labels(figure, len(names), BESIDE)
    note = left_out(table)
    told = "wrong labels found by their low values", "(mean, 95 % CI over seeds; dotted: chance)"
    title = ("\n" if len(names) == 1 else " ").join(told)
    figure.suptitle(f"{title}\n{note}" if note else title, fontsize=10)
    return figure
