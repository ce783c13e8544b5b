"""On what the rows of a folder were measured, by its manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from inrun_bench.report.coverage import numbers
from inrun_bench.runs.manifest import BrokenFileError, read_json

__all__ = ["environment", "read_runs", "runs_of"]

COLUMNS = ("started", "commit", "seeds", "units", "failed", "backend")
BESIDE = ("run", "jobs", *COLUMNS)
SHORT = 12  # characters of a commit
NAMES = {"threads_a_unit": "threads a unit"}


def read_runs(path: Path) -> list[dict[str, Any]]:
    """Return the runs in the manifest at `path`; none where there is no such file.

    Raises
    ------
    BrokenFileError
        If the file holds no list of runs.
    """
    remedy = "move it away: the page is made without it"
    runs = read_json(path, remedy) if path.exists() else []
    if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
        raise BrokenFileError(f"{str(path)!r} is broken (it holds no list of runs); {remedy}")
    return runs


def runs_of(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return when and from which commit each run measured what, in words, the first run first."""
    return [{name: _told(name, run.get(name)) for name in COLUMNS} for run in runs]


def environment(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, int]]]]:
    """Return what the runs were measured on: each thing, the values that it had, and in how many runs."""
    found: dict[str, dict[str, int]] = {}
    for run in runs:
        for name, value in _flat(run):
            values = found.setdefault(name, {})
            values[value] = values.get(value, 0) + 1
    return [(name, list(values.items())) for name, values in found.items()]


def _flat(run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in run.items():
        if isinstance(value, Mapping):
            yield from ((str(inner), _told(str(inner), of)) for inner, of in value.items())
        elif name not in BESIDE:
            yield NAMES.get(name, name), _told(name, value)


def _told(name: str, value: Any) -> str:
    if value is None:
        return "unknown" if name == "commit" else "none"
    if name == "commit":
        return str(value)[:SHORT] + ("+ (changed since)" if str(value).endswith("+") else "")
    if name == "seeds":
        return numbers(value)
    if name == "started":
        return str(value).replace("T", " ").replace("+00:00", " UTC")
    return str(value)
