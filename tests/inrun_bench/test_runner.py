import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import joblib
import pandas as pd
import pytest

from inrun_bench import runner
from inrun_bench.cli import main
from inrun_bench.runner import run
from inrun_bench.store import Store
from inrun_bench.unit import Unit
from tests.inrun_bench import counted_run
from tests.inrun_bench.tiny import METHODS, TASK, files, units_of, without_timings


class Laboratory:
    """Fake experiments 'free' and 'alone' (exclusive) that note which units are measured, and beside which others."""

    def __init__(self):
        self.measured = []
        self.beside = {}
        self.broken = set()
        self.bodies = {}
        self._running = set()
        self._lock = threading.Lock()

    def measure(self, unit, needs):
        with self._lock:
            self.measured.append(unit)
            self._running.add(unit)
            for other in self._running:
                self.beside.setdefault(other, set()).update(self._running - {other})
                self.beside.setdefault(unit, set()).update(self._running - {unit})
        try:
            if unit in self.broken:
                raise ZeroDivisionError(f"{unit.method} divides by zero")
            if unit in self.bodies:
                return self.bodies[unit]()
            total = 1.0 + sum(rows["value"].sum() for rows in needs.values())
            return [{"metric": "needed", "value": total}]
        finally:
            with self._lock:
                self._running.remove(unit)


@pytest.fixture
def laboratory(monkeypatch):
    found = Laboratory()
    experiments = {
        "free": SimpleNamespace(EXCLUSIVE=False, measure=found.measure),
        "alone": SimpleNamespace(EXCLUSIVE=True, measure=found.measure),
    }
    monkeypatch.setattr(runner, "EXPERIMENTS", experiments)
    return found


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


def unit(method, *needs, experiment="free", seed=0):
    return Unit(experiment, "task", method, seed, needs=needs)


GRANDPARENT = unit("grandparent")
PARENTS = tuple(unit(f"parent-{i}", GRANDPARENT) for i in range(3))
CHILDREN = tuple(unit(f"child-{i}", *PARENTS) for i in range(4))


@pytest.fixture(params=[1, 2, 4])
def jobs(request):
    with joblib.parallel_config("threading"):  # where fake experiments are seen
        yield request.param


# --- needs ---


def test_needs_run_first_and_everything_once(laboratory, store, jobs):
    outcome = run([*CHILDREN, *CHILDREN, GRANDPARENT], store, jobs=jobs)
    assert (outcome.done, outcome.skipped, outcome.failed) == (8, 0, ())
    assert sorted(map(str, laboratory.measured)) == sorted(map(str, (GRANDPARENT, *PARENTS, *CHILDREN)))
    place = {measured: number for number, measured in enumerate(laboratory.measured)}
    for measured in place:
        assert all(place[need] < place[measured] for need in measured.needs)
    assert all(not laboratory.beside[u].intersection(u.needs) for u in place)


def test_a_unit_gets_the_rows_of_its_needs(laboratory, store):
    run(CHILDREN, store)
    assert laboratory.measured
    rows = store.read_all("free").set_index("method")["value"]
    assert rows["grandparent"] == 1
    assert rows["parent-0"] == 1 + 1
    assert rows["child-0"] == 1 + 3 * 2


def test_units_without_needs_of_each_other_run_at_once(laboratory, store):
    together = threading.Barrier(3)
    for parent in PARENTS:
        laboratory.bodies[parent] = lambda: [{"metric": "place", "value": together.wait(10)}]
    with joblib.parallel_config("threading"):
        assert run(PARENTS, store, jobs=3).failed == ()


def test_exclusive_units_come_last_and_alone(laboratory, store, jobs):
    exclusive = [unit(f"timed-{i}", *PARENTS[:i], experiment="alone") for i in range(3)]
    for u in (*exclusive, *PARENTS):
        laboratory.bodies[u] = lambda: [{"metric": "slept", "value": time.sleep(0.02)}]
    run([exclusive[0], *CHILDREN, *exclusive[1:]], store, jobs=jobs)
    assert set(laboratory.measured[-3:]) == set(exclusive)
    assert all(laboratory.beside[u] == set() for u in exclusive)
    assert jobs == 1 or any(laboratory.beside[u] for u in PARENTS)


# --- again ---


def test_a_second_run_does_nothing(laboratory, store):
    run(CHILDREN, store)
    before, manifest = files(store.root), (store.root / "manifest.json").read_bytes()
    laboratory.measured.clear()
    outcome = run(CHILDREN, store)
    assert (outcome.done, outcome.skipped, outcome.failed) == (0, 8, ())
    assert laboratory.measured == []
    assert files(store.root) == before
    assert (store.root / "manifest.json").read_bytes() == manifest


