"""Overhead: what values cost, on top of training.

Three kinds of units. *Steps* of a task's models: a regular training step against the same step with the engine at each
order, and against a loop that computes one sample's gradient at a time. *Workloads*: the same for models in which
arithmetic, and not Python, takes the time (:mod:`tasks.architectures`), with validation batches as large as training
batches; here the rules for linear maps and convolutions compete. *Runs*: the wall time of each method for the values of
a whole task, in units of one plain training run.

All variants of a step take turns within a round, after their first calls, some of which an engine observes by forward
passes of its own (:mod:`inrun_bench.attribution.capture.observation`; later ones are the 14th, the 41st, and so on).
Ratios are formed within a round, and the median over rounds is reported with its quartiles, so that a machine that
slows down does not favour anyone. One thread, as everywhere.

The gradient of the validation loss, which In-Run Data Shapley cannot do without, is also timed apart ("validation").
A workload's ``net_ratio``, (variant - validation) / regular, is what a step with scores costs when one such pass is
taken off. 1 means that scores are free; gram, which spares the validation pass its weight gradients, may be below. Late
orders need more than one pass (integrated takes four gradients, second a Hessian product, and all measure the loss
before the step), which their net ratios include. Under AdamW, first order is timed with exact slopes and with lagged
ones (:mod:`inrun_bench.attribution.scoring.lagged`), beside a regular step of AdamW. ``peak_ratio`` is the peak memory
of a variant's step, beyond what is there between steps, over that of the regular step.

With one validation row for eight training rows, a workload's step is timed with everything that it includes
(``whole_ratio``, ``whole_peak_ratio``): the validation loss as a closure, and its rows among the batch's in one pass
(:mod:`inrun_bench.attribution.scoring.joint`). So is a small GPT whose scores are of 32 queries of their own
(:mod:`inrun_bench.attribution.queries`), each a quarter as long as a training sequence.
"""

from __future__ import annotations

import argparse
import statistics
import tarfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

import tasks
from inrun_bench.attribution import InRunShapley
from inrun_bench.report.looks import dot, in_order, legend, look, ratio_axis
from inrun_bench.report.markdown import markdown
from inrun_bench.runs.peak_memory import peak_bytes
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.stored_values import reference_blocks, values_unit
from inrun_bench.runs.timing import Clock, quartiles, take_turns, wall_seconds
from inrun_bench.runs.unit import REFERENCE, Row, Setting, Unit
from tasks.architectures import GPT, cnn, mlp

SUMMARY = "time and memory of in-run orders against regular training, and of every method for a whole task"
EXCLUSIVE = True
DEFAULT = True


@dataclass(frozen=True)
class Knobs:
    """How often things are timed.

    Attributes
    ----------
    repeats : int
        Rounds of the steps of the tasks' models, and trainings of a whole task.
    workloads : mapping of str to int
        Large models whose steps are timed, and the rounds of each.
    """

    repeats: int
    workloads: Mapping[str, int]


KNOBS = {
    "quick": Knobs(repeats=5, workloads={"gpt-64": 3, "mlp": 5, "gpt-queries": 5}),
    "timing": Knobs(
        repeats=25, workloads={"gpt-64": 15, "gpt-256": 15, "gpt-1024": 7, "mlp": 25, "cnn": 15, "gpt-queries": 25}
    ),
    "standard": Knobs(
        repeats=51, workloads={"gpt-64": 21, "gpt-256": 21, "gpt-1024": 9, "mlp": 51, "cnn": 21, "gpt-queries": 51}
    ),
}

