"""A run whose workers do nothing but what :mod:`tests.inrun_bench.hazards` does."""

import dataclasses
import os
from types import SimpleNamespace

from inrun_bench.runs import runner
from inrun_bench.runs.backends import dask
from inrun_bench.runs.store import Store
from inrun_bench.runs.unit import Unit
from tests.inrun_bench import hazards


def hazard(method, *needs, dies=False, flag="", seconds=0.05):
    return Unit("hazards", "task", method, 0, {"dies": dies, "flag": str(flag), "seconds": seconds}, needs)


NEED = hazard("need")
UNITS = [hazard(f"method-{i}", NEED, seconds=0.1) for i in range(20)]


def _never(_unit, _needs):
    raise AssertionError("measured")


EXPERIMENTS = {"hazards": SimpleNamespace(EXCLUSIVE=False, measure=_never)}


def run(units, store, **how):
    return runner.run(units, store, EXPERIMENTS, **how)


def send_hazards_alone(put=setattr):
    """Have the runner send workers hazards in place of units, whose rows are made here; return the ids of processes.

    A row's value is one more than the sum of those that the unit needs.
    """
    send, answer, values, pids = runner._send, runner._answer, {}, []

    def send_a_hazard(unit, rows, experiments, workers):
        def submit(_call, _measure, unit, needs, _code):
            values[unit] = 1 + sum(own["value"].sum() for own in needs.values())
            return workers.submit(hazards.strike, *unit.settings.values())

        return send(unit, rows, experiments, dataclasses.replace(workers, submit=submit))

    def answer_with_rows(future, unit, workers, deaths):
        said = answer(future, unit, workers, deaths)
        if not isinstance(said, int):
            return said  # of a death, or of what went wrong
        pids.append(said)
        return runner._Answer([{"metric": "sum", "value": values[unit]}])

    put(runner, "_send", send_a_hazard)
    put(runner, "_answer", answer_with_rows)
    put(dask, "_do", hazards.do)  # which a worker would import from here
    return pids


def run_in_a_group_of_its_own(root):
    """Take two workers, and be killed with them."""
    os.setsid()
    send_hazards_alone()
    run(UNITS, Store(root), jobs=2)
