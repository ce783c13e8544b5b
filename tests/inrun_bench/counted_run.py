"""A run of units that leave a line in a log each time they are measured, beside another."""

import time
from types import SimpleNamespace

from inrun_bench.runs import runner
from inrun_bench.runs.store import Store
from inrun_bench.runs.unit import Unit

NEED = Unit("counted", "task", "need", 0)
UNITS = [Unit("counted", "task", f"method-{i}", 0, needs=(NEED,)) for i in range(20)]


def experiments(log):
    def measure(unit, _needs):
        with log.open("a") as lines:
            lines.write(f"{unit.method}\n")
        time.sleep(0.02)
        return [{"metric": "length", "value": len(unit.method)}]

    return {"counted": SimpleNamespace(EXCLUSIVE=False, measure=measure)}


def run_beside_another(store, log):
    log.with_name(f"ready-{time.monotonic_ns()}").touch()
    deadline = time.monotonic() + 120
    while len(list(log.parent.glob("ready-*"))) < 2:  # both start at once
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return runner.run(UNITS, store, experiments(log))


def run_here(root, log, answer):
    """The same in a process of its own, which puts the counts into a queue."""
    outcome = run_beside_another(Store(root), log)
    answer.put((outcome.done, outcome.skipped, outcome.failed))
