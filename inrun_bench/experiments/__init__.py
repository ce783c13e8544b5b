"""Experiments: which units of work there are, and what one unit measures. One file a question.

An experiment is a module with

``SUMMARY``
    one line for listings;
``EXCLUSIVE``
    whether its units measure time, and so must run alone;
``DEFAULT``
    whether it runs when no experiment is named;
``TASKS``
    where it has its own: the tasks that it runs on when none is named, in place of the profile's;
``units(plan) -> list[Unit]``
    its units of work;
``measure(unit, needs) -> list[Row]``
    the rows of one unit; `needs` holds the rows of the units that it needs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Protocol, cast

import pandas as pd

from inrun_bench.plan import Plan
from inrun_bench.unit import Row, Unit
from tasks.registry import Registry

__all__ = ["EXPERIMENTS", "Experiment"]


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


EXPERIMENTS: Registry[Experiment] = Registry("experiment", sys.modules[__name__], _collect)
