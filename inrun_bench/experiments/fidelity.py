"""Fidelity: how close each order of In-Run Data Shapley comes to the Shapley values of single steps, as a map.

For each task (a model), optimiser, learning rate and batch size, a run is stopped at several of its steps, and the
Shapley values of the step game (:mod:`tasks.step_game`) are computed from real optimiser steps: by enumeration where
all coalitions of the batch are few enough, by antithetic Monte Carlo with standard errors where they are not. Then the
engine scores the same step, from the same weights and the same state of the optimiser, in float64.

The relative error is ``||scores - shapley|| / ||shapley||``; its standard error is the noise of the judge,
``||stderr|| / ||shapley||``: an error below it cannot be told from none. Rows also hold the root of the mean squared
error in nats, Pearson and Spearman correlations and the share of the top tenth that is found, as the paper gives them,
and ``residual_share``, ``|residual| / |drop|`` of the same step: what the ledger says without any judge. How far that
may be relied on is what :mod:`~inrun_bench.experiments.residual` asks.

The learning rates reach beyond the edge of what can be trained, so that the judge's units also hold the loss over the
whole training set at each quarter of the run. Training *fails* at a rate if in any seed that loss ends above where it
began, or rises within a quarter by more than a twentieth of it.

Runs are as long as the knobs say in steps, in whole epochs, so that batch sizes compare; steps are judged by a part of
the validation set.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import nn

import tasks
from baselines import Valuation, exact_shapley, permutation_shapley
from inrun_bench import metrics
from inrun_bench.attribution import InRunShapley
from inrun_bench.report.looks import in_order, look
from inrun_bench.report.markdown import markdown, percent
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.unit import Row, Setting, Unit

SUMMARY = "in-run scores of single steps against the step game's Shapley values"
EXCLUSIVE = False
DEFAULT = True
TASKS = {
    "quick": ("digits-mlp",),
    "standard": ("breast-cancer-logreg", "digits-mlp", "mnist-cnn", "stdlib-gpt"),
}

OPTIMIZERS: Mapping[str, tuple[str, float]] = {
    "SGD": ("sgd", 0.0),
    "momentum": ("momentum", 0.0),
    "AdamW": ("adamw", 0.0),
    "AdamW, warm-up": ("adamw", 0.2),
}
"""By name, the recipe of the task and the share of the run in which the learning rate warms up."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """Which steps of a task's runs are looked at.

    Attributes
    ----------
    rate_factors : tuple of float
        Learning rates, in units of the recipe's own.
    batch_sizes : tuple of int
        Samples a step.
    coalitions : int
        Of which the judge computes the utility, for a step: all of them where they are no more, or as many as they are
        for permutations and their reverses.
    steps : int
        Length of a run, rounded up to whole epochs.
    validation : int
        Validation samples that judge a step, at most.
    """

    rate_factors: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    batch_sizes: tuple[int, ...] = (4, 16, 64)
    coalitions: int = 1024
    steps: int = 100
    validation: int = 32


@dataclasses.dataclass(frozen=True)
class Knobs:
    """How much is looked at.

    Attributes
    ----------
    grids : mapping of str to Grid
        By task; ``"default"`` is for tasks not named.
    stages : tuple of float
        When a run is stopped, as shares of it.
    seeds : int
        How many of the plan's, at most.
    """

    grids: Mapping[str, Grid]
    stages: tuple[float, ...] = (0.0, 0.05, 0.1, 0.25, 0.5, 1.0)
    seeds: int = 3


KNOBS = {
    "quick": Knobs(
        {"default": Grid(rate_factors=(1.0, 3.0, 10.0), batch_sizes=(4, 16), coalitions=128, steps=30)},
        stages=(0.0, 0.1, 0.5, 1.0),
        seeds=1,
    ),
    "standard": Knobs(
        {
            "default": Grid(),
            "stdlib-gpt": Grid((0.3, 1.0, 3.0), batch_sizes=(4, 8), coalitions=64, steps=60, validation=8),
        }
    ),
}

JUDGE = "step-shapley"
PREFIX = "inrun-"
RUNS_WITH = {  # each order, and the method that it is run with; cheap forms of the integral are no methods of their own
    "first": "inrun-first",
    "second": "inrun-second",
    "midpoint": "inrun-integrated",
    "trapezoid": "inrun-integrated",
    "integrated": "inrun-integrated",
}
QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)


def units(plan: Plan) -> list[Unit]:
    """One unit a method, task, optimiser, learning rate, batch size and seed; each needs the judge's of the same."""
    methods = [method for method in dict.fromkeys(RUNS_WITH.values()) if method in plan.methods]
    knobs = plan.of_profile(KNOBS)
    found = []
    for task, seed in ((task, seed) for task in plan.tasks for seed in plan.seeds[: knobs.seeds]):
        for settings, coalitions in _settings(task, knobs):
            judge = Unit("fidelity", task, JUDGE, seed, {**settings, "coalitions": coalitions})
            found += [Unit("fidelity", task, method, seed, settings, needs=(judge,)) for method in methods]
    return found


