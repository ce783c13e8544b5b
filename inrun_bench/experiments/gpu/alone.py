"""A run of the GPU's units: in the order of their worth, each in another process, with a word on each as it ends."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence

import torch

from inrun_bench.experiments import gpu
from inrun_bench.experiments.gpu.order import Planned, in_order
from inrun_bench.experiments.gpu.supervisor import Left, supervise
from inrun_bench.experiments.gpu.told import told
from inrun_bench.runs.run_rows import RunRows
from inrun_bench.runs.store import Store
from inrun_bench.runs.unit import Measured

__all__ = ["run_alone"]

ENDED_BY_SIGNAL = 128
MEASURED: dict[str, Measured] = {"gpu": gpu}


def run_alone(store: Store, *, limit: float, budget: float | None = None) -> int:
    """Measure what is not there yet, and say what was found, unit by unit.

    Parameters
    ----------
    store : Store
        Where rows go.
    limit : float
        Seconds that one try at a unit may take, or twice what is planned where that is more.
    budget : float, optional
        No unit is begun that is not planned to end after so many seconds.

    Returns
    -------
    int
        0, units that the budget left for a later run or not; 1 where something failed; 128 and the number of the signal
        where one ended the run.
    """
    began = time.monotonic()
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is first imported
    todo = in_order(seed=0)
    rows = RunRows(store, MEASURED)
    missing = [planned for planned in todo if not rows.up_to_date(planned.unit)]
    _say(f"{todo[0].unit.settings['device']}: {len(missing)} of {len(todo)} units, {_seconds(missing)} planned")
    left: list[Left] = []
    signals: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for number in before:
            signal.signal(number, lambda number, _frame: signals.append(number))
        if missing:
            rows.run = store.begin_run(jobs=1, seeds=[0])
            left = supervise(
                todo,
                rows,
                gpu.measure,
                limit=limit,
                budget=budget,
                say=lambda finished: _say(told(finished, budget)),
                stopped=lambda: bool(signals),
            )
    finally:
        if rows.written:
            store.count_units(rows.run, done=len(rows.written), failed=0)
        for number, handler in before.items():
            signal.signal(number, handler)
    done = len(missing) - len(left)
    _say(f"{done} units done in {time.monotonic() - began:.0f} s, {len(todo) - len(missing)} were there already")
    for one in left:
        _say(f"left: {one.planned.unit.task} {one.planned.unit.method}: {one.reason}")
    if signals:
        return ENDED_BY_SIGNAL + signals[0]
    _draw(store)
    failed = _failed(todo, store)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr, flush=True)
    return 1 if failed else 0


def _seconds(planned: Sequence[Planned]) -> str:
    return f"{sum(one.seconds for one in planned):.0f} s"


def _say(line: str) -> None:
    print(line, flush=True)  # the log may be all that is left of a run


def _draw(store: Store) -> None:
    from inrun_bench.report.figures import draw_figures  # here: a worker imports this module, and draws nothing

    for path in draw_figures(store, ["gpu"], MEASURED):
        _say(f"figure: {path}")


def _failed(todo: Sequence[Planned], store: Store) -> list[str]:
    lines = []
    for planned in todo:
        if store.provenance(planned.unit) is None:
            continue
        rows = store.read(planned.unit)
        wrong = rows[rows["status"] == "error"]
        lines += [f"{row.task} {row.method}: {row.message}" for row in wrong.itertuples()]
    return lines
