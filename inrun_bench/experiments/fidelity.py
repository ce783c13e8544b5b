"""Fidelity: how close each order of In-Run Data Shapley comes to the Shapley values of single steps.

At several moments of training, for each recipe of a task and several learning rates, the Shapley values of the step
game (:mod:`tasks.step_game`) are computed from real optimiser steps: by enumeration for batches of at most 12 samples,
by antithetic Monte Carlo with standard errors above. Then the engine scores the same step, from the same weights and
the same state of the optimiser, in float64.

The relative error is ``||scores - shapley|| / ||shapley||``; its standard error is the noise of the judge,
``||stderr|| / ||shapley||``: an error below it cannot be told from none. ``residual_share`` is ``|residual| / |drop|``
of the same step, what the ledger says without any judge.

The learning rates reach beyond the edge of what can be trained. The judge's units also hold the loss over the whole
training set, before training and after every epoch: a learning rate *converges* if, in every seed, that loss falls from
epoch to epoch.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from torch import nn

import tasks
from baselines import Valuation, exact_shapley, permutation_shapley
from inrun_bench import metrics
from inrun_bench.attribution import InRunShapley
from inrun_bench.report.looks import in_order, legend, look, panels, shaded
from inrun_bench.report.markdown import markdown, percent
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.unit import Row, Setting, Unit

SUMMARY = "in-run scores of single steps against the step game's Shapley values"
EXCLUSIVE = False
DEFAULT = True


@dataclasses.dataclass(frozen=True)
class Knobs:
    """Which step games are looked at.

    Attributes
    ----------
    permutations : int
        For the Shapley values of a step game of more than 12 players; even.
    moments : mapping of str to tuple of float
        When, as shares of the training run, by recipe.
    rate_factors : mapping of str to tuple of float
        At which learning rates, in units of the recipe's own, by recipe.
    """

    permutations: int
    moments: Mapping[str, tuple[float, ...]]
    rate_factors: Mapping[str, tuple[float, ...]]


ADAMW_MOMENTS = (0.0, 0.02, 0.04, 0.06, 0.1, 0.2, 0.4, 0.7, 1.0)  # of 50 steps: 0, 1, 2, 3, 5, 10, 20, 34, 49

KNOBS = {
    "quick": Knobs(
        permutations=40,
        moments={"sgd": (0.0, 0.25, 0.5, 0.75, 1.0), "adamw": ADAMW_MOMENTS},
        rate_factors={"sgd": (0.2, 1.0, 5.0, 10.0), "adamw": (1.0,)},
    ),
    "standard": Knobs(
        permutations=400,
        moments={"sgd": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0), "adamw": ADAMW_MOMENTS},
        rate_factors={"sgd": (0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0), "adamw": (0.2, 0.5, 1.0, 2.0, 5.0)},
    ),
}

ENUMERATED = 12  # players up to which the judge enumerates
JUDGE = "step-shapley"
PREFIX = "inrun-"
RUNS_WITH = {  # each order, and the method that it is run with; cheap forms of the integral are no methods of their own
    "first": "inrun-first",
    "second": "inrun-second",
    "midpoint": "inrun-integrated",
    "trapezoid": "inrun-integrated",
    "integrated": "inrun-integrated",
}


def units(plan: Plan) -> list[Unit]:
    """One unit an order, task, recipe, seed and learning rate; each needs the judge's unit of the same."""
    orders = [order for order, method in RUNS_WITH.items() if method in plan.methods]
    knobs = plan.of_profile(KNOBS)
    found = []
    for task in plan.tasks:
        for recipe in (name for name in knobs.rate_factors if name in tasks.CATALOG[task].recipes):
            for seed in plan.seeds:
                for factor in knobs.rate_factors[recipe]:
                    settings: dict[str, Setting] = {
                        "recipe": recipe,
                        "rate_factor": factor,
                        "moments": " ".join(f"{moment:g}" for moment in knobs.moments[recipe]),
                    }
                    judge = Unit("fidelity", task, JUDGE, seed, {**settings, "permutations": knobs.permutations})
                    found += [Unit("fidelity", task, PREFIX + o, seed, settings, needs=(judge,)) for o in orders]
    return found


