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
``METHODS``
    where it has its own: the methods that it runs when none is named, in place of the profile's;
``NEEDS``
    where it does not run on every task, or not with every method: what these must have;
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
import warnings
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
    name: str,
    experiment: Experiment,
    plan: Plan,
    *,
    tasks_named: bool = True,
    methods_named: bool = True,
    asked_for: bool = True,
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
    tasks_named, methods_named : bool
        Whether the plan's were named; where not, those of the experiment take their place, if it has its own.
    asked_for : bool
        Whether the experiment was named, so that it must have something to do.

    Raises
    ------
    ValueError
        If it was asked for and has no units: it supports none of the plan's tasks, or methods.
    """
    own_tasks, own_methods = getattr(experiment, "TASKS", ()), getattr(experiment, "METHODS", ())
    if own_tasks and not tasks_named:
        plan = dataclasses.replace(plan, tasks=own_tasks)
    if own_methods and not methods_named:
        plan = dataclasses.replace(plan, methods=own_methods)
    found = experiment.units(plan)
    if not found and asked_for:
        needs = getattr(experiment, "NEEDS", "")
        those = f"; it needs {needs}" if needs else ""
        those += f"; where none is named, it runs on {', '.join(own_tasks)}" if own_tasks else ""
        those += f"; where none is named, its methods are {', '.join(own_methods)}" if own_methods else ""
        given = ", ".join(plan.tasks) + (f" with {', '.join(plan.methods)}" if own_methods else "")
        raise ValueError(f"experiment {name!r} has nothing to do on {given}{those}")
    left_out = [method for method in plan.methods if method not in {unit.method for unit in found}]
    if found and own_methods and methods_named and left_out:
        warnings.warn(
            f"experiment {name!r} leaves out {', '.join(left_out)}; it needs {experiment.NEEDS}",  # type: ignore[attr-defined]
            stacklevel=2,
        )
    return found


EXPERIMENTS: Registry[Experiment] = Registry(
    "experiment",
    sys.modules[__name__],
    _collect,
    group="inrun_bench.experiments",
    accepts=lambda thing: all(hasattr(thing, what) for what in ("SUMMARY", "EXCLUSIVE", "DEFAULT", "units", "measure")),
)
