"""Scale: how agreement with retraining fares with more samples and longer training.

Two hundred samples and fifty steps say little of a thousand of each. So each method values the same task at several
sizes of its training set, and after several lengths of training, and is judged in two ways:

- by random halves of the training set, retrained: the linear datamodelling score, the rank correlation between the
  utility of a subset and the sum of its samples' values (:func:`inrun_bench.linear_datamodelling_score`), in the run's
  own game and by conventional retraining, where each subset is trained alone, in batches of its own, by runs of other
  seeds. It takes some hundred trainings at any size, and has no ceiling of 1: values are a sum, and utilities are not;
- where enough permutations can be afforded, by Shapley values of the run's own game, as in
  :mod:`~inrun_bench.experiments.agreement`, with their noise ceiling.

Utility: minus the validation loss. Means over seeds of the task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import tasks
from baselines import permutation_shapley
from baselines.permutation import SHIFTS
from inrun_bench import metrics
from inrun_bench.methods import valued
from inrun_bench.report.intervals import over_seeds
from inrun_bench.report.leaderboard import Question
from inrun_bench.report.looks import Look, foremost, in_order, in_table_alone, legend, look
from inrun_bench.report.markdown import interval_cell, markdown, mean_cell
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.stored_values import warm_up
from inrun_bench.runs.unit import REFERENCE, Row, Unit

SUMMARY = "agreement with retraining over the number of samples and the length of training"
NEEDS = "sizes and lengths of its own for the task, in its KNOBS"
EXCLUSIVE = False
DEFAULT = True

Point = tuple[int, int]
"""Training samples and epochs."""


@dataclass(frozen=True)
class Knobs:
    """Where agreement is looked at, and how much work the truth is.

    Attributes
    ----------
    points : mapping of str to tuple of (int, int)
        Numbers of training samples and of epochs, by task.
    subsets : int
        Random halves that are retrained, in each game.
    runs : int
        Of other seeds, over which conventional retraining is averaged.
    training_steps : float
        What Shapley values may take: trainings times their steps; there are none where that is not enough.
    methods : tuple of str
        Which of the plan's are judged; all where empty.
    most_samples, most_passes : mapping of str to int
        Beyond how many training samples, and how many of them times epochs, a method is judged no more, since it takes
        a quarter of an hour a seed there.
    """

    points: Mapping[str, tuple[Point, ...]]
    subsets: int
    runs: int
    training_steps: float
    methods: tuple[str, ...] = ()
    most_samples: Mapping[str, int] = field(default_factory=dict)
    most_passes: Mapping[str, int] = field(default_factory=dict)


_WORK: dict[str, Any] = {
    "subsets": 200,
    "runs": 4,
    "training_steps": 6e6,
    "most_samples": dict.fromkeys(("mc-10", "mc-shifted-10", "tmc-10", "control-variate-10"), 1000),
    "most_passes": {"inrun-integrated-seeds-20": 1000},
}
KNOBS = {
    "quick": Knobs(
        points={"digits-mlp": ((100, 5), (400, 5), (100, 40))},
        subsets=60,
        runs=1,
        training_steps=2.5e5,
        methods=("inrun-first", "inrun-integrated", "few-run-4", "knn"),
    ),
    "standard": Knobs(
        points={
            "breast-cancer-logreg": ((50, 5), (100, 5), (300, 5), (100, 25)),
            "diabetes-ridge": ((50, 5), (150, 5), (250, 5), (150, 25)),
            "digits-mlp": ((100, 5), (200, 5), (500, 5), (200, 25)),
            "iris-logreg": ((16, 5), (50, 5), (16, 25), (16, 100)),
            "mnist-mlp": ((200, 5),),
            "wine-logreg": ((30, 5), (90, 5), (90, 25), (90, 100)),
        },
        **{**_WORK, "most_passes": {"inrun-integrated-seeds-20": 0}},  # as long as all other methods together
    ),
    "paper": Knobs(
        points={
            "breast-cancer-logreg": ((50, 5), (100, 5), (300, 5), (100, 25), (100, 100)),
            "diabetes-ridge": ((50, 5), (150, 5), (250, 5), (150, 25), (150, 100)),
            "digits-mlp": ((100, 5), (200, 5), (500, 5), (1000, 5), (200, 25), (200, 100)),
            "iris-logreg": ((16, 5), (50, 5), (16, 25), (16, 100)),
            "mnist-mlp": ((200, 5), (500, 5), (2000, 5)),
            "wine-logreg": ((30, 5), (90, 5), (90, 25), (90, 100)),
        },
        **_WORK,
    ),
}
FEWEST_DRAWS = 4  # behind a reference: an even number, of SHIFTS permutations and their reverses each

OWN, CONVENTIONAL = "own", "conventional"
MEASURES = {
    ("spearman", OWN): "Spearman correlation with\nShapley values, own game",
    ("lds", OWN): "random halves, own game\n(datamodelling score)",
    ("lds", CONVENTIONAL): "random halves, conventional\n(datamodelling score)",
}
CEILING = "spearman_ceiling"
SHARE = 0.5
AXES = {"n": "samples", "steps": "steps"}
SPREAD = 1.15  # between the first method's place and the last one's, on a logarithmic axis


def _ends(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows at each task's largest size, trained least, and at its longest training."""
    points = rows[["task", "n", "steps"]].drop_duplicates().sort_values(["task", "n", "steps"])
    largest = points.sort_values(["n", "steps"], ascending=[False, True]).drop_duplicates("task")
    longest = points.sort_values("steps", ascending=False).drop_duplicates("task")
    ends = points[points.index.isin([*largest.index, *longest.index])]
    return ends.merge(rows, on=list(points), how="left")


