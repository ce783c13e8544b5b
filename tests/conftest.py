import functools
import gc
import os
import re
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]

# Triton's interpreter runs kernels where there is no GPU; it must be asked for before Triton is first imported
os.environ.setdefault("TRITON_INTERPRET", "1")

# the same examples at each run, and no time limit on an example: a slow machine is no defect
settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")


def pytest_collection_finish():
    """Keep the collector from looking, again and again, through what was imported and collected, and stays."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Have tests that share a costly fixture run in one process, which makes it once; others go where there is room."""
    from xdist.scheduler import LoadScopeScheduling

    class SharedFixtures(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return shared_by(nodeid.partition("::")[0]) or nodeid

    return SharedFixtures(config, log)


@functools.cache
def shared_by(file):
    """Return what names the fixtures, or kept results, that the tests of a file share; nothing if they share none."""
    source = (ROOT / file).read_text()
    if re.search(r"def \w+\(.*\bresults\b", source):  # a session's, see inrun_bench/conftest.py
        return "results"
    return file if re.search(r"scope=\"module\"|@(functools\.)?lru_cache", source) else None
