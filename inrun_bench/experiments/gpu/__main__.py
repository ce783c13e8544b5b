"""The command: ``python -m inrun_bench.experiments.gpu --out results/gpu``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from inrun_bench.experiments.gpu import SUMMARY, measure
from inrun_bench.experiments.gpu.order import Planned, in_order
from inrun_bench.experiments.gpu.supervisor import Left, supervise
from inrun_bench.experiments.gpu.told import told
from inrun_bench.runs.run_rows import RunRows
from inrun_bench.runs.store import Store

__all__ = ["main"]

ENDED_BY_SIGNAL = 128


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is not there yet, and say what was found, unit by unit.

    Returns
    -------
    int
        0, units that the budget left for a later run or not; 1 where something failed; 128 and the number of the signal
        where one ended the run.
    """
    options = _parser().parse_args(arguments)
    began = time.monotonic()
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is first imported
    store = Store(options.out)
    todo = in_order(seed=0)
    rows = RunRows(store)
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
                measure,
                limit=options.limit,
                budget=options.budget,
                say=lambda finished: _say(told(finished, options.budget)),
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m inrun_bench.experiments.gpu", description=SUMMARY)
    parser.add_argument("--out", type=Path, default=Path("runs", "gpu"), help="results folder (default: runs/gpu)")
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS", help="begin no unit that is not planned to end by then"
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="what one try at a unit may take, or twice what is planned where that is more (default: 120)",
    )
    return parser


def _seconds(planned: Sequence[Planned]) -> str:
    return f"{sum(one.seconds for one in planned):.0f} s"


def _say(line: str) -> None:
    print(line, flush=True)  # the log may be all that is left of a run


def _draw(store: Store) -> None:
    from inrun_bench.report.figures import draw_figures  # here: a worker imports this module, and draws nothing

    for path in draw_figures(store, ["gpu"]):
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


if __name__ == "__main__":
    sys.exit(main())