_POINTS = {"n": "{:,.0f} samples", "steps": "{:,.0f} steps"}
QUESTIONS = (
    Question(
        "at scale, in the run's own game",
        "spearman",
        "Spearman correlation",
        where={"judge": OWN},
        by=_POINTS,
        bound=CEILING,
        select=_ends,
    ),
    Question(
        "at scale, by conventional retraining",
        "lds",
        "datamodelling score of random halves",
        where={"judge": CONVENTIONAL},
        by=_POINTS,
        select=_ends,
    ),
)


def units(plan: Plan) -> list[Unit]:
    """One unit a method and point, and one for what is true there."""
    knobs = plan.of_profile(KNOBS)
    chosen = [method for method in plan.methods if not knobs.methods or method in knobs.methods]
    found = []
    for task in plan.tasks:
        for n, epochs in knobs.points.get(task, ()):
            for seed in plan.seeds:
                own = {"n": n, "epochs": epochs}
                work = {"subsets": knobs.subsets, "runs": knobs.runs, "training_steps": knobs.training_steps}
                truth = Unit("scale", task, REFERENCE, seed, {**own, **work})
                judged = [method for method in chosen if _is_judged(method, n, n * epochs, knobs)]
                found += [truth, *(Unit("scale", task, method, seed, own, needs=(truth,)) for method in judged)]
    return found


def _is_judged(method: str, samples: int, passes: int, knobs: Knobs) -> bool:
    return samples <= knobs.most_samples.get(method, samples) and passes <= knobs.most_passes.get(method, passes)


TASKS = {profile: tuple(knobs.points) for profile, knobs in KNOBS.items()}


