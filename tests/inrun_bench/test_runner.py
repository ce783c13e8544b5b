import contextlib
import json
import os
import re
import signal
import threading
import time
import warnings
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import joblib
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from baselines import permutation_shapley
from inrun_bench.runs import fingerprint, runner
from inrun_bench.runs.backends import BACKENDS, Workers
from inrun_bench.runs.run_rows import RunRows
from inrun_bench.runs.store import Store
from inrun_bench.runs.unit import Unit
from tests.baselines.known_games import Table
from tests.inrun_bench import counted_run, hazardous_run
from tests.inrun_bench.tiny import files

EXPERIMENTS = {}
"""Those of the laboratory in use."""


def run(units, store, **how):
    return runner.run(units, store, EXPERIMENTS, **how)


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


Laboratory.measure.code_identity = (
    "the same, whatever it has noted"  # and it holds a lock, of which nobody knows a state
)


@pytest.fixture
def laboratory(monkeypatch):
    found = Laboratory()
    experiments = {
        "free": SimpleNamespace(EXCLUSIVE=False, measure=found.measure),
        "alone": SimpleNamespace(EXCLUSIVE=True, measure=found.measure),
    }
    for name, experiment in experiments.items():
        monkeypatch.setitem(EXPERIMENTS, name, experiment)
    return found


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


def unit(method, *needs, experiment="free", seed=0):
    return Unit(experiment, "task", method, seed, needs=needs)


GRANDPARENT = unit("grandparent")
PARENTS = tuple(unit(f"parent-{i}", GRANDPARENT) for i in range(3))
CHILDREN = tuple(unit(f"child-{i}", *PARENTS) for i in range(4))


@contextlib.contextmanager
def threads(jobs, scheduler):
    """Workers that share this process, and so the laboratory."""
    with ThreadPoolExecutor(jobs) as pool:
        yield Workers(pool.submit, slots=lambda: jobs, deaths=lambda _: 0)


@pytest.fixture
def local(monkeypatch):
    """Put workers of the test's own in the place of processes."""

    def replace(connect):
        monkeypatch.setitem(BACKENDS._all(), "local", SimpleNamespace(connect=connect))

    return replace


@pytest.fixture(params=[1, 2, 4])
def jobs(request, local):
    local(threads)
    return request.param


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


def test_units_without_needs_of_each_other_run_at_once(laboratory, store, local):
    local(threads)
    together = threading.Barrier(3)
    for parent in PARENTS:
        laboratory.bodies[parent] = lambda: [{"metric": "place", "value": together.wait(10)}]
    assert run(PARENTS, store, jobs=3).failed == ()


def test_a_unit_starts_when_its_own_needs_are_done_whatever_else_runs(laboratory, store, local):
    local(threads)
    slow, quick = unit("slow"), unit("quick")
    child, done = unit("child", quick), threading.Event()
    laboratory.bodies[slow] = lambda: [{"metric": "waited", "value": done.wait(10)}]
    laboratory.bodies[child] = lambda: [{"metric": "set", "value": done.set() or 1.0}]
    run([slow, quick, child], store, jobs=2)
    assert store.read(slow)["value"].tolist() == [1.0]


def test_an_exclusive_unit_may_be_needed_by_another(laboratory, store, jobs):
    timed = unit("timed", GRANDPARENT, experiment="alone")
    assert run([unit("child", timed), *PARENTS], store, jobs=jobs).failed == ()
    assert laboratory.beside[timed] == set()
    assert laboratory.measured[-2:] == [timed, unit("child", timed)]


def test_exclusive_units_come_last_and_alone(laboratory, store, jobs):
    exclusive = [unit(f"timed-{i}", *PARENTS[:i], experiment="alone") for i in range(3)]
    for u in (*exclusive, *PARENTS):
        laboratory.bodies[u] = lambda: [{"metric": "slept", "value": time.sleep(0.1)}]
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


# --- out of date ---


@pytest.fixture
def code(monkeypatch):
    """What stands for the code of each unit's method; a test may change it."""
    found = {}

    def parts(unit, _measure):
        return {"method": found.get(unit.method, "old")}

    monkeypatch.setattr(fingerprint, "code_parts", parts)
    monkeypatch.setattr(runner, "code_parts", parts)
    return found


def test_what_follows_from_changed_code_is_measured_again_and_what_it_took_the_place_of_is_gone(
    laboratory, store, code
):
    run(CHILDREN, store)
    store.pack()
    laboratory.measured.clear()
    code["parent-1"] = "new"
    laboratory.bodies[PARENTS[1]] = lambda: [{"metric": "needed", "value": 10.0}]
    outcome = run(CHILDREN, store)
    assert set(laboratory.measured) == {PARENTS[1], *CHILDREN}
    assert outcome.outdated == {"the code of method 'parent-1'": 1, "what they were computed from": 4}
    assert (outcome.done, outcome.skipped) == (5, 3)
    rows = store.read_all("free").set_index("method")["value"]
    assert len(rows) == 8
    assert rows["child-0"] == 1 + 2 + 10 + 2
    assert run(CHILDREN, store).done == 0


