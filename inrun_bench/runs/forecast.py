"""Forecasts: how long units will take, from how long others took that were measured before.

A unit's time is the median of those of the same experiment, method, task and settings, whatever the seed; where there
is none, of the same experiment, method and task; of the same experiment and method; of the same experiment; and of no
other.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

from inrun_bench.runs.provenance import Provenance
from inrun_bench.runs.unit import Measured, Unit

__all__ = ["Forecast", "forecast"]


@dataclass(frozen=True)
class Forecast:
    """How long units will take.

    Attributes
    ----------
    seconds : float
        On so many workers, as far as it is known.
    of_unit : mapping of Unit to float
        Of each unit whose like was measured before.
    unknown : tuple of Unit
        Units of experiments of which nothing was.
    """

    seconds: float
    of_unit: Mapping[Unit, float]
    unknown: tuple[Unit, ...]


def forecast(
    units: Iterable[Unit], measured: Iterable[Provenance], experiments: Mapping[str, Measured], jobs: int
) -> Forecast:
    """Forecast the time of units.

    Parameters
    ----------
    units : iterable of Unit
        What is to be measured.
    measured : iterable of Provenance
        What was; those whose time nobody noted count for nothing.
    experiments : mapping of str to Measured
        By name: units of those that measure time run alone.
    jobs : int
        Units at a time, at least 1.

    Returns
    -------
    Forecast
    """
    times: defaultdict[tuple[Hashable, ...], list[float]] = defaultdict(list)
    for each in measured:
        if each.seconds is not None:
            for like in _likes(each):
                times[like].append(each.seconds)
    of_unit: dict[Unit, float] = {}
    unknown = []
    for unit in units:
        likes = [like for like in _likes(unit) if like in times]
        if likes:
            of_unit[unit] = statistics.median(times[likes[0]])
        else:
            unknown.append(unit)
    alone = [seconds for unit, seconds in of_unit.items() if experiments[unit.experiment].EXCLUSIVE]
    together = [seconds for unit, seconds in of_unit.items() if not experiments[unit.experiment].EXCLUSIVE]
    side_by_side = max(sum(together) / jobs, max(together, default=0.0))
    return Forecast(sum(alone) + side_by_side, of_unit, tuple(unknown))


def _likes(unit: Unit | Provenance) -> tuple[tuple[Hashable, ...], ...]:
    """Return what others are like, the nearest first."""
    own = unit.experiment, unit.method, unit.task, tuple(sorted(unit.settings.items()))
    return own, own[:3], own[:2], own[:1]
