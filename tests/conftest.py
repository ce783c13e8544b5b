import os

import pytest
from hypothesis import settings

# Triton's interpreter runs kernels where there is no GPU; it must be asked for before Triton is first imported
os.environ.setdefault("TRITON_INTERPRET", "1")

# the same examples at each run, and no time limit on an example: a slow machine is no defect
settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")


def pytest_collection_modifyitems(items):
    """Have tests that share a fixture run in one process (`pytest -n auto --dist loadgroup`), which makes it once."""
    for item in items:
        for name in item.fixturenames:
            found = item._fixtureinfo.name2fixturedefs.get(name, ())
            shared = [each.baseid for each in found if each.scope == "module" or name == "results"]
            if shared:
                item.add_marker(pytest.mark.xdist_group(f"{name} of {shared[-1] or 'tests'}"))