def _settings(task: str, knobs: Knobs) -> Iterator[tuple[dict[str, Setting], int]]:
    """Yield what a run of the map is defined by, and by how many coalitions its steps are judged."""
    spec, grid = tasks.CATALOG[task], knobs.grids.get(task, knobs.grids["default"])
    for name, (recipe, _) in OPTIMIZERS.items():
        for factor, size in itertools.product(grid.rate_factors, grid.batch_sizes):
            if recipe in spec.recipes and size <= spec.n_train:
                yield (
                    {
                        "optimizer": name,
                        "recipe": recipe,
                        "rate_factor": factor,
                        "batch_size": size,
                        "steps": grid.steps,
                        "stages": " ".join(f"{stage:g}" for stage in knobs.stages),
                        "validation": grid.validation,
                    },
                    grid.coalitions,
                )


def measure(unit: Unit, needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Judge the steps of a run: return Shapley values and training losses (the judge's unit), or an order's errors."""
    task = _load(unit)
    rows = _judge(unit, task) if unit.method == JUDGE else _errors(unit, task, needs[unit.needs[0]])
    return [{"learning_rate": task.recipe.learning_rate, **row} for row in rows]


def _load(unit: Unit) -> tasks.Task:
    """Return the task, in float64, with the recipe and the judges that the unit's settings say."""
    task, settings = tasks.load(unit.task, unit.seed, recipe=unit.recipe, dtype=torch.float64), unit.settings
    size, seen = int(settings["batch_size"]), int(settings["validation"])
    recipe = dataclasses.replace(
        task.recipe,
        learning_rate=task.recipe.learning_rate * float(settings["rate_factor"]),
        warmup=OPTIMIZERS[str(settings["optimizer"])][1] or task.recipe.warmup,
        batch_size=size,
        epochs=math.ceil(int(settings["steps"]) / math.ceil(task.n_train / size)),
    )
    judges = task.validation
    return dataclasses.replace(task, recipe=recipe, validation=tasks.Split(judges.x[:seen], judges.y[:seen]))


@dataclasses.dataclass(frozen=True)
class _Moment:
    """Training, stopped before the step on the samples `index`; `place` says where."""

    place: Row
    task: tasks.Task
    model: nn.Module
    optimizer: torch.optim.Optimizer
    index: torch.Tensor


def _moments(unit: Unit, task: tasks.Task) -> Iterator[_Moment]:
    """Train, and stop at the unit's stages."""
    model = task.model()
    optimizer = task.optimizer(model)
    batches = task.batches()
    stages = {round(float(s) * (len(batches) - 1)): float(s) for s in str(unit.settings["stages"]).split()}
    for step, index in enumerate(batches):
        if step in stages:
            yield _Moment({"stage": stages[step], "step": step}, task, model, optimizer, index)
        task.train_on(model, optimizer, index)


def _judge(unit: Unit, task: tasks.Task) -> Iterator[Row]:
    for moment in _moments(unit, task):
        try:
            shapley = _step_shapley(unit, moment)
        except FloatingPointError:
            continue
        stderr = np.zeros(len(moment.index)) if shapley.stderr is None else shapley.stderr
        shared = {**moment.place, "metric": "value", "evaluations": shapley.evaluations, "seconds": shapley.seconds}
        for sample, value, error in zip(moment.index, shapley.values, stderr, strict=True):
            yield {**shared, "sample": int(sample), "value": float(value), "stderr": float(error)}
    for done, loss in _training_losses(task):
        yield {"metric": "training_loss", "done": done, "value": loss}


def _errors(unit: Unit, task: tasks.Task, judged: pd.DataFrame) -> Iterator[Row]:
    orders = [order for order, method in RUNS_WITH.items() if method == unit.method]
    for moment in _moments(unit, task):
        own = judged[(judged["metric"] == "value") & (judged["step"] == moment.place["step"])]
        values, stderr = own["value"].to_numpy(), own["stderr"].to_numpy()
        size = float(np.linalg.norm(values))
        for order in orders:
            place = {"method": PREFIX + order, **moment.place}
            if own.empty:  # the step's utilities are no numbers
                yield {**place, "metric": "relative_error", "value": math.nan}
                continue
            scores, residual_share = _score(order, moment)
            error = float(np.linalg.norm(scores - values))
            noise = _share(float(np.linalg.norm(stderr)), size)
            yield {**place, "metric": "relative_error", "value": _share(error, size), "stderr": noise}
            yield {**place, "metric": "rmse", "value": error / math.sqrt(len(values))}
            if len(values) > 1:  # the last batch of an epoch may be a sample alone
                alike = metrics.agreement(scores, values)
                yield from ({**place, "metric": name, "value": alike[name]} for name in ALIKE)
            yield {**place, "metric": "residual_share", "value": residual_share}


def _share(part: float, whole: float) -> float:
    """Return a part of a whole; of nothing, no number or infinitely much."""
    return part / whole if whole else part * math.inf


ALIKE = ("spearman", "pearson", "top10_overlap")


class _FiniteStepGame(tasks.StepGame):
    """A step game that raises a FloatingPointError where training has diverged."""

    def __call__(self, coalitions: NDArray[np.bool_]) -> NDArray[np.float64]:
        utilities = super().__call__(coalitions)
        if not np.isfinite(utilities).all():
            raise FloatingPointError("a utility of the step is no number")
        return utilities


def _step_shapley(unit: Unit, moment: _Moment) -> Valuation:
    game, coalitions = _FiniteStepGame(moment.task, moment.model, moment.optimizer, moment.index), _coalitions(unit)
    if 2**game.n_players <= coalitions:
        return exact_shapley(game)
    pairs = max(1, coalitions // (2 * game.n_players))
    return permutation_shapley(game, n_permutations=2 * pairs, antithetic=True, rng=unit.random_seed)


def _coalitions(unit: Unit) -> int:
    return int(unit.settings["coalitions"])


def _score(order: str, moment: _Moment) -> tuple[np.ndarray, float]:
    """Return the engine's scores of the step, taken on a copy of model and optimiser, and |residual| / |drop|."""
    task, model = moment.task, copy.deepcopy(moment.model)
    optimizer = task.optimizer(model)
    optimizer.load_state_dict(copy.deepcopy(moment.optimizer.state_dict()))  # loading alone would share its tensors
    engine = InRunShapley(
        model,
        optimizer,
        task.n_train,
        order,
        validation=lambda: task.loss(model, task.validation),
        batch_axis=0,  # declared: it cannot be found where a rate far too large has left no unit alive
    )
    with engine.step(moment.index):
        task.train_on(model, optimizer, moment.index)
    entry = engine.ledger.steps[0]
    return entry.scores, _share(abs(entry.residual), abs(entry.drop))


@torch.no_grad()
def _training_losses(task: tasks.Task) -> Iterator[tuple[float, float]]:
    """Yield shares of the run and the loss over the training set after them."""
    model = task.model()
    optimizer, batches = task.optimizer(model), task.batches()
    ends = {round(done * len(batches)): done for done in QUARTERS}
    for step in range(len(batches) + 1):
        if step in ends:
            yield ends[step], float(task.loss(model, task.train))
        if step < len(batches):
            with torch.enable_grad():
                task.train_on(model, optimizer, batches[step])


IN_TABLES_ALONE = ("inrun-midpoint", "inrun-trapezoid")  # cheap forms of the integral
EDGES = (0.0, 0.001, 0.01, 0.05, 0.2, 1.0, math.inf)  # of the colours
CELL = ["task", "optimizer", "rate_factor", "batch_size"]
RISE = 0.05  # of the loss at the beginning, within a quarter of the run: training fails


def failing(rows: pd.DataFrame) -> set[tuple[str, str, float, int]]:
    """Return where training fails: task, optimiser, rate in units of the recipe's own, batch size.

    In any seed, the loss over the training set ends above where it began (or is no number), or rises within a quarter
    of the run by more than :data:`RISE` of it; or nobody knows it, since what would have told it failed.
    """
    losses = rows[rows["metric"] == "training_loss"]
    found = _unknown(rows)
    for place, own in losses.groupby([*CELL, "seed"]):
        by_quarter = own.sort_values("done")["value"].to_numpy()
        begun = by_quarter[0]
        if not (by_quarter[-1] < begun and (np.diff(by_quarter) <= RISE * begun).all()):
            found.add(place[:-1])
    return found


def _unknown(rows: pd.DataFrame) -> set[tuple[str, str, float, int]]:
    """Return of which places of a task's map the losses are missing, in any seed: their unit failed."""
    found = set()
    for task, own in rows.groupby("task"):
        there = own[own["metric"] == "training_loss"]
        known = set(there[[*CELL, "seed"]].itertuples(index=False, name=None))
        axes = [there[name].unique() for name in (*CELL[1:], "seed")]
        found |= {(task, *place) for *place, seed in itertools.product(*axes) if (task, *place, seed) not in known}
    return found


def draw(rows: pd.DataFrame) -> Figure:
    """Draw maps of the median relative error: a column an optimiser, two rows a task, a line an order and batch size.

    Above over the learning rate, median over steps and seeds; below over the steps done at the recipe's own rate. A
    cross: training fails at this rate.
    """
    errors = rows[(rows["metric"] == "relative_error") & ~rows["method"].isin(IN_TABLES_ALONE)]
    if errors.empty:
        return Figure()
    names, fails = list(dict.fromkeys(errors["task"])), failing(rows)
    optimizers = [name for name in OPTIMIZERS if name in set(errors["optimizer"])]
    lines = [len(errors[errors["task"] == task][["method", "batch_size"]].drop_duplicates()) for task in names]
    heights = [count for count in lines for _ in range(2)]
    figure = Figure(
        figsize=(2.2 * len(optimizers) + 1.9, sum(0.1 * count + 0.38 for count in heights) + 0.6),
        layout="constrained",
    )
    axes = figure.subplots(len(heights), len(optimizers), squeeze=False, height_ratios=heights)
    colors = mpl.colormaps["viridis_r"].resampled(len(EDGES) - 1)
    scale = BoundaryNorm(range(len(EDGES)), colors.N)
    for row, (task, x) in enumerate((task, x) for task in names for x in ("rate_factor", "stage")):
        for column, optimizer in enumerate(optimizers):
            own = errors[(errors["task"] == task) & (errors["optimizer"] == optimizer)]
            own = own if x == "rate_factor" else own[own["rate_factor"] == 1.0]
            ax = axes[row, column]
            _map(ax, own, x, fails if x == "rate_factor" else set(), (colors, scale))
            if column:
                ax.tick_params(labelleft=False)
            if row == 0:
                ax.set_title(optimizer)
        axes[row, 0].set_ylabel(task.replace("-", "-\n", 1), fontsize=8)
    steps = [f"{100 * edge:g} %" for edge in EDGES[1:-1]]
    labels = [f"median error below {steps[0]}", *(f"below {step}" for step in steps[1:]), f"{steps[-1]} or more"]
    handles: list[Artist] = [Patch(color=colors(place), label=label) for place, label in enumerate(labels)]
    cross = Line2D([], [], color="black", marker="x", markersize=4, linestyle="none", label="training fails")
    figure.legend(handles=[*handles, cross], loc="outside lower center", ncols=len(labels) + 1)
    return figure


def _map(
    ax: Axes, errors: pd.DataFrame, x: str, fails: set[tuple[str, str, float, int]], colors: tuple[Any, BoundaryNorm]
) -> None:
    ax.grid(visible=False)
    ax.tick_params(length=0, labelsize=6.5)
    ax.set_xlabel({"rate_factor": "learning rate / the recipe's own", "stage": "share of the run done"}[x], fontsize=8)
    medians = errors.groupby(["method", "batch_size", x])["value"].median().unstack(x)
    if medians.empty:
        ax.set_axis_off()
        return
    medians = medians.reindex(in_order(medians.index.get_level_values("method")), level="method")
    bins = np.digitize(medians, EDGES[1:-1]) + np.where(medians.isna(), np.nan, 0.5)
    ax.pcolormesh(bins, cmap=colors[0], norm=colors[1], edgecolor="white", linewidth=0.8)
    ax.invert_yaxis()
    ax.set_xticks(np.arange(medians.shape[1]) + 0.5, [f"{place:g}" for place in medians.columns])
    sizes, before = [], ""
    for line, (method, size) in enumerate(medians.index):
        sizes.append(f"{size}" if method == before else f"{look(method).label}, batches of {size}")
        if before and method != before:
            ax.axhline(line, color="white", linewidth=2.5)
        before = method
    ax.set_yticks(np.arange(len(medians)) + 0.5, sizes)
    task, optimizer = errors["task"].iloc[0], errors["optimizer"].iloc[0]
    for line, (_, size) in enumerate(medians.index):
        for place, rate in enumerate(medians.columns):
            if (task, optimizer, rate, size) in fails:
                ax.plot(place + 0.5, line + 0.5, marker="x", color="white", markersize=4, markeredgewidth=2.2)
                ax.plot(place + 0.5, line + 0.5, marker="x", color="black", markersize=3.5, markeredgewidth=1.0)


SAFE, ALMOST_ALL = 0.1, 0.9  # an order is safe where so many of the steps have an error of no more


def table(rows: pd.DataFrame) -> str:
    """Return errors of each order by task, optimiser and learning rate; up to which rate each is safe; agreement."""
    if rows.empty or not (rows["metric"] == "relative_error").any():
        return ""
    order = list(OPTIMIZERS)
    rows = rows.sort_values(CELL, key=lambda column: column.map(order.index) if column.name == "optimizer" else column)
    errors = rows[rows["metric"] == "relative_error"]
    return "\n\n".join(part for part in (_medians(rows, errors), _safe(rows, errors), _alike(rows)) if part)


def _medians(rows: pd.DataFrame, errors: pd.DataFrame) -> str:
    residuals = rows[(rows["metric"] == "residual_share") & (rows["method"] == "inrun-integrated")]
    methods, fails = in_order(errors["method"]), failing(rows)
    places, cells = ["task", "optimizer", "rate_factor"], []
    for place, own in errors.groupby(places, sort=False):
        task, optimizer, factor = place
        medians = own.groupby("method")["value"].median()
        of_place = residuals[(residuals[places] == list(place)).all(axis=1)]["value"]
        failed = sorted(size for *where, size in fails if tuple(where) == place)
        cells.append(
            [
                task,
                optimizer,
                f"{factor:g}",
                *(percent(medians.get(method)) for method in methods),
                percent(own["stderr"].median()),
                percent(of_place.median()),
                f"size {', '.join(map(str, failed))}" if failed else "",
            ]
        )
    heads = ["task", "optimizer", "rate / own", *(look(m).markdown for m in methods)]
    heads += ["noise of the judge", "residual of integrated", "training fails at batches of"]
    return (
        "**Fidelity**: relative error of the scores of single steps against the step game's Shapley values, median "
        "over seeds, steps and batch sizes; and the residual of the integrated order as a share of the drop of the "
        f"validation loss.\n\n{markdown(cells, heads)}"
    )


def _safe(rows: pd.DataFrame, errors: pd.DataFrame) -> str:
    methods, fails, cells = in_order(errors["method"]), failing(rows), []
    later, unknown = errors[errors["step"] > 0], _unknown(rows)
    for (task, optimizer), own in later.groupby(["task", "optimizer"], sort=False):
        failed, lost = (
            min((rate for *where, rate, _ in places if where == [task, optimizer]), default=math.inf)
            for places in (fails, unknown)
        )
        largest = []
        for method in methods:
            of_method = own[own["method"] == method].fillna({"value": math.inf})  # a step that diverged
            quantiles = of_method.groupby("rate_factor")["value"].quantile(ALMOST_ALL)
            up_to = quantiles[((quantiles <= SAFE) & (quantiles.index < lost)).cummin()]
            largest.append(f"{up_to.index[-1]:g}" if len(up_to) else "")
        trains = [rate for rate in sorted(own["rate_factor"].unique()) if rate < failed]
        cells.append([task, optimizer, *largest, f"{trains[-1]:g}" if trains else ""])
    heads = ["task", "optimizer", *(look(m).markdown for m in methods), "training"]
    return (
        f"**Safe learning rates**: the largest of the map, in units of the recipe's own, up to which {ALMOST_ALL:.0%} "
        f"of the steps have a relative error of at most {SAFE:.0%}, the first step of a run apart, in which AdamW is "
        f"off at any rate; and the largest up to which training does not fail at any batch size.\n\n"
        f"{markdown(cells, heads)}"
    )


def _alike(rows: pd.DataFrame) -> str:
    shown = rows[rows["metric"].isin(["rmse", *ALIKE]) & (rows["optimizer"] == "SGD")]
    shown = shown[~shown["method"].isin(IN_TABLES_ALONE)]
    if shown.empty:
        return ""
    methods, measures = in_order(shown["method"]), {"rmse": "RMSE (nats)", "pearson": "Pearson", "spearman": "Spearman"}
    cells = []
    for (task, size, factor), own in shown.groupby(["task", "batch_size", "rate_factor"], sort=False):
        medians = own.groupby(["metric", "method"])["value"].median()
        measured = (medians.get((metric, method)) for metric in measures for method in methods)
        cells.append([task, str(size), f"{factor:g}", *("" if found is None else f"{found:.2g}" for found in measured)])
    heads = [f"{label}, {method.removeprefix(PREFIX)}" for label in measures.values() for method in methods]
    return (
        "**Fidelity as the paper measures it**, steps of SGD: root mean squared error, Pearson and Spearman "
        "correlation of scores with the step game's Shapley values, medians over seeds and steps.\n\n"
        f"{markdown(cells, ['task', 'batch size', 'rate / own', *heads])}"
    )
