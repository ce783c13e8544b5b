import contextlib
import gc
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pandas as pd
import psutil
import pytest

from inrun_bench.cli import main
from inrun_bench.runs import runner
from inrun_bench.runs.backends import BACKENDS, dask
from inrun_bench.runs.store import Store
from inrun_bench.runs.unit import Unit
from tests.inrun_bench.hazardous_run import hazard, run, send_hazards_alone
from tests.inrun_bench.tiny import TASK, files, units_of, without_timings
from tests.inrun_bench.tiny import run as run_experiments

OF_RAY = r"ignore:(unclosed file .*/session_|subprocess \d+ is still running):ResourceWarning"
CLUSTERS = ("dask", pytest.param("ray", marks=pytest.mark.filterwarnings(OF_RAY)))


@pytest.fixture
def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(autouse=True)
def collected(request):
    """What Ray (2.40) leaves to the collector, logs and processes that it killed, goes here, where it is ignored."""
    yield
    if "ray" in request.node.name:
        gc.collect()


# --- clusters that are running already: two workers each ---


@contextlib.contextmanager
def dask_cluster():
    import dask as dask_itself
    from distributed import LocalCluster

    with (
        dask_itself.config.set(dask.OF_THIS_MACHINE),
        LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster,
    ):
        yield cluster.scheduler_address


@contextlib.contextmanager
def ray_cluster():
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


@pytest.fixture(params=["local", *CLUSTERS])
def running(request):
    """Return the name of a backend and the address of its cluster."""
    start = {"local": contextlib.nullcontext, "dask": dask_cluster, "ray": ray_cluster}[request.param]
    with start() as address:
        yield request.param, address


# --- laws ---


@pytest.mark.parametrize("backend", ["local", *CLUSTERS])
def test_rows_do_not_depend_on_where_they_are_made_and_no_process_is_left(backend, results, tmp_path):
    """One job is enough to leave this process for a cluster, whose workers take seconds to start."""
    before = set(psutil.Process().children(recursive=True))
    chosen = [u for u in units_of("agreement", "detection") if u.seed == 0]
    store = Store(tmp_path / "out")
    outcome = run_experiments(chosen, store, jobs=2 if backend == "local" else 1, backend=backend)
    assert (outcome.skipped, outcome.failed) == (0, ())
    assert json.loads((store.root / "manifest.json").read_text())[-1]["backend"] == backend
    experiments = ("values", "agreement", "detection")
    names = {name for name in files(results.root) if name.split(".")[0] in experiments and ".0." in name}
    assert set(files(store.root)) == names
    for experiment in experiments:
        expected = without_timings(results, experiment).query("seed == 0").reset_index(drop=True)
        pd.testing.assert_frame_equal(without_timings(store, experiment), expected, check_exact=True)
    started = set(psutil.Process().children(recursive=True)) - before
    workers = [process for process in started if "resource_tracker" not in _command(process)]
    assert psutil.wait_procs(workers, timeout=20)[1] == []


@pytest.fixture
def pids(monkeypatch):
    """Ids of the processes that units were measured in, none of which takes seconds to start."""
    return send_hazards_alone(monkeypatch.setattr)


def test_what_dies_with_its_worker_is_done_by_another_and_what_kills_every_worker_fails_alone(
    running, pids, tmp_path, monkeypatch
):
    monkeypatch.setattr(runner, "LIVES", 2)
    backend, address = running
    need = hazard("need")
    poison = hazard("poison", need, dies=True)
    unlucky = hazard("unlucky", need, flag=tmp_path / "died")
    others = [hazard(f"other-{i}", need) for i in range(4)]
    child = hazard("child", unlucky, *others)
    orphan = hazard("orphan", poison)
    store = Store(tmp_path / "out")

    outcome = run([poison, unlucky, *others, child, orphan], store, jobs=2, backend=backend, scheduler=address)

    failed = dict(outcome.failed)
    assert set(failed) == {poison, orphan}
    assert failed[poison].startswith("WorkerDied: a worker died 2 times while running this unit: ")
    assert failed[orphan] == f"RuntimeError: needs '{poison}', which failed"
    for unit, message in failed.items():
        assert store.read(unit)[["status", "message"]].values.tolist() == [["error", message]]
    rows = store.read_all("hazards").set_index("method")
    assert (tmp_path / "died").exists()
    assert rows["value"].to_dict() == {"need": 1, "unlucky": 2, **{u.method: 2 for u in others}, "child": 1 + 5 * 2}
    assert len(pids) == 7
    assert os.getpid() not in pids

    kept = files(store.root)
    again = run([unlucky, *others, child], store, jobs=2)  # whatever made them, rows are rows
    assert (again.done, again.skipped, again.failed) == (0, 7, ())
    assert len(pids) == 7
    assert files(store.root) == kept


