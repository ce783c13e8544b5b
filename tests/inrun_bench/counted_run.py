"""A run of units that leave a line in a log each time they are measured, beside another: python -m ... RESULTS LOG."""

import sys
import time
from pathlib import Path
from types import SimpleNamespace

from inrun_bench import runner
from inrun_bench.store import Store
from inrun_bench.unit import Unit

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
    return runner.run(UNITS, store)


if __name__ == "__main__":
    results, log = map(Path, sys.argv[1:])
    runner.EXPERIMENTS = experiments(log)
    outcome = run_beside_another(Store(results), log)
    print(outcome.done, outcome.skipped, len(outcome.failed))