def measure(unit: Unit, needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Judge a method by what is true at a point."""
    task = _task(unit)
    (truth,) = unit.needs
    warm_up(unit.task)
    valuation = valued(unit.method, task, unit.random_seed)
    cost = {"evaluations": valuation.evaluations, "seconds": valuation.seconds, "steps": _steps(task)}
    return [{**row, **cost} for row in _judged(valuation.values, truth, needs[truth])]


def measure_reference(unit: Unit, _needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Find what is true at a point."""
    task = _task(unit)
    return [{**row, "steps": _steps(task)} for row in _truth(unit, task)]


def _steps(task: tasks.Task) -> int:
    return task.recipe.n_steps(task.n_train)


def _task(unit: Unit) -> tasks.Task:
    """Return the task with another number of samples and of epochs; the test set, which judges nothing here, gives."""
    n, epochs, spec = int(unit.settings["n"]), int(unit.settings["epochs"]), tasks.CATALOG[unit.task]
    room = len(spec.dataset()[0]) - n - spec.n_validation
    if room < 1:
        raise ValueError(f"task {unit.task!r} has {room + n} samples to train on, of which one must be left, got n={n}")
    recipes = {name: replace(recipe, epochs=epochs) for name, recipe in spec.recipes.items()}
    spec = replace(spec, n_test=min(spec.n_test, room), recipes=recipes)
    return spec.build(unit.task, seed=unit.seed, n_train=n)


def _truth(unit: Unit, task: tasks.Task) -> Iterable[Row]:
    """Yield utilities of random halves, and Shapley values by halves of the draws."""
    streams = unit.random_seed.spawn(3)
    games = {OWN: task.trajectory_game(), CONVENTIONAL: task.conventional_game(seeds=int(unit.settings["runs"]))}
    chosen = _halves(unit, task.n_train)
    utilities = {name: game(chosen) for name, game in games.items()}
    for judge, found in utilities.items():
        for subset, utility in enumerate(found):
            yield {"metric": "utility", "judge": judge, "subset": subset, "value": float(utility)}
    a_draw = 2 * SHIFTS * task.n_train * task.recipe.n_steps(task.n_train)
    draws = int(float(unit.settings["training_steps"]) // a_draw) // 2
    if 2 * draws < FEWEST_DRAWS:
        return
    halves = [
        permutation_shapley(
            games[OWN], n_permutations=2 * SHIFTS * draws, antithetic=True, shifts=SHIFTS, rng=stream
        ).values
        for stream in streams[:2]
    ]
    for half, values in enumerate(halves):
        for sample, value in enumerate(values):
            yield {"metric": "value", "half": half, "sample": sample, "value": float(value)}
    seen = metrics.agreement(*halves)["spearman"]
    yield {"metric": CEILING, "judge": OWN, "value": metrics.ceiling(seen)}
    for judge, found in utilities.items():
        yield {"metric": "lds", "judge": judge, "value": metrics.foretelling(np.mean(halves, axis=0), chosen, found)}


def _halves(truth: Unit, n: int) -> np.ndarray:
    return metrics.random_subsets(n, int(truth.settings["subsets"]), SHARE, truth.random_seed.spawn(3)[2])


def _judged(values: np.ndarray, truth: Unit, rows: pd.DataFrame) -> Iterable[Row]:
    chosen = _halves(truth, len(values))
    for judge, own in rows[rows["metric"] == "utility"].groupby("judge"):
        utilities = own.sort_values("subset")["value"].to_numpy()
        yield {"metric": "lds", "judge": judge, "value": metrics.foretelling(values, chosen, utilities)}
    stored = rows[rows["metric"] == "value"]
    if len(stored):
        reference = stored.groupby("sample")["value"].mean().to_numpy()
        yield {"metric": "spearman", "judge": OWN, "value": metrics.agreement(values, reference)["spearman"]}


def draw(rows: pd.DataFrame) -> Figure:
    """Draw a row for each task and what grows in it, samples or steps, and a column for each measure.

    Means with 95 % intervals over seeds; methods are moved apart a little, so that intervals do not hide each other.
    """
    rows = rows[rows["metric"].isin(["lds", "spearman", CEILING])]
    sweeps = [] if rows.empty else list(_sweeps(rows))
    measures = [key for key in MEASURES if ((rows["metric"] == key[0]) & (rows["judge"] == key[1])).any()]
    if not sweeps or not measures:
        return Figure()
    names = list(dict.fromkeys(sweep.task for sweep in sweeps))
    over = [axis for axis in AXES if axis in {sweep.axis for sweep in sweeps}]
    columns = [(key, axis) for key in measures for axis in over]
    figure = Figure(figsize=(1.6 * len(columns) + 1.2, 1.5 * len(names) + 1.4), layout="constrained")
    axes = figure.subplots(len(names), len(columns), squeeze=False, sharey=True)
    judged = {m for m in rows["method"] if m not in (REFERENCE, "random")}
    methods = foremost(judged)
    drawn = over_seeds(rows[rows["method"].isin(methods)], ("task", "n", "epochs", "method", "metric", "judge"))
    axes[0, 0].set_ylim(min(0.0, float(drawn["mean"].min())) - 0.03, 1.05)  # intervals may be cut off, points are not
    for sweep in sweeps:
        means = over_seeds(sweep.rows, (sweep.axis, "method", "metric", "judge"))
        for key in measures:
            ax = axes[names.index(sweep.task), columns.index((key, sweep.axis))]
            _panel(ax, means, sweep, key, methods)
    for ax in axes.flat:
        if not ax.has_data():
            ax.remove()
    for column, (key, _) in zip(axes.T, columns, strict=True):
        next(ax for ax in column if ax.figure).set_title(MEASURES[key], fontsize=7)
    for row, task in zip(axes, names, strict=True):
        next(ax for ax in row if ax.figure).set_ylabel(task, fontsize=8)
    label = "the reference: its noise ceiling, or its own score"
    legend(figure, methods, [Line2D([], [], color="black", linestyle="--", marker="_", label=label)])
    figure.suptitle(in_table_alone(judged), fontsize=8)
    return figure


def _panel(ax: Axes, means: pd.DataFrame, sweep: _Sweep, key: tuple[str, str], methods: list[str]) -> None:
    ticks = sorted(sweep.rows[sweep.axis].unique())
    for place, method in enumerate(methods):
        apart = SPREAD ** (place / max(len(methods) - 1, 1) - 0.5)  # so that intervals do not hide each other
        _line(ax, means, ticks, (method, *key), look(method), apart)
    metric = CEILING if key[0] == "spearman" else key[0]
    _line(ax, means, ticks, (REFERENCE, metric, key[1]), None, 1.0)
    ax.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks], fontsize=7)
    ax.minorticks_off()
    ax.set_xlabel(f"{AXES[sweep.axis]}, {sweep.fixed}", fontsize=8)


