"""The faults that ``python -m tests.faults`` plants are those of the present code."""

import shlex
from pathlib import Path

import pytest

from tests.faults.__main__ import tables

ROOT = Path(__file__).parents[1]
FAULTS = [fault for faults in tables().values() for fault in faults]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.says for fault in FAULTS])
def test_each_fault_can_be_planted_and_has_tests(fault):
    source = (ROOT / fault.file).read_text()
    compile(fault.planted_in(source), fault.file, "exec")
    for argument in shlex.split(fault.tests):
        path, _, name = argument.partition("::")
        if path.startswith("tests/"):
            assert f"def {name.partition('[')[0]}(" in (ROOT / path).read_text() if name else (ROOT / path).exists()
