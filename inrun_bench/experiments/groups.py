"""Groups: values of classes, domains and random groups, against exact ones from every coalition of groups.

Players are groups of samples, so few that the retraining game can be enumerated: the judge has neither noise nor bias,
even where training a model takes seconds.

==========  ==========================================================================================
groups      players
==========  ==========================================================================================
classes     the labels that samples carry, wrong ones included
domains     where samples come from
random      groups of equal size, drawn at random: players that are alike, whose values hardly differ
==========  ==========================================================================================

In-run values of a group are sums of those of its samples: exact for the sum of the step games, each of which is close
to additive, but a sum of samples' Shapley values is in general not the Shapley value of the grouped game. Along the
diagonal, too, a group's value is the sum of its samples', so that few-run values make no such difference: derivatives
see groups as sums of parts. Only derivatives at coalitions of groups, and retraining on these, do; see
:mod:`baselines.grouped`.

The error of a method is the root mean square difference from the exact values, in units of their spread over the
groups; correlations ask for ranks and proportions alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

import tasks
from baselines import GroupedGame, Valuation, exact_shapley
from inrun_bench import metrics
from inrun_bench.adjoint.sweep import TRAININGS_A_RUN
from inrun_bench.methods import method_of, valued
from inrun_bench.report.intervals import over_seeds
from inrun_bench.report.leaderboard import Question
from inrun_bench.report.looks import in_order, legend, look, panels, points
from inrun_bench.report.markdown import cell, count, markdown, seconds_cell
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.stored_values import parameter_rows, warm_up
from inrun_bench.runs.unit import REFERENCE, Row, Unit
from tasks import Task

SUMMARY = "values of groups of samples (classes, domains, random ones) against exact values by enumeration"
EXCLUSIVE = False
DEFAULT = False
QUESTIONS = (
    Question("values of groups of samples", "spearman", "Spearman correlation with exact values", by={"groups": "{}"}),
)

GROUPINGS = {
    "digits-mlp": ("classes", "random"),
    "mnist-mlp": ("classes", "random"),
    "stdlib-gpt": ("domains",),
}
TASKS = tuple(GROUPINGS)

METHODS = (
    "inrun-first",
    "inrun-integrated",
    "few-run-4",
    "few-run-8",
    "coalition-gradients-128",
    "permutation-antithetic",
)
NEEDS = "methods that value groups, and tasks whose groups are named here"

RANDOM_GROUPS = 10
TRAININGS_A_GROUP = 20  # of methods that take a budget
LONG = {"coalition-gradients-128": 128 * TRAININGS_A_RUN}  # trainings: more than some enumerations take


def units(plan: Plan) -> list[Unit]:
    """One unit a method and grouping, and one for the exact values; of a large task for the first seed alone.

    Differentiated coalitions are left out where they would take longer than the enumeration.
    """
    found: list[Unit] = []
    methods = [name for name in plan.methods if "groups" in method_of(name).options]
    for task in (name for name in plan.tasks if name in GROUPINGS and methods):
        for seed in plan.seeds[:1] if tasks.CATALOG[task].large else plan.seeds:
            for kind in GROUPINGS[task]:
                truth = Unit("groups", task, REFERENCE, seed, {"groups": kind})
                trainings = 2 ** len(group_names(task, kind))
                found.append(truth)
                found += [
                    Unit("groups", task, name, seed, truth.settings, needs=(truth,))
                    for name in methods
                    if LONG.get(name, 0) < trainings
                ]
    return found


def group_names(task: str, kind: str) -> tuple[str, ...]:
    """Return what the groups of a task are called, by their numbers."""
    spec = tasks.CATALOG[task]
    if kind == "domains":
        return spec.domains
    return tuple(map(str, range(RANDOM_GROUPS if kind == "random" else spec.n_classes or 0)))


def measure(unit: Unit, needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Value the groups by one method, or by enumeration, and compare."""
    task = tasks.load(unit.task, unit.seed)
    warm_up(unit.task)
    kind = str(unit.settings["groups"])
    groups = groups_of(task, kind)
    valuation = _exact(task, groups) if unit.method == REFERENCE else _valued(unit, task, groups)
    spent = {"evaluations": valuation.evaluations, "seconds": valuation.seconds}
    stderr = np.full_like(valuation.values, np.nan) if valuation.stderr is None else valuation.stderr
    named = zip(group_names(unit.task, kind), valuation.values, stderr, np.bincount(groups), strict=True)
    rows: list[Row] = [
        {"metric": "value", "player": i, "name": name, "value": float(v), "stderr": float(e), "samples": int(size)}
        for i, (name, v, e, size) in enumerate(named)
    ]
    seen = {"cost": float(valuation.evaluations)}
    if unit.method != REFERENCE:
        seen |= compared(valuation.values, read_groups(needs[unit.needs[0]]))
    rows += [{"metric": name, "value": value, **spent} for name, value in seen.items()]
    return [*rows, *parameter_rows(valuation)]


def _exact(task: Task, groups: NDArray[np.int64]) -> Valuation:
    return exact_shapley(GroupedGame(task.trajectory_game(), groups))


def _valued(unit: Unit, task: Task, groups: NDArray[np.int64]) -> Valuation:
    spends = "budget" in method_of(unit.method).options
    budget = 2 + TRAININGS_A_GROUP * (int(groups.max()) + 1) if spends else None
    return valued(unit.method, task, unit.random_seed, groups=groups, budget=budget)