def test_what_another_run_has_measured_in_the_meantime_is_not_measured_again(laboratory, store, code):
    """It stores the rows of a child while the parent is measured, as another run does that was faster."""
    child = unit("child", GRANDPARENT)

    def another_run():
        run_rows = RunRows(Store(store.root), EXPERIMENTS)
        run_rows.write(GRANDPARENT, [{"metric": "needed", "value": 1.0}])
        run_rows.write(child, [{"metric": "needed", "value": 5.0}])
        return [{"metric": "needed", "value": 1.0}]

    laboratory.bodies[GRANDPARENT] = another_run
    assert run([child], store).failed == ()
    assert laboratory.measured == [GRANDPARENT]
    assert store.read(child)["value"].item() == 5


def test_rows_of_which_nobody_noted_what_they_follow_from_are_measured_again(laboratory, store, code):
    store.write(GRANDPARENT, [{"metric": "needed", "value": 7.0}])
    assert run([GRANDPARENT], store).outdated == {"nobody noted what they follow from": 1}
    assert store.read(GRANDPARENT)["value"].item() == 1


def test_by_force_all_is_measured_again_once(laboratory, store):
    run(CHILDREN, store)
    laboratory.measured.clear()
    outcome = run(CHILDREN, store, force=True)
    assert (outcome.done, outcome.skipped) == (8, 0)
    assert sorted(map(str, laboratory.measured)) == sorted(map(str, (GRANDPARENT, *PARENTS, *CHILDREN)))


@pytest.mark.parametrize("force", [False, True])
def test_a_unit_that_fails_when_it_is_measured_again_keeps_its_rows_and_stays_out_of_date(
    laboratory, store, code, force
):
    run(CHILDREN, store)
    before = files(store.root)
    code["grandparent"] = "new"
    laboratory.broken = {GRANDPARENT}
    for _ in range(2):
        outcome = run(CHILDREN, store, force=force)
        assert (outcome.done, len(outcome.failed)) == (0, 8)  # nothing is computed from what is out of date
        assert files(store.root) == before
    laboratory.broken = set()
    assert run(CHILDREN, store).done == 8


def test_rows_that_are_given_are_stored_without_a_worker_and_handed_on(laboratory, store):
    given = replace(unit("given", experiment="known"), given=({"metric": "known", "value": 41.0},))
    outcome = run([unit("child", given)], store)
    assert (outcome.done, outcome.failed) == (2, ())
    assert laboratory.measured == [unit("child", given)]
    assert store.read(unit("child", given))["value"].item() == 42


def test_rows_say_which_run_measured_them(laboratory, store):
    run(PARENTS, store)
    (entry,) = json.loads((store.root / "manifest.json").read_text())
    assert {provenance.run for provenance in store.units().values()} == {entry["run"]}
    assert (entry["units"], entry["failed"]) == (4, 0)


def test_the_manifest_counts_what_was_done_and_what_failed(laboratory, store):
    laboratory.broken = {PARENTS[1]}
    run(CHILDREN, store)
    (entry,) = json.loads((store.root / "manifest.json").read_text())
    assert (entry["units"], entry["failed"]) == (3, 5)


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


def test_ctrl_c_leaves_no_rows_of_half_an_estimate(laboratory, store):
    def interrupt(_estimate):
        raise KeyboardInterrupt

    def estimate():
        valuation = permutation_shapley(Table([0.0, 1.0]), 10, rng=0, stop=interrupt)
        return [{"metric": "value", "value": value} for value in valuation.values]

    laboratory.bodies[GRANDPARENT] = estimate
    with warnings.catch_warnings(), pytest.raises(KeyboardInterrupt):
        warnings.simplefilter("default")  # as it is outside of these tests
        run([GRANDPARENT], store)
    assert not store.has(GRANDPARENT)
    assert files(store.root) == {}


def test_rows_that_cannot_be_stored_fail_their_unit_alone(laboratory, store):
    laboratory.bodies[PARENTS[0]] = lambda: [{"metric": "m", "value": "not a number"}]
    outcome = run(PARENTS, store)
    ((failed, message),) = outcome.failed
    assert failed == PARENTS[0]
    assert "not a number" in message
    assert outcome.done == 3


# --- threads ---


