"""All experiments there are, by name, and the units that a plan makes of one."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Protocol, cast

import pandas as pd

import inrun_bench.experiments
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
    return {name: cast(Experiment, module)} if hasattr(module, "measure") else {}


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
    if isinstance(own_tasks, Mapping):
        own_tasks = plan.of_profile(own_tasks)
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
    inrun_bench.experiments,
    _collect,
    group="inrun_bench.experiments",
    accepts=lambda thing: all(hasattr(thing, what) for what in ("SUMMARY", "EXCLUSIVE", "DEFAULT", "units", "measure")),
)
