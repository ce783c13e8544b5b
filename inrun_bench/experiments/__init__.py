"""Experiments: which units of work there are, and what one unit measures. One file a question.

An experiment is a module with

``SUMMARY``
    one line for listings;
``EXCLUSIVE``
    whether its units measure time, and so must run alone;
``DEFAULT``
    whether it runs when no experiment is named;
``TASKS``
    where it has its own: the tasks that it runs on when none is named, in place of the profile's, and that are named
    where it has nothing to do on others;
``NEEDS``
    where it does not run on every task: what a task must have;
``KNOBS``
    where it has any: how much work it does, by profile, each a frozen dataclass `Knobs`;
``units(plan) -> list[Unit]``
    its units of work, by the knobs that ``plan.of_profile(KNOBS)`` chooses;
``measure(unit, needs) -> list[Row]``
    the rows of one unit; `needs` holds the rows of the units that it needs;
``draw(rows) -> matplotlib.figure.Figure``
    where there is a figure: it, from the experiment's rows alone; without axes where they hold nothing to draw;
``table(rows) -> str``
    where there are tables: them, in Markdown; empty where the rows hold nothing to tell.

Rows are out of date when what `measure` reaches has changed; how they are drawn and told is no part of it.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Protocol, cast

import pandas as pd

from inrun_bench.runs.plan import Plan
from inrun_bench.runs.unit import Row, Unit
from tasks.registry import Registry

__all__ = ["EXPERIMENTS", "Experiment", "units_of"]


class Experiment(Protocol):
    """What a module of this package offers; see above."""

    SUMMARY: str
    EXCLUSIVE: bool
    DEFAULT: bool

    def units(self, plan: Plan) -> list[Unit]:
        """Return the units of work."""

    def measure(self, unit: Unit, needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
        """Return the rows of one unit."""


def _collect(name: str, module: ModuleType) -> dict[str, Experiment]:
    return {name: cast(Experiment, module)}


def units_of(
    name: str, experiment: Experiment, plan: Plan, *, tasks_named: bool = True, asked_for: bool = True
) -> list[Unit]:
    """Return the units of an experiment.

    Parameters
    ----------
    name : str
        What it is called.
    experiment : Experiment
        It.
    plan : Plan
        What to run.
    tasks_named : bool
        Whether the plan's tasks were named; where not, those of the experiment take their place, if it has its own.
    asked_for : bool
        Whether the experiment was named, so that it must have something to do.

    Raises
    ------
    ValueError
        If it was asked for and has no units: the plan's tasks are none that it supports.
    """
    own = getattr(experiment, "TASKS", ())
    if own and not tasks_named:
        plan = dataclasses.replace(plan, tasks=own)
    found = experiment.units(plan)
    if not found and asked_for:
        needs = getattr(experiment, "NEEDS", "")
        those = (f"; it needs {needs}" if needs else "") + (f"; it runs on {', '.join(own)}" if own else "")
        raise ValueError(f"experiment {name!r} has nothing to do on {', '.join(plan.tasks)}{those}")
    return found


EXPERIMENTS: Registry[Experiment] = Registry(
    "experiment",
    sys.modules[__name__],
    _collect,
    group="inrun_bench.experiments",
    accepts=lambda thing: all(hasattr(thing, what) for what in ("SUMMARY", "EXCLUSIVE", "DEFAULT", "units", "measure")),
)
