"""The leaderboard: every method against every task and question of a folder, and what its values take.

Experiments say by which of their metrics methods are ranked (:class:`Question`, in their ``QUESTIONS``); there is a
column for each task of a question. A cell is a mean over seeds with its interval and its rank in the column. Nothing is
averaged over columns: utilities of different tasks are in different units, and a mean rank would depend on who else is
there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from inrun_bench.report.intervals import Interval, over_seeds
from inrun_bench.report.looks import in_order
from inrun_bench.report.overview import ANOTHER
from inrun_bench.runs.store import Store
from inrun_bench.runs.unit import DEFAULT_RECIPE, REFERENCE

__all__ = ["Cell", "Column", "Leaderboard", "Price", "Question", "leaderboard", "questions_of", "ranks"]


@dataclass(frozen=True)
class Question:
    """What methods are ranked by; it has a column of the leaderboard for each task.

    Attributes
    ----------
    label : str
        What is asked. Experiments that ask the same, of the same label, share columns; a value of the first of them
        counts.
    metric : str
        Which rows answer it.
    measure : str
        What the metric is called in print, with its unit where it has one.
    where : mapping of str to str
        Columns, and what must stand in them, where rows of the metric are of several things.
    by : mapping of str to str
        Columns that make further columns beside the task, and the form of what they say (``"{:,.0f} steps"``).
    bound : str
        The metric of the reference's rows that bounds a column (a ceiling, say); `metric` where empty.
    larger_is_better : bool
        Which end of a column is the first.
    select : callable, optional
        Of the rows, those that have columns; all where None.
    """

    label: str
    metric: str
    measure: str
    where: Mapping[str, str] = field(default_factory=dict)
    by: Mapping[str, str] = field(default_factory=dict)
    bound: str = ""
    larger_is_better: bool = True
    select: Callable[[pd.DataFrame], pd.DataFrame] | None = None

    def of(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return the rows that answer the question, or bound its answers; with a column `place` that tells columns."""
        told = rows[rows["metric"].isin({self.metric, self.bound})]
        for name, value in self.where.items():
            told = told[told[name] == value] if name in told else told.iloc[:0]
        if self.select is not None and len(told):
            told = self.select(told)
        return told.assign(place=_places(told, self.by))


@dataclass(frozen=True)
class Cell:
    """What one method has in a column.

    Attributes
    ----------
    interval : Interval
        Mean and 95 % confidence interval over seeds; NaN where there is none.
    definitions : int
        Of how many definitions the rows are; more than one have no mean.
    rank : int or None
        1 is the best of the column; equal means share a rank.
    """

    interval: Interval
    definitions: int = 1
    rank: int | None = None


@dataclass(frozen=True)
class Column:
    """A question, of one task.

    Attributes
    ----------
    question : Question
        What is asked.
    task, place : str
        Of which task; and at which point, with which recipe, where the question tells them apart.
    cells : mapping of str to Cell
        By method, as far as it was measured.
    failed : frozenset of str
        Methods of which a unit behind this column failed.
    ceiling, another_seed : float or None
        What bounds the column: the noise ceiling or the reference's own score, and its agreement with another seed.
    """

    question: Question
    task: str
    place: str
    cells: Mapping[str, Cell]
    failed: frozenset[str] = frozenset()
    ceiling: float | None = None
    another_seed: float | None = None

    @property
    def ranked(self) -> int:
        """Of how many methods there is a mean."""
        return sum(cell.rank is not None for cell in self.cells.values())

    @property
    def seeds(self) -> int:
        """The most seeds that a mean is over."""
        return max((cell.interval.n for cell in self.cells.values()), default=0)


@dataclass(frozen=True)
class Price:
    """What the values of all samples of a task take: medians over seeds; None where nobody measured it."""

    seconds: float
    trainings: float | None


@dataclass(frozen=True)
class Leaderboard:
    """The table as data.

    Attributes
    ----------
    methods : tuple of str
        One a row, in the house's order.
    columns : tuple of Column
        Question by question.
    prices : mapping of (str, str) to mapping of str to Price
        By task and place, and method.
    """

    methods: tuple[str, ...]
    columns: tuple[Column, ...]
    prices: Mapping[tuple[str, str], Mapping[str, Price]]


def leaderboard(
    store: Store, experiments: Mapping[str, Any], failed: Collection[tuple[str, str, str]] = ()
) -> Leaderboard:
    """Return the leaderboard of a folder.

    Parameters
    ----------
    store : Store
        The folder.
    experiments : mapping
        Experiments by name; those without ``QUESTIONS`` have no columns.
    failed : collection of (str, str, str)
        Experiment, task and method of units that failed.
    """
    rows = {name: store.read_all(name) for name in experiments if questions_of(experiments[name])}
    columns: dict[tuple[str, str, str], Column] = {}
    costs = [_costs(store.read_all("values"), {"recipe": "{}"})]
    for name, own in rows.items():
        for question in questions_of(experiments[name]):
            answers = question.of(own) if len(own) else own.assign(place="")
            costs += [answers[answers["metric"] == question.metric], _costs(own, question.by)]
            for column in _columns(question, answers, {(t, m) for e, t, m in failed if e == name}):
                key = (question.label, column.task, column.place)
                columns[key] = _merged(columns[key], column) if key in columns else column
    tasks = list(dict.fromkeys(task for _, task, _ in columns))
    ordered = sorted(  # questions that begin alike side by side; of a task the default recipe first
        columns.values(),
        key=lambda column: (column.question.label, tasks.index(column.task), bool(column.place)),
    )
    prices = _prices([cost for cost in costs if len(cost)])
    shown = {(column.task, column.place) for column in ordered}
    methods = {method for column in ordered for method in (*column.cells, *column.failed)}
    return Leaderboard(
        tuple(in_order(methods)),
        tuple(ordered),
        {place: own for place, own in prices.items() if place in shown},
    )