def test_a_later_run_does_only_what_is_new(laboratory, store):
    run(PARENTS, store)
    laboratory.measured.clear()
    outcome = run(CHILDREN, store)
    assert (outcome.done, outcome.skipped) == (4, 4)
    assert set(laboratory.measured) == set(CHILDREN)


# --- failures ---


def test_a_failing_unit_fails_what_needs_it_and_nothing_else(laboratory, store, jobs):
    laboratory.broken = {PARENTS[1]}
    child = unit("child", PARENTS[1])
    grandchild = unit("grandchild", child)
    outcome = run([grandchild, *PARENTS], store, jobs=jobs)
    failed = {str(u): message for u, message in outcome.failed}
    assert failed == {
        str(PARENTS[1]): "ZeroDivisionError: parent-1 divides by zero",
        str(child): f"RuntimeError: needs '{PARENTS[1]}', which failed",
        str(grandchild): f"RuntimeError: needs '{child}', which failed",
    }
    assert outcome.done == 3
    assert set(laboratory.measured) == {GRANDPARENT, *PARENTS}
    for u, message in outcome.failed:
        (row,) = store.read(u).to_dict("records")
        assert (row["status"], row["message"], row["method"]) == ("error", message, u.method)
    assert sorted(store.read_all("free")["method"]) == ["grandparent", "parent-0", "parent-2"]


def test_a_later_run_tries_again_what_failed_and_only_that(laboratory, store):
    laboratory.broken = {PARENTS[1]}
    run(CHILDREN, store)
    laboratory.broken = set()
    laboratory.measured.clear()
    outcome = run(CHILDREN, store)
    assert (outcome.done, outcome.skipped, outcome.failed) == (5, 3, ())
    assert set(laboratory.measured) == {PARENTS[1], *CHILDREN}
    assert store.read_all("free")["method"].nunique() == 8


def test_rows_that_cannot_be_stored_fail_their_unit_alone(laboratory, store):
    laboratory.bodies[PARENTS[0]] = lambda: [{"metric": "m", "value": "not a number"}]
    outcome = run(PARENTS, store)
    ((failed, message),) = outcome.failed
    assert failed == PARENTS[0]
    assert "not a number" in message
    assert outcome.done == 3


# --- processes ---


def test_rows_do_not_depend_on_the_number_of_processes(results, tmp_path):
    chosen = [u for u in units_of("agreement", "detection") if u.seed == 0]
    parallel = Store(tmp_path / "parallel")
    assert run(chosen, parallel, jobs=2).failed == ()
    for experiment in ("values", "agreement", "detection"):
        alone = without_timings(results, experiment).query("seed == 0").reset_index(drop=True)
        pd.testing.assert_frame_equal(without_timings(parallel, experiment), alone, check_exact=True)


def test_two_runs_at_once_compute_each_unit_once(tmp_path, repository):
    command = [sys.executable, "-m", "tests.inrun_bench.counted_run", str(tmp_path / "results"), str(tmp_path / "log")]
    both = [subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    units = {counted_run.NEED, *counted_run.UNITS}
    assert sorted((tmp_path / "log").read_text().split()) == sorted(u.method for u in units)
    assert len(files(tmp_path / "results")) == len(units)
    assert all(answer.split()[2] == "0" for answer in answers)


def test_killing_a_run_loses_the_units_in_flight_and_nothing_else(results, tmp_path, repository, tiny_profile, capsys):
    chosen = units_of("values", "agreement")
    arguments = ["run", "values", "agreement", "--task", TASK, "--method", *METHODS, "--quiet", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "tests.inrun_bench.tiny_command", *arguments, "--jobs", "2"]
    killed = subprocess.Popen(command, cwd=repository, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("rows/*.parquet"))) < 3:
            assert killed.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(killed.pid, signal.SIGKILL)  # and its workers
        killed.wait()
    time.sleep(0.5)
    before = files(tmp_path)
    assert 3 <= len(before) < len(chosen)

    assert main([*arguments, "--jobs", "1"]) == 0
    counts = f"{len(chosen) - len(before)} units done, {len(before)} were there already, 0 failed"
    assert counts in capsys.readouterr().out
    after = files(tmp_path)
    assert len(after) == len(chosen)
    assert {name: after[name] for name in before} == before
    for experiment in ("values", "agreement"):
        undisturbed = without_timings(results, experiment)
        pd.testing.assert_frame_equal(without_timings(Store(tmp_path), experiment), undisturbed, check_exact=True)
