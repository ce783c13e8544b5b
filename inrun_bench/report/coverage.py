"""What a folder of results holds, and what it lacks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from inrun_bench.methods import METHODS
from inrun_bench.report.leaderboard import questions_of
from inrun_bench.report.looks import OTHERS, in_order, look
from inrun_bench.report.overview import ANOTHER
from inrun_bench.runs.store import Store
from inrun_bench.runs.unit import REFERENCE
from tasks import CATALOG

__all__ = ["Holding", "foreign", "holdings", "numbers"]


@dataclass(frozen=True)
class Holding:
    """What a folder holds of an experiment.

    Attributes
    ----------
    experiment : str
        Its name.
    rows : int
        How many there are, those of errors left out.
    tasks, methods : tuple of str
        Of which there are rows.
    seeds : tuple of int
        Likewise.
    lacks : tuple of str
        What is missing of what is there of other tasks, methods or seeds, in words.
    """

    experiment: str
    rows: int
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    lacks: tuple[str, ...]


def holdings(store: Store, experiments: Mapping[str, Any]) -> list[Holding]:
    """Return what a folder holds of each experiment that has rows in it, of those that are not installed, too."""
    known = [name for name in experiments if name in store.experiments()]
    found = []
    for name in (*known, *(name for name in store.experiments() if name not in experiments)):
        rows = store.read_all(name)
        units = rows[["task", "method", "seed"]].drop_duplicates()
        asked = questions_of(experiments[name]) if name in experiments else ()
        found.append(
            Holding(
                name,
                len(rows),
                tuple(sorted(set(units["task"].dropna()))),
                tuple(in_order(units["method"].dropna())),
                tuple(sorted({int(seed) for seed in units["seed"].dropna()})),
                tuple(_gaps(units)) if asked else (),
            )
        )
    return found


def foreign(held: Iterable[Holding], experiments: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the experiments, tasks and methods that no package installed here knows, where methods are ranked."""
    held = list(held)
    ranked = [own for own in held if own.experiment in experiments and questions_of(experiments[own.experiment])]
    ours = {REFERENCE, ANOTHER, *METHODS, *(name for family in OTHERS.values() for name in family)}
    return {
        "experiment": [own.experiment for own in held if own.experiment not in experiments],
        "task": sorted({task for own in ranked for task in own.tasks} - set(CATALOG)),
        "method": sorted({method for own in ranked for method in own.methods} - ours),
    }


def numbers(seeds: Iterable[int]) -> str:
    """Return numbers with their runs written as such: ``0 to 4, 7``."""
    runs: list[list[int]] = []
    for seed in sorted(set(seeds)):
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _gaps(units: pd.DataFrame) -> Iterator[str]:
    """Yield what is missing: seeds of a task, methods of a task, seeds of a method on a task."""
    seeds, methods = set(units["seed"]), set(units["method"]) - {REFERENCE, ANOTHER}
    for task, own in units.groupby("task", sort=True):
        there = set(own["seed"])
        if there != seeds:
            yield f"{task}: seeds {numbers(seeds - there)}"
        absent = methods - set(own["method"])
        if absent:
            yield f"{task}: {', '.join(look(method).label for method in in_order(absent))}"
        for method, of_method in own[own["method"].isin(methods)].groupby("method", sort=True):
            if missing := there - set(of_method["seed"]):
                yield f"{task}, {look(str(method)).label}: seeds {numbers(missing)}"