@pytest.fixture
def two_threads():
    """Let torch and the libraries below NumPy take two threads, as they do where nobody says otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with threadpool_limits(2):
        yield
    torch.set_num_threads(before)


def test_a_unit_takes_one_thread_whatever_it_calls(laboratory, two_threads):
    """Torch's wheels hold libraries that have threads of their own, and say how many in a text."""
    laboratory.bodies[GRANDPARENT] = lambda: [
        {
            "libraries": [library["num_threads"] for library in threadpool_info()],
            "torch": [int(n) for n in re.findall(r"max_threads\(\) : (\d+)", torch.__config__.parallel_info())],
            "joblib": [joblib.effective_n_jobs(3)],
        }
    ]
    assert any(library["num_threads"] == 2 for library in threadpool_info())
    code = runner.code_parts(GRANDPARENT, laboratory.measure)
    answer = runner._measure(laboratory.measure, GRANDPARENT, {}, code)
    assert {kind: set(numbers) for kind, numbers in answer.rows[0].items()} == {
        "libraries": {1},
        "torch": {1},
        "joblib": {1},
    }


# --- workers ---


def mortal(deaths, counted=1):
    """Workers of which as many die of each unit as `deaths` says, by method; each Future tells of `counted` deaths."""
    left = dict(deaths)

    def submit(call, measure, unit, *arguments):
        future = Future()
        if left.get(unit.method, 0) > 0:
            left[unit.method] -= counted
            future.set_exception(ChildProcessError("killed"))
        else:
            future.set_result(call(measure, unit, *arguments))
        return future

    @contextlib.contextmanager
    def connect(jobs, scheduler):
        yield Workers(submit, slots=lambda: 1, deaths=lambda error: counted * isinstance(error, ChildProcessError))

    return connect