def _line(
    ax: Axes, means: pd.DataFrame, ticks: list[float], key: tuple[str, str, str], style: Look | None, apart: float
) -> None:
    found = [(tick, *means.loc[(tick, *key), ["mean", "low", "high"]]) for tick in ticks if (tick, *key) in means.index]
    if not found:
        return
    x, mean, low, high = np.array(found).T
    if style is None:
        ax.plot(x, mean, color="black", linestyle="--", marker="_", markersize=12, linewidth=1.2)
        return
    ax.errorbar(
        apart * x,
        mean,
        yerr=[mean - low, high - mean],
        color=style.color,
        marker=style.marker,
        markersize=4,
        linewidth=1.0,
        elinewidth=0.6,
    )


@dataclass(frozen=True)
class _Sweep:
    """A task's points of one length, over sizes, or of one size, over lengths; `fixed` says which."""

    task: str
    axis: str
    fixed: str
    rows: pd.DataFrame


def _sweeps(rows: pd.DataFrame) -> Iterable[_Sweep]:
    for task, own in rows.groupby("task", sort=False):
        points = own[["n", "epochs", "steps"]].drop_duplicates()
        for axis, fixed in (("n", "epochs"), ("steps", "n")):
            kept, number = max(
                ((value, len(same)) for value, same in points.groupby(fixed)), key=lambda each: (each[1], -each[0])
            )
            if number > 1:
                about = f"{kept:,.0f} epochs" if fixed == "epochs" else f"{kept:,.0f} samples"
                yield _Sweep(str(task), axis, about, own[own[fixed] == kept])


def table(rows: pd.DataFrame) -> str:
    """Return one table a task: a row a method, a column a point, each with both scores by random halves."""
    rows = rows[rows["metric"].isin(["lds", "spearman", CEILING])]
    if rows.empty:
        return ""
    means = over_seeds(rows, ("task", "n", "epochs", "method", "metric", "judge"))
    parts = []
    for task, own in rows.groupby("task", sort=False):
        points = own[["n", "epochs", "steps"]].drop_duplicates().sort_values(["n", "epochs"]).itertuples(index=False)
        points = list(points)
        seeds = own["seed"].nunique()
        for (metric, judge), label in MEASURES.items():
            cells = [
                [
                    look(method).markdown,
                    *(interval_cell(means, (task, p.n, p.epochs, method, metric, judge), seeds) for p in points),
                ]
                for method in in_order(m for m in own["method"] if m != REFERENCE)
            ]
            of_reference = CEILING if metric == "spearman" else metric
            name = "*noise ceiling*" if metric == "spearman" else "*the reference itself*"
            cells.append(
                [name, *(mean_cell(means, (task, p.n, p.epochs, REFERENCE, of_reference, judge)) for p in points)]
            )
            heads = [f"{p.n:,.0f} samples, {p.steps:,.0f} steps" for p in points]
            title = label.replace("\n", " ")
            parts.append(f"{task}, {seeds} seeds: {title}\n\n{markdown(cells, ['method', *heads])}")
    return (
        "**Scale**: agreement with retraining [95 % confidence interval over seeds] over the number of training "
        "samples and the length of training. The reference is that of the run's own game, where there is one; an empty "
        "cell: not judged there.\n\n" + "\n\n".join(parts)
    )