STEPS, WORKLOAD = "steps", "workload"
PREFIX = "inrun-"
ORDERS = ("first", "second", "integrated")
FORCED = {f"{PREFIX}first-{rule}": rule for rule in ("project", "weight-gradient", "gram")}
FEW_POSITIONS = ("mlp",)  # where gram is timed: it pairs all positions of the batch with all of validation
LATE = {  # what else is timed of a workload: orders that keep the batch's activations until their probe is known
    "gpt-256": ("midpoint",),
    "mlp": ("second", "midpoint", "integrated"),
    "cnn": ("second", "midpoint", "integrated"),
}
ADAMW = {f"{PREFIX}first-adamw": 0.0, f"{PREFIX}first-adamw-lagged": 0.9}
"""What is timed under AdamW, and its tolerance: a batch that is trained on again and again has slopes that move."""
IN_EIGHT = 8  # training rows a validation row, where they are few
FEW = {  # what is timed with so few, everything included: its tolerance, and whether in one pass
    f"{PREFIX}first-few": (0.0, False),
    f"{PREFIX}first-few-joint": (0.0, True),
    f"{PREFIX}first-few-adamw-joint": (0.0, True),
    f"{PREFIX}first-few-adamw-joint-lagged": (0.9, True),
}
QUERIES = {  # what is timed with many queries, everything included: its tolerance
    f"{PREFIX}queries": 0.0,
    f"{PREFIX}queries-adamw": 0.0,
    f"{PREFIX}queries-adamw-lagged": 0.9,
}
N_QUERIES = 32
WHOLE, WHOLE_PEAK = "whole_ratio", "whole_peak_ratio"
REGULAR = {"": "regular", "adamw": "regular-adamw"}
SIZES: tuple[dict[str, Setting], ...] = (
    {"width": 0, "batch": 0},  # the task's own model and batch
    {"width": 1024, "batch": 64},  # two hidden layers wide enough that arithmetic, and not Python, takes the time
)
WARM_UP = 5  # calls, of which the engine observes the first, and looks again at the second and the fifth
ROUND_SECONDS = 0.02  # a variant is called until a regular step's calls take this long
SELDOM = 4  # rounds, in one of which what takes many times as long as a regular step takes part
SMALL_RATE = 1e-3  # of workloads: the loss must stay finite while one batch is trained on again and again

Step = Callable[[], object]


def units(plan: Plan) -> list[Unit]:
    """For each task the steps of its own model and of a wide one, and a run a method; workloads; of the first seed."""
    seed = plan.seeds[0]
    knobs = plan.of_profile(KNOBS)
    repeats: dict[str, Setting] = {"repeats": knobs.repeats}
    found = []
    for task in plan.tasks_with_reference:
        found += [Unit("overhead", task, STEPS, seed, {**repeats, **size}) for size in SIZES]
        needs: dict[str, tuple[Unit, ...]]
        needs = {method: (values_unit(task, method, seed),) for method in plan.methods if method != "random"}
        needs[REFERENCE] = reference_blocks(plan, task, seed)
        found += [Unit("overhead", task, method, seed, repeats, needs=of) for method, of in needs.items()]
    return found + [
        Unit("overhead", name, WORKLOAD, seed, {"repeats": rounds}) for name, rounds in knobs.workloads.items()
    ]


