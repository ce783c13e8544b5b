import multiprocessing
import os
from pathlib import Path

import pytest
from hypothesis import settings

from inrun_bench.runs.plan import PROFILES
from inrun_bench.runs.store import Store
from tests.inrun_bench.tiny import KNOBS, PROFILE, run, units_of

# the same examples at each run, and no time limit on an example: a slow machine is no defect
settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """All default experiments, run once in one process; for reading only. Test processes share the folder."""
    base = tmp_path_factory.getbasetemp()
    store = Store((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared-results")
    names = ("values", "agreement", "retraining", "scale", "removal", "detection", "fidelity", "residual", "overhead")
    outcome = run(units_of(*names), store)
    assert outcome.failed == ()
    return store


@pytest.fixture(scope="session")
def forking():
    """A way to start processes: forked from one that has imported, and done nothing else, all that takes seconds."""
    multiprocessing.set_forkserver_preload(["inrun_bench.cli", "tests.inrun_bench.gpu_hazards", "torch._dynamo"])
    return multiprocessing.get_context("forkserver")


@pytest.fixture(scope="session")
def repository():
    return Path(__file__).parents[2]


@pytest.fixture
def tiny_profile(monkeypatch):
    monkeypatch.setitem(PROFILES, "quick", PROFILE)
    for knobs, tiny in KNOBS:
        monkeypatch.setitem(knobs, "quick", tiny)