def test_a_scheduler_that_is_lost_ends_the_run_and_what_is_done_is_kept(pids, tmp_path):
    quick, slow = hazard("quick"), hazard("slow", seconds=60)
    store, address_file = Store(tmp_path / "out"), tmp_path / "scheduler.json"
    python = [sys.executable, "-m"]
    with contextlib.ExitStack() as stack:

        def start(command, *arguments):
            command = [*python, f"distributed.cli.dask_{command}", "--host", "127.0.0.1", *arguments]
            process = stack.enter_context(subprocess.Popen([*command, "--dashboard-address", "127.0.0.1:0"]))
            stack.callback(process.terminate)
            return process

        scheduler = start("scheduler", "--port", "0", "--scheduler-file", str(address_file))
        start("worker", "--scheduler-file", str(address_file), "--nthreads", "1", "--no-nanny")
        _wait_for(lambda: address_file.exists() and address_file.read_text().endswith("}"))
        address = json.loads(address_file.read_text())["address"]
        killer = threading.Thread(target=lambda: (_wait_for(lambda: store.has(quick)), scheduler.kill()))
        killer.start()
        with pytest.raises(ConnectionError, match=f"lost the Dask scheduler at '{address}'; what was finished is kept"):
            run([quick, slow], store, jobs=-1, backend="dask", scheduler=address)
        killer.join()
    assert store.has(quick)
    assert not store.has(slow)
    assert store.claim(slow) is not None


# --- clusters that are not there ---


@pytest.mark.usefixtures("tiny_profile")
@pytest.mark.parametrize(("backend", "address"), [("dask", "tcp://{}"), ("ray", "{}"), ("ray", "ray://{}")])
def test_a_cluster_that_is_not_there_is_named_within_seconds_and_nothing_is_lost(
    backend, address, free_port, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(dask, "SECONDS_TO_ANSWER", 1)
    address = address.format(f"127.0.0.1:{free_port}")
    chosen, store = ["agreement", "--task", TASK, "--method", "random"], Store(tmp_path / "out")
    store.write(Unit("values", TASK, "somebody's", 0), [{"metric": "value", "value": 1.0}])
    before = files(store.root)
    start = time.monotonic()
    assert (
        main(["run", *chosen, "--quiet", "--out", str(store.root), "--backend", backend, "--scheduler", address]) == 2
    )
    assert time.monotonic() - start < 30
    message = capsys.readouterr().err
    assert f"no {backend.capitalize()}" in message
    assert f"answers at '{address}', tried for" in message
    assert files(store.root) == before


@pytest.mark.parametrize(("backend", "package"), [("dask", "distributed"), ("ray", "ray")])
def test_a_package_that_is_missing_is_named_with_the_extra_that_brings_it(backend, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with (
        pytest.raises(ValueError, match=rf"needs the package '{package}'.*pip install 'inrun-bench\[{backend}\]'"),
        BACKENDS[backend].connect(2, None),
    ):
        pass


@pytest.mark.parametrize(
    ("backend", "scheduler", "message"),
    [
        ("local", "tcp://127.0.0.1:8786", "scheduler 'tcp://127.0.0.1:8786' goes with a cluster"),
        ("ray", "here", "must be host:port, ray://host:port or auto; got 'here'"),
        ("ray", "localhost:port", "must be host:port, ray://host:port or auto; got 'localhost:port'"),
        ("dask", "here", "here"),
    ],
)
def test_an_address_that_is_none_is_refused(backend, scheduler, message):
    with pytest.raises(ValueError, match=message), BACKENDS[backend].connect(2, scheduler):
        pass


def _wait_for(condition):
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _command(process):
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""
