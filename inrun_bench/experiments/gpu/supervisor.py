"""Units run in order, under a budget, in a process that may break: what is finished is kept, whatever happens.

- A unit is written as soon as it is measured.
- A process that dies, loses its GPU or passes the limit is replaced, and the unit is tried again without the method
  that was being run: that one method is an error.
- No unit is begun that would not end within the budget; shorter ones that follow are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from inrun_bench.experiments.gpu.order import Planned
from inrun_bench.experiments.gpu.rounds import error_row
from inrun_bench.experiments.gpu.worker import Measure, Worker
from inrun_bench.runs.run_rows import RunRows
from inrun_bench.runs.store import Store
from inrun_bench.runs.unit import Row, Unit

__all__ = ["Finished", "Left", "supervise"]

START_SECONDS = 15.0  # of a process: imports, and the GPU's context
TRIES = 3  # at a unit that a process is lost to


@dataclass(frozen=True)
class Finished:
    """A unit that has been measured and written: its rows, the seconds it took, and those since the run began."""

    planned: Planned
    rows: list[Row]
    seconds: float
    elapsed: float


@dataclass(frozen=True)
class Left:
    """A unit that was not begun, or not ended, and why."""

    planned: Planned
    reason: str


def supervise(
    todo: Sequence[Planned],
    rows: RunRows,
    measure: Measure,
    *,
    limit: float,
    budget: float | None = None,
    say: Callable[[Finished], None] = lambda _: None,
    stopped: Callable[[], bool] = lambda: False,
) -> list[Left]:
    """Measure units of which there are no rows, or none up to date, in order, and return those that are left.

    Parameters
    ----------
    todo : sequence of Planned
        Units in the order in which they are begun: first those of which nothing is known, then those that were tried
        before, and failed, then those whose rows are out of date. One whose needs have failed, or were not begun, goes
        without.
    rows : RunRows
        Where rows are, and go.
    measure : callable
        See :class:`~inrun_bench.experiments.gpu.worker.Worker`.
    limit : float
        Seconds that one try at a unit may take, or twice those that are planned where that is more.
    budget : float, optional
        Seconds within which units must end, by plan, to be begun.
    say : callable
        Told of each unit that is finished.
    stopped : callable
        Asked now and then whether to stop at once.
    """
    began = time.monotonic()
    left: list[Left] = []
    worker = Worker(measure)
    try:
        missing = [planned for planned in todo if not rows.up_to_date(planned.unit)]
        for planned in sorted(missing, key=lambda planned: _worth(planned.unit, rows.store)):
            seconds = planned.seconds + (0.0 if worker.running else START_SECONDS)
            if stopped():
                left.append(Left(planned, "stopped"))
                continue
            if budget is not None and time.monotonic() - began + seconds > budget:
                left.append(Left(planned, f"{seconds:.0f} s planned, more than the budget has left"))
                continue
            claim = rows.store.claim(planned.unit)
            if claim is None:
                left.append(Left(planned, "another run is at it"))
                continue
            begun = time.monotonic()
            try:
                allowed = max(limit, 2 * planned.seconds)
                found = _measured(planned.unit, _needs(planned.unit, rows.store), worker, allowed, stopped)
                if found is not None:
                    rows.write(planned.unit, found)
            finally:
                claim.release()
            if found is None:
                left.append(Left(planned, "stopped"))
            else:
                now = time.monotonic()
                say(Finished(planned, found, now - begun, now - began))
    finally:
        worker.end()
    return left


def _measured(
    unit: Unit,
    needs: Mapping[Unit, pd.DataFrame],
    worker: Worker,
    limit: float,
    stopped: Callable[[], bool],
) -> list[Row] | None:
    """Return the unit's rows, those of methods that it failed on included; None where it was stopped."""
    avoided: dict[str, str] = {}
    for _ in range(TRIES):
        answer = worker.try_unit(unit, needs, avoided, limit, stopped)
        if answer.stopped:
            return None
        broken = [error_row(method, message) for method, message in avoided.items()]
        if answer.rows is not None:
            return [*answer.rows, *broken]
        method = answer.method or unit.method
        if not answer.lost or not answer.method or method in avoided:
            return [error_row(method, answer.message), *broken]
        avoided[method] = answer.message
    return [error_row(method, message) for method, message in avoided.items()]


def _needs(unit: Unit, store: Store) -> dict[Unit, pd.DataFrame]:
    return {need: store.read(need) for need in unit.needs if store.provenance(need) is not None}


def _worth(unit: Unit, store: Store) -> int:
    """Return when a unit's turn comes: 0 where nothing is known of it, 1 where it failed, 2 where it is out of date."""
    return int(store.provenance(unit) is not None) + int(store.has(unit))