def measure(unit: Unit, needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Judge the steps of a run: return Shapley values and training losses (the judge's unit), or an order's errors."""
    task = _load(unit)
    rows = _judge(unit, task) if unit.method == JUDGE else _errors(unit, task, needs[unit.needs[0]])
    return [{"learning_rate": task.recipe.learning_rate, **row} for row in rows]


def _load(unit: Unit) -> tasks.Task:
    """Return the task, in float64, with the unit's recipe and learning rate."""
    task = tasks.load(unit.task, unit.seed, recipe=str(unit.settings["recipe"]), dtype=torch.float64)
    learning_rate = task.recipe.learning_rate * float(unit.settings["rate_factor"])
    return dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, learning_rate=learning_rate))


@dataclasses.dataclass(frozen=True)
class _Moment:
    """Training, stopped before the step on the samples `index`; `place` says where."""

    place: Row
    task: tasks.Task
    model: nn.Module
    optimizer: torch.optim.Optimizer
    index: torch.Tensor


def _moments(unit: Unit, task: tasks.Task) -> Iterator[_Moment]:
    """Train, and stop at the unit's moments."""
    model = task.model()
    optimizer = task.optimizer(model)
    batches = task.batches()
    moments = {round(float(m) * (len(batches) - 1)): float(m) for m in str(unit.settings["moments"]).split()}
    for step, index in enumerate(batches):
        if step in moments:
            yield _Moment({"moment": moments[step], "step": step}, task, model, optimizer, index)
        task.train_on(model, optimizer, index)


def _judge(unit: Unit, task: tasks.Task) -> Iterator[Row]:
    for moment in _moments(unit, task):
        shapley = _step_shapley(unit, moment)
        stderr = np.zeros(len(moment.index)) if shapley.stderr is None else shapley.stderr
        shared = {**moment.place, "metric": "value", "evaluations": shapley.evaluations, "seconds": shapley.seconds}
        for sample, value, error in zip(moment.index, shapley.values, stderr, strict=True):
            yield {**shared, "sample": int(sample), "value": float(value), "stderr": float(error)}
    for epoch, loss in enumerate(_training_losses(task)):
        yield {"metric": "training_loss", "epoch": epoch, "value": loss}


def _errors(unit: Unit, task: tasks.Task, judged: pd.DataFrame) -> Iterator[Row]:
    for moment in _moments(unit, task):
        own = judged[(judged["metric"] == "value") & (judged["step"] == moment.place["step"])]
        values, stderr = own["value"].to_numpy(), own["stderr"].to_numpy()
        scores, residual_share = _score(unit.method.removeprefix(PREFIX), moment)
        error = float(np.linalg.norm(scores - values) / np.linalg.norm(values))
        noise = float(np.linalg.norm(stderr) / np.linalg.norm(values))
        correlations = metrics.agreement(scores, values)
        yield {**moment.place, "metric": "relative_error", "value": error, "stderr": noise}
        yield {**moment.place, "metric": "spearman", "value": correlations["spearman"]}
        yield {**moment.place, "metric": "pearson", "value": correlations["pearson"]}
        yield {**moment.place, "metric": "residual_share", "value": residual_share}


def _step_shapley(unit: Unit, moment: _Moment) -> Valuation:
    game = tasks.StepGame(moment.task, moment.model, moment.optimizer, moment.index)
    if game.n_players <= ENUMERATED:
        return exact_shapley(game)
    permutations = int(unit.settings["permutations"])
    return permutation_shapley(game, n_permutations=permutations, antithetic=True, rng=unit.random_seed)