def measure(unit: Unit, needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Time the steps of one model, or put a method's time in units of one plain run."""
    if unit.method == STEPS:
        return _time_steps(unit)
    return _time_workload(unit) if unit.method == WORKLOAD else _time_run(unit, needs)


def _time_steps(unit: Unit) -> list[Row]:
    task = tasks.load(unit.task, unit.seed)
    variants = {
        name: _variant(name, task, int(unit.settings["width"]), int(unit.settings["batch"]))
        for name in ("regular", "validation", *(PREFIX + order for order in ORDERS), "per-sample-loop")
    }
    rounds, peaks = _rounds_and_peaks(variants, int(unit.settings["repeats"]), once={"per-sample-loop"})
    return [{**_cost(name, rounds, peaks), "metric": "step_ratio", **_ratios(name, rounds)} for name in variants]


def _variant(name: str, task: tasks.Task, width: int, batch: int) -> Callable[[], object]:
    """Return a training step, ready to be called again and again, from the task's initial weights."""
    model = _wide(task, width) if width else task.model()
    index = torch.arange(min(batch or task.recipe.batch_size, task.n_train))
    parameters = list(model.parameters())
    optimizer = task.optimizer(model)

    def validation() -> torch.Tensor:
        return task.loss(model, task.validation)

    def regular() -> None:
        task.train_on(model, optimizer, index)

    def validation_gradient() -> object:
        return torch.autograd.grad(validation(), parameters)

    def per_sample_loop() -> torch.Tensor:
        probe = [v * optimizer.param_groups[0]["lr"] for v in torch.autograd.grad(validation(), parameters)]
        total = [torch.zeros_like(p) for p in parameters]
        scores = torch.empty(len(index))
        for position, sample in enumerate(index):
            loss = task.loss(model, task.train, sample[None]) / len(index)
            own = torch.autograd.grad(loss, parameters)
            scores[position] = sum(((g * q).sum() for g, q in zip(own, probe, strict=True)), start=torch.zeros(()))
            torch._foreach_add_(total, own)
        for parameter, gradient in zip(parameters, total, strict=True):
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad()
        return scores

    if name == "regular":
        return regular
    if name == "validation":
        return validation_gradient
    if name == "per-sample-loop":
        return per_sample_loop
    engine = InRunShapley(model, optimizer, task.n_train, name.removeprefix("inrun-"), validation=validation)

    def valued() -> None:
        with engine.step(index):
            regular()

    return valued


def _wide(task: tasks.Task, width: int) -> nn.Module:
    """Return a perceptron of two hidden layers of the given width for the task's data."""
    n_features = task.train.x[0].numel()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        layers = (nn.Linear(n_features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        return nn.Sequential(nn.Flatten(), *layers, nn.Linear(width, task.n_classes or 1))


@dataclass(frozen=True)
class Workload:
    """A model, a batch to train on, and a validation batch as large; classes are told from the output's last axis."""

    model: nn.Module
    train: tasks.Split
    validation: tasks.Split

    def loss(self, split: tasks.Split) -> torch.Tensor:
        """Return the mean cross-entropy over samples and positions."""
        return nn.functional.cross_entropy(self.model(split.x).flatten(0, -2), split.y.flatten())

    def losses(self, split: tasks.Split) -> torch.Tensor:
        """Return the cross-entropy of each sample, over its positions."""
        each = nn.functional.cross_entropy(self.model(split.x).flatten(0, -2), split.y.flatten(), reduction="none")
        return each.view(len(split), -1).mean(1)


def _gpt(positions: int, *, batch: int = 8) -> Workload:
    """Bytes of Python's standard library, in sequences of the given length."""
    model = GPT(vocabulary=256, context=positions, width=256, heads=8, blocks=4)
    return Workload(model, _sequences(argparse, batch, positions), _sequences(tarfile, batch, positions))


def _gpt_of_queries() -> Workload:
    """Return a small model, and queries a quarter as long as what it is trained on."""
    model = GPT(vocabulary=256, context=64, width=96, heads=4, blocks=3)
    return Workload(model, _sequences(argparse, 16, 64), _sequences(tarfile, N_QUERIES, 16))


def _sequences(module: ModuleType, batch: int, positions: int) -> tasks.Split:
    """Return the beginning of a module's source, cut into sequences; of each byte the next is to be told."""
    text = torch.frombuffer(bytearray(Path(str(module.__file__)).read_bytes()), dtype=torch.uint8).long()
    x, y = (text[shift : shift + batch * positions].view(batch, positions) for shift in (0, 1))
    return tasks.Split(x, y)


def _digits(architecture: Callable[[], nn.Module], batch: int) -> Workload:
    """Return MNIST digits, 28 x 28."""
    task = tasks.load("mnist-mlp", 0, n_train=batch)
    train, validation = (
        tasks.Split(split.x[:batch].view(batch, 1, 28, 28), split.y[:batch]) for split in (task.train, task.validation)
    )
    return Workload(architecture(), train, validation)


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "gpt-64": partial(_gpt, 64),
    "gpt-256": partial(_gpt, 256),
    "gpt-1024": partial(_gpt, 1024),
    "mlp": partial(_digits, mlp, 64),
    "cnn": partial(_digits, cnn, 32),
    "gpt-queries": _gpt_of_queries,
}
OF_QUERIES = ("gpt-queries",)


def _time_workload(unit: Unit) -> list[Row]:
    """Time each variant on a model of its own, all of the same weights and data."""
    if unit.task in OF_QUERIES:
        return _time_whole(unit, QUERIES)
    late = [PREFIX + order for order in LATE.get(unit.task, ())]
    forced = [name for name, rule in FORCED.items() if rule != "gram" or unit.task in FEW_POSITIONS]
    names = ("regular", "validation", f"{PREFIX}first", *forced, *late, REGULAR["adamw"], *ADAMW)
    made = {name: _workload_variant(name, unit) for name in names}
    variants = {name: step for name, (step, _) in made.items()}
    rounds, peaks = _rounds_and_peaks(variants, int(unit.settings["repeats"]), seldom=late)
    fastest = min(forced, key=lambda name: float(_ratios(name, rounds, net=True)["value"]))
    rows: list[Row] = []
    for name in variants:
        cost = _cost(name, rounds, peaks)
        rows.append({**cost, "metric": "step_ratio", **_ratios(name, rounds)})
        rows.append({**cost, "metric": "peak_ratio", "value": peaks[name] / peaks[_regular(name)]})
        engine = made[name][1]
        if engine is not None:
            rules = {"rule": _rule(engine), "fastest_rule": FORCED[fastest]}
            rows.append({**cost, **rules, "metric": "net_ratio", **_ratios(name, rounds, net=True)})
    return rows + _time_whole(unit, FEW)


def _time_whole(unit: Unit, names: Collection[str]) -> list[Row]:
    """Time variants with everything that they include."""
    variants = {name: _workload_variant(name, unit)[0] for name in (*REGULAR.values(), *names)}
    rounds, peaks = _rounds_and_peaks(variants, int(unit.settings["repeats"]))
    return [
        row
        for name in names
        for row in (
            {**_cost(name, rounds, peaks), "metric": WHOLE, **_ratios(name, rounds)},
            {**_cost(name, rounds, peaks), "metric": WHOLE_PEAK, "value": peaks[name] / peaks[_regular(name)]},
        )
    ]


def _workload_variant(name: str, unit: Unit) -> tuple[Step, InRunShapley | None]:
    """Return a training step, ready to be called again and again, and the engine that watches it, if one does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(unit.seed)
        workload = WORKLOADS[unit.task]()
    parameters = list(workload.model.parameters())
    optimizer: torch.optim.Optimizer = torch.optim.SGD(parameters, lr=SMALL_RATE)
    if "adamw" in name:
        optimizer = torch.optim.AdamW(parameters, lr=SMALL_RATE)

    def regular() -> None:
        workload.loss(workload.train).backward()
        optimizer.step()
        optimizer.zero_grad()

    if name in REGULAR.values():
        return regular, None
    if name == "validation":
        return lambda: torch.autograd.grad(workload.loss(workload.validation), parameters), None
    if name in FEW:
        return _few_variant(name, workload, optimizer)
    if name in QUERIES:
        return _query_variant(name, workload, optimizer)
    order, rules = ("first", FORCED[name]) if name in FORCED else (name.removeprefix(PREFIX).partition("-")[0], "auto")
    index = torch.arange(len(workload.train))
    engine = InRunShapley(
        workload.model,
        optimizer,
        len(index),
        order,
        validation=lambda: workload.loss(workload.validation),
        rules=rules,
        tolerance=ADAMW.get(name, 0.0),
    )

    def valued() -> None:
        with engine.step(index):
            regular()

    return valued, engine


def _few_variant(name: str, workload: Workload, optimizer: torch.optim.Optimizer) -> tuple[Step, InRunShapley]:
    """Return a step with one validation row for eight training rows, as a closure or in one pass."""
    tolerance, joint = FEW[name]
    train, rows = workload.train, max(1, len(workload.train) // IN_EIGHT)
    few = tasks.Split(workload.validation.x[:rows], workload.validation.y[:rows])
    all_rows = tasks.Split(torch.cat([train.x, few.x]), torch.cat([train.y, few.y]))
    index = torch.arange(len(train))
    validation = None if joint else lambda: workload.loss(few)
    engine = InRunShapley(workload.model, optimizer, len(index), "first", validation=validation, tolerance=tolerance)

    def closure() -> None:
        with engine.step(index):
            workload.loss(train).backward()
            optimizer.step()
            optimizer.zero_grad()

    def one_pass() -> None:
        with engine.step(index, validation_rows=rows) as step:
            losses = workload.losses(all_rows)
            step.loss(losses[:-rows], losses[-rows:]).backward()
            optimizer.step()
            optimizer.zero_grad()

    return one_pass if joint else closure, engine


def _query_variant(name: str, workload: Workload, optimizer: torch.optim.Optimizer) -> tuple[Step, InRunShapley]:
    """Return a step whose scores are of each validation sample alone."""
    index = torch.arange(len(workload.train))
    engine = InRunShapley(
        workload.model,
        optimizer,
        len(index),
        "first",
        validation=lambda: workload.losses(workload.validation),
        per_query=True,
        tolerance=QUERIES[name],
    )

    def valued() -> None:
        with engine.step(index):
            workload.loss(workload.train).backward()
            optimizer.step()
            optimizer.zero_grad()

    return valued, engine


def _regular(name: str) -> str:
    """Return the regular step whose time and memory a variant's are in units of."""
    return REGULAR["adamw" if "adamw" in name else ""]


def _rule(engine: InRunShapley) -> str:
    """Return the rules by which linear maps and convolutions were scored, with the number of layers of each."""
    chosen = Counter(engine.choices["rules"].values())
    layers = ", ".join(f"{rule} {number}" for rule, number in chosen.most_common())
    return layers or f"late: {engine.choices['late']}"


def _rounds_and_peaks(
    variants: Mapping[str, Step], repeats: int, *, once: Collection[str] = (), seldom: Collection[str] = ()
) -> tuple[list[dict[str, float]], dict[str, int]]:
    """Return the seconds of a step of each variant in each round, and each variant's peak memory.

    A variant in `once` is called once a round, others as often as a short round asks; one in `seldom`, many times as
    long as a regular step, takes part in every fourth round. Times and peaks are those of later steps: in its first
    ones an engine observes the model, and looks at it again.
    """
    for step in variants.values():
        wall_seconds(step, WARM_UP)
    calls = max(1, round(ROUND_SECONDS / wall_seconds(variants["regular"], 3)))
    clocks: dict[str, Clock] = {name: partial(wall_seconds, calls=1 if name in once else calls) for name in variants}
    rounds = take_turns(
        variants, repeats, clocks, takes_part=lambda name, number: name not in seldom or number % SELDOM == 0
    )
    return rounds, {name: peak_bytes(step) for name, step in variants.items()}


def _cost(name: str, rounds: list[dict[str, float]], peaks: Mapping[str, int]) -> Row:
    seconds = statistics.median(taken[name] for taken in rounds if name in taken)
    return {"method": name, "seconds": seconds, "peak_bytes": peaks[name]}


def _ratios(name: str, rounds: list[dict[str, float]], *, net: bool = False) -> Row:
    """Return median and quartiles over rounds of a variant's time, in units of the regular step of the same round."""
    taken = [r for r in rounds if name in r]
    return quartiles((r[name] - (r["validation"] if net else 0.0)) / r[_regular(name)] for r in taken)


def _time_run(unit: Unit, needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Return the method's wall time, as it was when its values were made, over that of one plain training run."""
    task = tasks.load(unit.task, unit.seed)
    plain = statistics.median(wall_seconds(lambda: _train(task), 1) for _ in range(int(unit.settings["repeats"])))
    costs = [rows[rows["metric"] == "cost"].iloc[0] for rows in needs.values()]
    seconds = float(sum(cost["seconds"] for cost in costs))
    evaluations = int(sum(cost["evaluations"] for cost in costs))
    cost = {"seconds": seconds, "evaluations": evaluations, "plain_seconds": plain}
    return [{"metric": "run_ratio", "value": seconds / plain, **cost}]


def _train(task: tasks.Task) -> None:
    model = task.model()
    optimizer = task.optimizer(model)
    for index in task.batches():
        task.train_on(model, optimizer, index)


WORKLOAD_LABELS = {
    "gpt-64": "GPT, 64 positions",
    "gpt-256": "GPT, 256 positions",
    "gpt-1024": "GPT, 1024 positions",
    "mlp": "MLP, 1024 wide",
    "cnn": "residual CNN",
    "gpt-queries": "small GPT, 32 queries",
}
"""What the models are called that are no task's, in the order in which they are shown."""


A_LINE, AROUND = 0.068, 0.6  # inches: of a point, and of an axis with its label and title


@dataclass(frozen=True)
class _Panel:
    """Rows with the columns group, method, value, low and high, and what they are."""

    rows: pd.DataFrame
    title: str
    label: str


def draw(rows: pd.DataFrame) -> Figure:
    """Draw points with their quartiles on logarithmic axes of ratios, one row of panels each, of those that have rows.

    Of large models: what scores cost beyond a validation pass, and peak memory. Of the tasks' models: time and peak
    memory of a step. Of the tasks: time for all values.
    """
    bands = [
        shown
        for band in (_workload_panels(rows), _whole_panels(rows), _task_panels(rows), _run_panels(rows))
        if (shown := [panel for panel in band if not panel.rows.empty])
    ]
    if not bands:
        return Figure()
    places = [_places(pd.concat([panel.rows for panel in band])) for band in bands]
    heights = [A_LINE * max(of_band.values()) + AROUND for of_band in places]
    figure = Figure(figsize=(10, sum(heights) + 1.2), layout="constrained")
    grid = figure.add_gridspec(len(bands), 1, height_ratios=heights)
    for row, (band, of_band) in enumerate(zip(bands, places, strict=True)):
        axes = grid[row].subgridspec(1, len(band)).subplots(squeeze=False, sharey=True)[0]
        for ax, panel in zip(axes, band, strict=True):
            _points(ax, panel, of_band)
    legend(figure, in_order(method for of_band in places for _, method in of_band))
    return figure


def of_workloads(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of models that are no task's, in the order of `WORKLOAD_LABELS`."""
    widths = rows["width"] if "width" in rows else pd.Series(np.nan, rows.index)
    found = rows[widths.isna() & ~rows["metric"].isin(["run_ratio", WHOLE, WHOLE_PEAK])]
    return _in_place(found)


def of_whole(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of such models' steps with everything that they include."""
    return _in_place(rows[rows["metric"].isin([WHOLE, WHOLE_PEAK])]) if len(rows) else rows


def _in_place(found: pd.DataFrame) -> pd.DataFrame:
    places = {name: place for place, name in enumerate(WORKLOAD_LABELS)}
    return found.sort_values("task", key=lambda names: names.map(places).fillna(len(places)), kind="stable")


def of_tasks(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the steps of tasks' models, with the `width` of each; 0 stands for the task's own model."""
    return rows[rows["width"].notna() & (rows["metric"] == "step_ratio")] if "width" in rows else rows[:0]


def _workload_panels(rows: pd.DataFrame) -> list[_Panel]:
    steps = of_workloads(rows)
    steps = steps.assign(group=steps["task"].map(lambda name: WORKLOAD_LABELS.get(name, name)))
    net, peak = (steps[steps["metric"] == metric] for metric in ("net_ratio", "peak_ratio"))
    peak = peak[~peak["method"].isin([*REGULAR.values(), "validation"])].assign(low=np.nan, high=np.nan)
    return [
        _Panel(net, "large models: time", "a step less a validation pass (a regular step = 1)"),
        _Panel(peak, "large models: peak memory", "of a step (a regular step = 1)"),
    ]


def _whole_panels(rows: pd.DataFrame) -> list[_Panel]:
    steps = of_whole(rows)
    steps = steps.assign(group=steps["task"].map(lambda name: WORKLOAD_LABELS.get(name, name)))
    time, peak = (steps[steps["metric"] == metric] for metric in (WHOLE, WHOLE_PEAK))
    return [
        _Panel(time, "one row in eight, many queries: time", "of a step, everything included (a regular step = 1)"),
        _Panel(peak.assign(low=np.nan, high=np.nan), "the same: peak memory", "of a step (a regular step = 1)"),
    ]


def _task_panels(rows: pd.DataFrame) -> list[_Panel]:
    steps = of_tasks(rows)
    if steps.empty:
        return []
    steps = steps.sort_values(["task", "width"], kind="stable")
    own = steps["width"] == 0
    steps["group"] = steps["task"] + own.map({True: "", False: ",\n1024 wide, batch 64"})
    regular = steps[steps["method"] == "regular"].set_index("group")["peak_bytes"]
    memory = steps["peak_bytes"] / steps["group"].map(regular)
    steps, memory = steps[steps["method"] != "regular"], memory[steps["method"] != "regular"]
    return [
        _Panel(steps, "the tasks' models: time", "of a step (a regular step = 1)"),
        _Panel(
            steps.assign(value=memory, low=np.nan, high=np.nan).dropna(subset=["value"]),
            "the tasks' models: peak memory",
            "of a step (a regular step = 1)",
        ),
    ]


def _run_panels(rows: pd.DataFrame) -> list[_Panel]:
    runs = rows[rows["metric"] == "run_ratio"]
    runs = runs.assign(group=runs["task"], low=np.nan, high=np.nan)
    return [_Panel(runs, "whole tasks: time", "for the values of all samples (one plain training run = 1)")]


def _places(rows: pd.DataFrame) -> dict[tuple[str, str], int]:
    """Return the line of each group and method, groups apart by an empty one; a group may lack some methods."""
    places: dict[tuple[str, str], int] = {}
    for group, own in rows.groupby("group", sort=False):
        for method in in_order(own["method"]):
            places[str(group), method] = max(places.values(), default=0) + 1 + (group not in {g for g, _ in places})
    return places


def _points(ax: Axes, panel: _Panel, places: Mapping[tuple[str, str], int]) -> None:
    for row in panel.rows.to_dict("records"):
        interval = pd.Series({"mean": row["value"], "low": row["low"], "high": row["high"]})
        dot(ax, interval, places[row["group"], row["method"]], look(row["method"]), size=5)
    lines: dict[str, list[int]] = {}
    for (group, _), line in places.items():
        lines.setdefault(group, []).append(line)
    for own in list(lines.values())[::2]:
        ax.axhspan(min(own) - 1, max(own) + 1, color="0.97", zorder=0)
    ax.set_yticks([statistics.mean(own) for own in lines.values()], list(lines))
    ax.set_ylim(max(places.values()) + 1, 1)
    ax.grid(visible=False, axis="y")
    quartiles = ", quartiles" if panel.rows["low"].notna().any() else ""
    ax.set_title(f"{panel.title}{quartiles}")
    ratio_axis(ax, panel.label)


def table(rows: pd.DataFrame) -> str:
    """Return what scores cost in large models, steps in the tasks' models, and all values of a task."""
    return "\n\n".join(
        part for part in (_scores_table(rows), _whole_table(rows), _steps_table(rows), _runs_table(rows)) if part
    )


def _runs_table(rows: pd.DataFrame) -> str:
    runs = rows[rows["metric"] == "run_ratio"] if len(rows) else rows
    if runs.empty:
        return ""
    ratios = runs.groupby(["method", "task"])["value"].median().unstack("task")
    cells = [
        [look(method).markdown, *("" if np.isnan(ratio) else f"{ratio:,.3g}" for ratio in ratios.loc[method])]
        for method in in_order(ratios.index)
    ]
    return (
        "**Time for the values of all samples**, in units of one plain training run.\n\n"
        f"{markdown(cells, ['method', *ratios.columns])}"
    )


def _steps_table(rows: pd.DataFrame) -> str:
    steps = of_tasks(rows) if len(rows) else rows
    if steps.empty:
        return ""
    methods = in_order(m for m in steps["method"] if m != "regular")
    cells = []
    for (task, width), group in steps.groupby(["task", "width"], sort=True):
        found = group.drop_duplicates("method").set_index("method")
        ratios = [
            f"{found['value'][m]:.2f} / {found['peak_bytes'][m] / found['peak_bytes']['regular']:.2f}"
            if m in found.index
            else ""
            for m in methods
        ]
        cells.append(
            [task, f"{width:.0f} wide" if width else "its own", f"{found['seconds']['regular'] * 1e3:.2f}", *ratios]
        )
    heads = ["task", "model", "regular step (ms)", *(look(m).markdown for m in methods)]
    return (
        "**Overhead**: time / peak memory of one step, in units of a regular training step; the in-run orders include "
        f"their validation passes.\n\n{markdown(cells, heads)}"
    )


def _whole_table(rows: pd.DataFrame) -> str:
    steps = of_whole(rows)
    if steps.empty:
        return ""
    methods = in_order(steps["method"])
    cells = []
    for name, group in steps.groupby("task", sort=False):
        ratio, peak = (group[group["metric"] == metric].set_index("method")["value"] for metric in (WHOLE, WHOLE_PEAK))
        cells.append(
            [
                WORKLOAD_LABELS.get(str(name), str(name)),
                *(f"{ratio[m]:.2f} / {peak[m]:.2f}" if m in ratio.index else "" for m in methods),
            ]
        )
    return (
        "**One validation row for eight training rows, and many queries**: time / peak memory of one step, everything "
        "included, in units of a regular training step (the validation rows alone make it 1.125).\n\n"
        f"{markdown(cells, ['model', *(look(m).markdown for m in methods)])}"
    )


def _scores_table(rows: pd.DataFrame) -> str:
    steps = of_workloads(rows) if len(rows) else rows
    if steps.empty:
        return ""
    net = steps[steps["metric"] == "net_ratio"]
    methods = in_order(net["method"])
    cells = []
    for name, group in steps.groupby("task", sort=False):
        found = {metric: own.set_index("method") for metric, own in group.groupby("metric")}
        ratio, peak = (found[metric]["value"] for metric in ("net_ratio", "peak_ratio"))
        cells.append(
            [
                WORKLOAD_LABELS.get(str(name), str(name)),
                f"{found['step_ratio']['seconds']['regular'] * 1e3:,.0f}",
                f"{found['step_ratio']['value']['validation']:.2f}",
                *(f"{ratio[m]:.2f} / {peak[m]:.2f}" if m in ratio.index else "" for m in methods),
                found["net_ratio"]["rule"].get("inrun-first", ""),
                found["net_ratio"]["fastest_rule"].iloc[0],
            ]
        )
    heads = ["model", "regular step (ms)", "validation pass", *(look(m).markdown for m in methods)]
    heads += ["rules chosen (layers)", "fastest rule"]
    return (
        "**Cost of scores** in large models: time less that of one validation pass / peak memory of one step, in units "
        "of a regular training step; the validation pass, as large as the training batch, stands apart. In-Run of "
        "first order chooses a rule for each layer; beside it the same with one rule for all layers, and which of "
        f"these was fastest.\n\n{markdown(cells, heads)}"
    )