@pytest.mark.parametrize("deaths", range(runner.LIVES + 3))
@pytest.mark.parametrize("counted", [1, 2])
def test_a_unit_may_cost_so_many_workers_and_no_more(laboratory, store, local, deaths, counted):
    local(mortal({"parent-1": deaths}, counted))
    outcome = run(PARENTS, store)
    told = counted * -(-deaths // counted)  # deaths come to light in groups
    if told < runner.LIVES:
        assert (outcome.done, outcome.failed) == (4, ())
    else:
        reached = counted * -(-runner.LIVES // counted)
        message = f"WorkerDied: a worker died {reached} times while running this unit: killed"
        assert (outcome.done, outcome.failed) == (3, ((PARENTS[1], message),))
        assert store.read(PARENTS[1])["message"].tolist() == [message]


def test_what_goes_wrong_on_the_way_fails_its_unit_alone(laboratory, store, local):
    @contextlib.contextmanager
    def connect(jobs, scheduler):
        def submit(call, measure, unit, *arguments):
            future = Future()
            if unit == PARENTS[0]:
                future.set_exception(ModuleNotFoundError("No module named 'acme'"))
            else:
                future.set_result(call(measure, unit, *arguments))
            return future

        yield Workers(submit, slots=lambda: 1, deaths=lambda _: 0)

    local(connect)
    outcome = run(PARENTS, store)
    assert outcome.failed == ((PARENTS[0], "ModuleNotFoundError: No module named 'acme'"),)
    assert outcome.done == 3


def test_a_cluster_that_has_lost_all_its_workers_ends_the_run_and_what_is_done_is_kept(
    laboratory, store, local, monkeypatch
):
    monkeypatch.setattr(runner, "PATIENCE_SECONDS", 0.3)

    @contextlib.contextmanager
    def connect(jobs, scheduler):
        def submit(call, *arguments):
            future = Future()
            if not laboratory.measured:
                future.set_result(call(*arguments))
            return future

        yield Workers(submit, slots=lambda: 0 if laboratory.measured else 2, deaths=lambda _: 0)

    local(connect)
    with pytest.raises(ConnectionError, match="has had no worker for"):
        run(CHILDREN, store, jobs=-1)
    assert store.has(GRANDPARENT)
    assert store.claim(PARENTS[0]) is not None  # the claims of what was in flight are given back


def lost_when_asked_for_room(submitted):
    def slots():
        if submitted:
            raise ConnectionError("lost")
        return 1

    return lambda call, *arguments: submitted.append(call) or Future(), slots


def lost_when_sent_to(submitted):
    def submit(call, *arguments):
        raise ConnectionError("lost")

    return submit, lambda: 2


def lost_while_it_measures(submitted):
    def submit(call, *arguments):
        future = Future()
        future.cancel()
        future.set_running_or_notify_cancel()
        return future

    return submit, lambda: 2


@pytest.mark.parametrize("lost", [lost_when_asked_for_room, lost_when_sent_to, lost_while_it_measures])
def test_wherever_a_run_is_ended_no_claim_outlives_it_though_its_exception_does(lost, laboratory, store, local):
    """A traceback keeps the frames of the run, and in these their locks."""

    @contextlib.contextmanager
    def connect(jobs, scheduler):
        submit, slots = lost([])
        yield Workers(submit, slots, deaths=lambda _: 0)

    local(connect)
    roots = [unit("one"), unit("two")]
    with pytest.raises((ConnectionError, CancelledError)) as caught:
        run(roots, store, jobs=-1)
    assert None not in [store.claim(root) for root in roots], caught


def test_what_cannot_be_written_ends_the_run_without_a_claim(laboratory, store, monkeypatch):
    def full(_store, *_):
        raise OSError("No space left on device")

    monkeypatch.setattr(Store, "write", full)
    with pytest.raises(OSError, match="No space left") as caught:
        run([GRANDPARENT], store)
    assert store.claim(GRANDPARENT) is not None, caught


def test_units_in_flight_are_no_more_than_jobs_and_no_more_than_there_are_workers(laboratory, store, local):
    seen, slots, full = [], 3, threading.Event()

    @contextlib.contextmanager
    def connect(jobs, scheduler):
        def submit(call, *arguments):
            seen.append(future := pool.submit(call, *arguments))
            in_flight.append(sum(not f.done() for f in seen))
            if in_flight[-1] >= most:
                full.set()
            return future

        with ThreadPoolExecutor(8) as pool:
            yield Workers(submit, slots=lambda: slots, deaths=lambda _: 0)

    local(connect)
    for seed, (jobs, most) in enumerate([(2, 2), (8, 3), (-1, 3)]):
        units = [unit(f"slow-{i}", seed=seed) for i in range(8)]
        for u in units:
            laboratory.bodies[u] = lambda: [{"metric": "slept", "value": full.wait(20) and time.sleep(0.05)}]
        in_flight = []
        full.clear()
        run(units, store, jobs=jobs)
        assert max(in_flight) == most


def test_a_worker_with_other_code_or_libraries_measures_nothing(laboratory, store, local, monkeypatch):
    here = {"libraries": "torch 2.13.0", "experiment": "as it is"}
    monkeypatch.setattr(runner, "code_parts", lambda _unit, _measure: here)

    @contextlib.contextmanager
    def connect(jobs, scheduler):
        def submit(call, measure, unit, needs, code):
            future = Future()
            future.set_result(call(measure, unit, needs, {**code, "libraries": "torch 2.11.0"}))
            return future

        yield Workers(submit, slots=lambda: 1, deaths=lambda _: 0)

    local(connect)
    ((_, message),) = run([GRANDPARENT], store).failed
    assert "the worker and the run differ in libraries (torch 2.11.0; now torch 2.13.0)" in message
    assert laboratory.measured == []


def test_a_unit_keeps_to_one_process_whatever_it_asks_joblib_for(laboratory, store):
    pids = joblib.delayed(os.getpid)
    laboratory.bodies[GRANDPARENT] = lambda: [
        {"metric": "elsewhere", "value": float({*joblib.Parallel(n_jobs=2)(pids() for _ in range(4))} != {os.getpid()})}
    ]
    run([GRANDPARENT], store)
    assert store.read(GRANDPARENT)["value"].tolist() == [0.0]


# --- processes ---


def test_two_runs_at_once_compute_each_unit_once(tmp_path, forking):
    """One is here, the other in a process of its own."""
    store, log, answer = Store(tmp_path / "results"), tmp_path / "log", forking.Queue()
    other = forking.Process(target=counted_run.run_here, args=(store.root, log, answer))
    other.start()
    outcome = counted_run.run_beside_another(store, log)
    _, _, failed = answer.get(timeout=300)
    other.join()
    units = {counted_run.NEED, *counted_run.UNITS}
    assert sorted(log.read_text().split()) == sorted(u.method for u in units)
    assert len(files(store.root)) == len(units)
    assert outcome.failed == failed == ()


def test_killing_a_run_loses_the_units_in_flight_and_nothing_else(tmp_path, forking, monkeypatch):
    store = Store(tmp_path / "killed")
    killed = forking.Process(target=hazardous_run.run_in_a_group_of_its_own, args=(store.root,))
    killed.start()
    try:
        deadline = time.monotonic() + 300
        while len(files(store.root)) < 3:
            assert killed.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(killed.pid, signal.SIGKILL)  # and its workers
        killed.join()
    before = files(store.root)
    everything = 1 + len(hazardous_run.UNITS)
    assert 3 <= len(before) < everything

    pids = hazardous_run.send_hazards_alone(monkeypatch.setattr)
    outcome = hazardous_run.run(hazardous_run.UNITS, store)
    assert (outcome.done, outcome.skipped, outcome.failed) == (everything - len(before), len(before), ())
    assert len(pids) == outcome.done
    after = files(store.root)
    assert len(after) == everything
    assert {name: after[name] for name in before} == before
    values = store.read_all("hazards").set_index("method")["value"]
    assert values.to_dict() == {"need": 1, **{u.method: 2 for u in hazardous_run.UNITS}}