def read_groups(rows: pd.DataFrame) -> NDArray[np.float64]:
    """Return the values in a unit's rows, float64 [groups]."""
    values = rows[rows["metric"] == "value"].sort_values("player")["value"]
    return np.asarray(values, dtype=np.float64)


def groups_of(task: Task, kind: str) -> NDArray[np.int64]:
    """Return the group of each training sample, int64 [n_train]."""
    if kind == "random":
        rng = np.random.default_rng([task.seed, RANDOM_GROUPS])
        return rng.permutation(np.arange(task.n_train) % RANDOM_GROUPS)
    groups = task.domains if kind == "domains" else task.train.y.numpy()
    assert groups is not None
    return groups


def compared(values: NDArray[np.float64], exact: NDArray[np.float64]) -> dict[str, float]:
    """Return correlations with the exact values, and the error in units of their spread."""
    correlations = metrics.agreement(values, exact)
    error = float(np.sqrt(np.square(values - exact).mean()) / exact.std())
    return {"spearman": correlations["spearman"], "pearson": correlations["pearson"], "error": error}


MARGIN = 1.5  # of a panel above and below the exact values, in units of their range
A_ROW = 3  # panels
SPREAD = 0.6  # between the first method's place and the last one's; groups are 1 apart
PLAYERS = {"classes": "class", "random": "random group", "domains": "domain"}


def draw(rows: pd.DataFrame) -> Figure:
    """Draw one panel a task and grouping, of its first seed, with the groups in the order of their exact values.

    A method ranks the groups as the exact values do where its own points rise from left to right, and errs where they
    lie off the line; those too far off are drawn hollow, at the edge.
    """
    values = rows[(rows["metric"] == "value") & (rows["seed"] == rows.groupby("task")["seed"].transform("min"))]
    values = values.assign(task=values["task"] + ", " + values["groups"]).sort_values("task", kind="stable")
    exact = values[values["method"] == REFERENCE].sort_values("value", kind="stable")
    if exact.empty:
        return Figure()
    figure, names, axes = panels(values, 1, height=3.0, most_columns=A_ROW)
    methods = in_order(m for m in values["method"] if m != REFERENCE)
    apart = SPREAD * (np.arange(len(methods)) / max(len(methods) - 1, 1) - 0.5)
    for number, (ax, title) in enumerate(zip(axes[0], names, strict=True)):
        truth = exact[exact["task"] == title].set_index("player")
        x = np.arange(len(truth))
        ax.plot(x, truth["value"], color="black", linewidth=1)
        margin = MARGIN * np.ptp(truth["value"])
        low, high = truth["value"].min() - margin, truth["value"].max() + margin
        for method, shift in zip(methods, apart, strict=True):
            own = values[(values["task"] == title) & (values["method"] == method)].set_index("player")["value"]
            style, own = look(method), own.reindex(truth.index)
            near = own.between(low, high)
            for own_points, fill in ((own.where(near), "full"), (own.mask(near).clip(low, high), "none")):
                ax.plot(x + shift, own_points.to_numpy(), **points(style), fillstyle=fill, markersize=4.5)
        long = truth["name"].str.len().max() > 3
        ax.set_xticks(x, truth["name"], rotation=35 if long else 0, ha="right" if long else "center")
        ax.grid(visible=False, axis="x")
        ax.set_xlabel(f"{PLAYERS[str(truth['groups'].iloc[0])]}, by exact value")
        if number % A_ROW == 0:
            ax.set_ylabel("value of a group (nats)")
    extra = [Line2D([], [], color="black", linewidth=1, label="exact, all coalitions")]
    if any(
        line.get_fillstyle() == "none" and np.isfinite(line.get_ydata()).any() for ax in axes[0] for line in ax.lines
    ):
        far = Line2D([], [], marker="o", fillstyle="none", linestyle="none", color="0.4")
        far.set_label("hollow, at the edge: beyond the axis")
        extra.append(far)
    legend(figure, methods, extra)
    return figure


def table(rows: pd.DataFrame) -> str:
    """Return one table a task and grouping."""
    errors = rows[rows["metric"] == "error"] if len(rows) else rows
    if errors.empty:
        return ""
    shown = ["spearman", "pearson", "error"]
    means = over_seeds(rows[rows["metric"].isin(shown)], ("task", "groups", "method", "metric"))["mean"]
    cost = rows[rows["metric"] == "cost"].groupby(["task", "groups", "method"])[["evaluations", "seconds"]].median()
    parts = []
    for (task, kind), own in rows.groupby(["task", "groups"]):
        cells = [
            [
                "exact, all coalitions" if method == REFERENCE else look(method).markdown,
                cell(cost["evaluations"], (task, kind, method), ",.0f"),
                seconds_cell(cost["seconds"], (task, kind, method)),
                *(cell(means, (task, kind, method, metric), ".3f") for metric in shown),
            ]
            for method in in_order(own["method"])
        ]
        values = own[own["metric"] == "value"]
        title = f"{task}, {kind}: {values['player'].nunique()} players, {count(own['seed'].nunique(), 'seed')}"
        parts.append(f"{title}\n\n{markdown(cells, ['method', 'runs', 'time (s)', 'Spearman', 'Pearson', 'error'])}")
    return (
        "**Groups**: players are groups of samples, judged by their exact Shapley values in the game of retraining. "
        "Error: root mean square, in units of the spread of the exact values; means over seeds, medians of time.\n\n"
        + "\n\n".join(parts)
    )