def questions_of(experiment: object) -> tuple[Question, ...]:
    """Return the questions by which an experiment ranks methods; none where it ranks none."""
    return tuple(getattr(experiment, "QUESTIONS", ()))


def ranks(means: Mapping[str, float], *, larger_is_better: bool = True) -> dict[str, int]:
    """Return the rank of each mean: one more than the number of better ones. NaN has none."""
    known = {name: mean for name, mean in means.items() if mean == mean}  # NaN equals nothing
    sign = 1.0 if larger_is_better else -1.0
    return {name: 1 + sum(sign * other > sign * mean for other in known.values()) for name, mean in known.items()}


def _columns(question: Question, answers: pd.DataFrame, failed: set[tuple[str, str]]) -> Iterator[Column]:
    for (task, place), own in answers.groupby(["task", "place"], sort=False) if len(answers) else ():
        means = over_seeds(own, ("method", "metric"))
        found = {
            method: (_interval(means.loc[(method, question.metric)]), int(definitions))
            for (method, metric), definitions in means["definitions"].items()
            if metric == question.metric and method not in (REFERENCE, ANOTHER)
        }
        rank = ranks(
            {m: interval.mean for m, (interval, _) in found.items()}, larger_is_better=question.larger_is_better
        )
        yield Column(
            question,
            str(task),
            str(place),
            {method: Cell(*told, rank=rank.get(method)) for method, told in found.items()},
            frozenset(method for of, method in failed if of == task and method not in (REFERENCE, ANOTHER)),
            _mean(means, (REFERENCE, question.bound or question.metric)),
            _mean(means, (ANOTHER, question.metric)),
        )


def _merged(first: Column, other: Column) -> Column:
    """Return a column with the cells of both; of a method that is in both, those of the first."""
    cells = {**other.cells, **first.cells}
    rank = ranks(
        {method: cell.interval.mean for method, cell in cells.items()},
        larger_is_better=first.question.larger_is_better,
    )
    return Column(
        first.question,
        first.task,
        first.place,
        {method: Cell(cell.interval, cell.definitions, rank.get(method)) for method, cell in cells.items()},
        first.failed | other.failed,
        other.ceiling if first.ceiling is None else first.ceiling,
        other.another_seed if first.another_seed is None else first.another_seed,
    )


def _interval(row: pd.Series) -> Interval:
    return Interval(float(row["mean"]), float(row["low"]), float(row["high"]), int(row["n"]))


def _mean(means: pd.DataFrame, key: tuple[str, str]) -> float | None:
    """Return a mean; None where there is none."""
    mean = float(means.loc[key, "mean"]) if key in means.index else None
    return None if mean is None or mean != mean else mean


def _places(rows: pd.DataFrame, by: Mapping[str, str]) -> list[str]:
    """Return what tells columns of a task apart, row by row: nothing where nothing is noted, or the default recipe."""
    parts = [
        [form.format(value) if _told(value) else "" for value in rows[name]]
        for name, form in by.items()
        if name in rows
    ]
    return [", ".join(filter(None, told)) for told in zip(*parts, strict=True)] if parts else [""] * len(rows)


def _told(value: Hashable) -> bool:
    return not pd.isna(value) and value != DEFAULT_RECIPE


def _costs(rows: pd.DataFrame, by: Mapping[str, str]) -> pd.DataFrame:
    """Return what values cost, and of which columns."""
    own = rows[rows["metric"] == "cost"]
    return own.assign(place=_places(own, by))


def _prices(costs: Iterable[pd.DataFrame]) -> dict[tuple[str, str], dict[str, Price]]:
    """Return medians of times and trainings; of rows that come first, where several tell of a method."""
    found: dict[tuple[str, str], dict[str, Price]] = {}
    for rows in costs:
        known = rows[rows["seconds"].notna() & ~rows["method"].isin([REFERENCE, ANOTHER])]
        for (task, place, method), own in known.groupby(["task", "place", "method"], sort=False):
            if own["seed"].duplicated().any():  # units of several definitions, which have no price in common
                continue
            trainings = own["evaluations"].dropna().astype(float)
            price = Price(float(own["seconds"].median()), float(trainings.median()) if len(trainings) else None)
            found.setdefault((task, place), {}).setdefault(method, price)
    return found
