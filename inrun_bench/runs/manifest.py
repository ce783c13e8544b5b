"""The manifest of a folder of results: on what its rows were measured, run by run."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
import torch

from inrun_bench.runs.atomic import write_text
from inrun_bench.version import __version__, versions

__all__ = ["BrokenFileError", "begin_run", "count_units", "note_renewal", "read_json"]

RECORDED_PACKAGES = ("torch", "triton", "numpy", "scipy", "scikit-learn", "joblib", "pyarrow", "mlxtend")


class BrokenFileError(ValueError):
    """A file of the folder is not what was written; the message names it."""


def begin_run(path: Path, *, jobs: int, seeds: Sequence[int], backend: str) -> str:
    """Add a run, and the machine that drives it, to the manifest at `path`; return what the run is known by.

    A run like an earlier one, but for when it started, is known by the same name and counted with it.
    """
    runs = _read(path)
    run = {"backend": backend, "jobs": jobs, "seeds": list(seeds), **_environment()}
    name = hashlib.sha256(json.dumps(run).encode()).hexdigest()[:12]
    if all(earlier["run"] != name for earlier in runs):
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        _write(path, [*runs, {"run": name, "units": 0, "failed": 0, "started": started, **run}])
    return name


def count_units(path: Path, name: str, *, done: int, failed: int) -> None:
    """Add what a run has done by now to its entry in the manifest at `path`."""
    runs = _read(path)
    for run in runs:
        if run["run"] == name:
            run["units"] += done
            run["failed"] += failed
    _write(path, runs)


def note_renewal(path: Path, *, units: int, measured_again: int, seed: int) -> None:
    """Add to the manifest at `path` that rows of `units` were noted anew, `measured_again` of which were equal."""
    runs = _read(path)
    today = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    renewal = {"run": "renewal", "units": 0, "failed": 0, "started": today, "commit": _commit()}
    _write(path, [*runs, {**renewal, "noted_anew": units, "measured_again": measured_again, "seed": seed}])


def read_json(path: Path, remedy: str) -> Any:
    """Return what a JSON file holds.

    Raises
    ------
    BrokenFileError
        If it is no JSON; the message names the file and ends with `remedy`.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are of this kind
        raise BrokenFileError(f"{str(path)!r} is broken ({error}); {remedy}") from error


def _read(path: Path) -> list[dict[str, Any]]:
    remedy = "move it away: the next run begins a new one, and no rows are lost"
    runs = read_json(path, remedy) if path.exists() else []
    if not isinstance(runs, list) or not all(
        isinstance(run, dict) and {"run", "units", "failed"} <= set(run) for run in runs
    ):
        raise BrokenFileError(f"{str(path)!r} is broken (it holds no list of runs); {remedy}")
    return runs


def _write(path: Path, runs: list[dict[str, Any]]) -> None:
    write_text(path, json.dumps(runs, indent=2, ensure_ascii=False) + "\n")


def _environment() -> dict[str, Any]:
    return {
        "commit": _commit(),
        "processor": _processor(),
        "cores": joblib.cpu_count(),
        "threads_a_unit": 1,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {"inrun-bench": __version__, **versions(RECORDED_PACKAGES)},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    """Return the commit of the checkout that this code lies in, with a plus sign if it was changed since; or None."""
    git = shutil.which("git")
    if git is None:
        return None
    shown = subprocess.run(  # noqa: S603 - a fixed command
        [git, "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return shown.stdout.strip() or None