def _score(order: str, moment: _Moment) -> tuple[np.ndarray, float]:
    """Return the engine's scores of the step, taken on a copy of model and optimiser, and |residual| / |drop|."""
    task, model = moment.task, copy.deepcopy(moment.model)
    optimizer = task.optimizer(model)
    optimizer.load_state_dict(copy.deepcopy(moment.optimizer.state_dict()))  # loading alone would share its tensors
    engine = InRunShapley(model, optimizer, task.n_train, order, validation=lambda: task.loss(model, task.validation))
    with engine.step(moment.index):
        task.train_on(model, optimizer, moment.index)
    entry = engine.ledger.steps[0]
    return entry.scores, abs(entry.residual / entry.drop)


@torch.no_grad()
def _training_losses(task: tasks.Task) -> list[float]:
    """Return the loss over the training set before training and after every epoch."""
    model = task.model()
    optimizer = task.optimizer(model)
    losses = [float(task.loss(model, task.train))]
    batches = task.batches()
    for step, index in enumerate(batches, 1):
        with torch.enable_grad():
            task.train_on(model, optimizer, index)
        if step % (len(batches) // task.recipe.epochs) == 0:
            losses.append(float(task.loss(model, task.train)))
    return losses


BEYOND = "0.93"  # shade of the learning rates at which training does not converge


def draw(rows: pd.DataFrame) -> Figure:
    """Draw medians with quartile bands, one row of panels each, of those that have rows.

    Over the learning rate of SGD; over the steps of SGD at the recipe's own rate; over the steps of AdamW at its own.
    """
    errors = rows[rows["metric"] == "relative_error"]
    if errors.empty:
        return Figure()
    own = errors["rate_factor"] == 1.0
    parts = {
        "SGD, all steps": ("learning_rate", errors[errors["recipe"] == "sgd"]),
        "SGD, recipe's learning rate": ("step", errors[(errors["recipe"] == "sgd") & own]),
        "AdamW, recipe's learning rate": ("step", errors[(errors["recipe"] == "adamw") & own]),
    }
    parts = {where: part for where, part in parts.items() if not part[1].empty}
    figure, names, axes = panels(errors, len(parts), height=2.9, sharey="row")
    figure.suptitle("relative error of in-run scores against the Shapley values of the same step: lower is better")
    methods = in_order(errors["method"])
    edges = converging_rates(rows)
    for row, (where, (x, part)) in zip(axes, parts.items(), strict=True):
        row[0].set_ylabel(f"relative error\n({where})")
        row[0].set_yscale("log")
        row[0].yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        for ax, task in zip(row, names, strict=True):
            here = part[part["task"] == task]
            _lines(ax, here, x, methods)
            _label(ax, here, x)
            if x == "learning_rate":
                _mark_rates(ax, here, edges.get((task, "sgd")))
    extra: list[Artist] = [
        Line2D([], [], color="black", linestyle=":", label="noise of the judge (Monte Carlo)"),
        Line2D([], [], color="0.4", linestyle="--", linewidth=0.8, label="the recipe's learning rate"),
        Patch(color=BEYOND, label="training does not converge"),
        shaded("bands: quartiles (lines: medians)"),
    ]
    legend(figure, methods, extra)
    return figure


def converging_rates(rows: pd.DataFrame) -> Mapping[tuple[str, str], float]:
    """Return the largest learning rate, by task and recipe, at which training converges.

    It does where the loss over the training set falls from epoch to epoch in every seed. Where no rate does, or the
    rows do not tell, there is none.
    """
    losses = rows[rows["metric"] == "training_loss"]
    if losses.empty:
        return {}
    run = ["task", "recipe", "learning_rate", "seed"]
    falls = losses.sort_values("epoch").groupby(run)["value"].agg(lambda by_epoch: bool((np.diff(by_epoch) < 0).all()))
    converges = falls.groupby(run[:-1]).all()
    rates = converges[converges].reset_index().groupby(run[:2])["learning_rate"].max()
    return {(str(task), str(recipe)): float(rate) for (task, recipe), rate in rates.items()}


def _lines(ax: Axes, errors: pd.DataFrame, x: str, methods: list[str]) -> None:
    for method in methods:
        grouped = errors[errors["method"] == method].groupby(x)["value"]
        style = look(method)
        ax.plot(grouped.median(), color=style.color, marker=style.marker, markersize=4.5, linewidth=1.3)
        low, high = grouped.quantile(0.25), grouped.quantile(0.75)
        ax.fill_between(low.index, low, high, color=style.color, alpha=0.15, linewidth=0)
    noise = errors[errors["stderr"] > 0].groupby(x)["stderr"].median()  # an enumerated judge has none
    ax.plot(noise, color="black", linestyle=":", linewidth=1)


def _label(ax: Axes, errors: pd.DataFrame, x: str) -> None:
    places = sorted(errors[x].unique())
    if x == "learning_rate":
        ax.set_xscale("log")
        ax.set_xlabel("learning rate")
    else:
        if 1 in places:  # a run whose first steps are looked at one by one
            ax.set_xscale("symlog", linthresh=5, linscale=1)
        ax.set_xlabel("training steps done")
    ax.set_xticks(places, [f"{place:g}" for place in places])
    ax.minorticks_off()


def _mark_rates(ax: Axes, errors: pd.DataFrame, edge: float | None) -> None:
    """Mark the recipe's own rate, and shade those beyond the largest at which training converges."""
    own = errors[errors["rate_factor"] == 1.0]["learning_rate"]
    if not own.empty:
        ax.axvline(own.iloc[0], color="0.4", linewidth=0.8, linestyle="--")
    beyond = errors[errors["learning_rate"] > (edge or np.inf)]["learning_rate"]
    if edge and not beyond.empty:
        ax.axvspan(np.sqrt(edge * beyond.min()), beyond.max() * 1.15, color=BEYOND, zorder=0)


def table(rows: pd.DataFrame) -> str:
    """Return median errors of each order by task, recipe, learning rate and part of the run."""
    errors = rows[rows["metric"] == "relative_error"] if len(rows) else rows
    if errors.empty:
        return ""
    residuals = rows[(rows["metric"] == "residual_share") & (rows["method"] == "inrun-integrated")]
    methods, edges = in_order(errors["method"]), converging_rates(rows)
    places = ["task", "recipe", "learning_rate"]
    cells = []
    errors = errors.sort_values(places, ascending=[True, False, True], kind="stable")  # SGD before AdamW
    for place, group in errors.groupby(places, sort=False):
        task, recipe, rate = place
        own = residuals[(residuals[places] == list(place)).all(axis=1)]
        marks = ["recipe"] if (group["rate_factor"] == 1).all() else []
        marks += ["largest that converges"] if recipe == "sgd" and edges.get((task, recipe)) == rate else []
        for steps, first, last in _spans(str(recipe)):
            part, of_part = (r[r["step"].between(first, last)] for r in (group, own))
            medians = part.groupby("method")["value"].median()
            cells.append(
                [
                    str(task),
                    str(recipe),
                    f"{rate:g}" + (f" ({', '.join(marks)})" if marks else ""),
                    steps,
                    *(percent(medians.get(m)) for m in methods),
                    percent(part["stderr"].median()),
                    percent(of_part["value"].median()),
                ]
            )
    heads = ["task", "recipe", "learning rate", "steps", *(look(m).label for m in methods)]
    heads += ["noise of the judge", "residual of integrated"]
    return (
        "**Fidelity**: relative error of the scores of single steps against the step game's Shapley values, median "
        "over seeds and steps; and the residual of the integrated order as a share of the drop of the validation loss. "
        "A learning rate converges if the training loss falls from epoch to epoch in every seed.\n\n"
        f"{markdown(cells, heads)}"
    )


def _spans(recipe: str) -> list[tuple[str, float, float]]:
    """Return names and first and last steps of the parts of a run: AdamW's first steps are a story of their own."""
    if recipe == "adamw":
        return [("0-9", 0, 9), ("from 10", 10, math.inf)]
    return [("all", 0, math.inf)]
