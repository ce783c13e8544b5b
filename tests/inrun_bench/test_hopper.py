"""What an ahead-of-time compiler makes of every candidate for Hopper, read without a GPU."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

pytest.importorskip("triton")

from inrun_bench.experiments.gpu import hopper

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "kernels.md").read_text()
SHOWN = PAGE.partition(hopper.BEGIN)[2].partition(hopper.END)[0].strip()


LAYERS, PASSES = "gpt2-small-qkv gpt2-small-proj llama3-8b-gate-up", "gpt2-small-passes"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the program says, in a process of its own: the interpreter is on in this one."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}
    command = [sys.executable, "-W", "ignore", "-m", "tests.inrun_bench.hopper_launches", LAYERS, PASSES]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def printed(found):
    return found["report"]


def rows(text):
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.split("\n\n")[0].splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_every_candidate_is_compiled_without_spilling_and_within_shared_memory(printed):
    assert len(rows(printed)) == len(list(hopper.candidates())) > 30
    for row in rows(printed):
        assert int(row["spilled_bytes"]) == 0, row
        assert int(row["registers"]) <= hopper.REGISTERS, row
        assert int(row["shared_bytes"]) <= hopper.SHARED_BYTES, row


def test_products_run_on_tensor_cores(printed):
    kernels = {row["kernel"] for row in rows(printed)}
    assert kernels == set(hopper.KERNELS)
    for row in rows(printed):
        assert (int(row["wgmma"]) > 0) == (row["kernel"] in hopper.PRODUCTS), row


def test_the_documentation_shows_what_the_compiler_says(printed):
    if version("triton") != pinned("triton"):
        pytest.skip("another Triton makes other code")
    assert printed == SHOWN


def pinned(package):
    (line,) = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith(f"{package}==")]
    return line.partition("==")[2]


def test_scores_cost_little_where_products_are_long():
    """By the counts, ever less as the product grows against the dots, and never less than nothing."""
    shares = []
    for positions in (1, 16, 256, 1024):
        with_scores, plain = hopper.predicted_seconds(16, positions, 768, 3072)
        assert with_scores >= plain > 0
        shares.append(plain / with_scores)
    assert shares == sorted(shares)
    assert shares[-1] > 0.98


BOX = 256  # elements of a tensor descriptor's box in one dimension, at most


def test_kernels_are_compiled_as_they_are_launched_at_the_shapes_of_the_benchmark(found):
    """Uninitialised tensors take no memory, so that layers of Llama 3 fit anywhere."""
    compiled = found["launched"]
    assert {kernel["kernel"] for kernel in compiled} == {
        *(f"{name}_kernel" for name in hopper.KERNELS),
        "finish_kernel",
    }
    for kernel in compiled:
        assert kernel["shared_bytes"] <= hopper.SHARED_BYTES
        assert (kernel["wgmma"] > 0) == (kernel["kernel"].partition("_")[0] in hopper.PRODUCTS)
        assert all(max(box) <= BOX for box in kernel["boxes"])
    assert all(len(kernel["boxes"]) == 3 for kernel in compiled if kernel["kernel"] == "wgrad_kernel")
