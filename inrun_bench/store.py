"""The store: rows on disk, one Parquet file a unit, written atomically and named by what defines the unit.

A row is a flat record. All rows have the columns of :data:`SCHEMA`; the settings of the experiment stand beside them.
Running a unit again finds its file and does nothing; a file that is there is whole.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock, Timeout

from inrun_bench import __version__
from inrun_bench.atomic import replacing
from inrun_bench.unit import Row, Unit
from inrun_bench.version import versions

__all__ = ["SCHEMA", "Store"]

SCHEMA = pa.schema(
    [
        ("experiment", pa.string()),
        ("task", pa.string()),
        ("method", pa.string()),
        ("seed", pa.int64()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("stderr", pa.float64()),
        ("evaluations", pa.int64()),
        ("seconds", pa.float64()),
        ("peak_bytes", pa.int64()),
        ("status", pa.string()),
        ("message", pa.string()),
    ]
)

FORMAT = 1  # of the folder; a change of what stands where raises it
RECORDED_PACKAGES = ("torch", "triton", "numpy", "scipy", "scikit-learn", "joblib", "pyarrow", "mlxtend")


class Store:
    """A folder of results.

    Parameters
    ----------
    root : Path
        The folder; made where it does not exist, unless `create` is False.
    create : bool
        Whether a missing folder is made or refused.

    Raises
    ------
    ValueError
        If the folder was written by another version, or is not a results folder.
    """

    def __init__(self, root: Path, *, create: bool = True) -> None:
        self.root = root
        self._stamp = {"format": FORMAT, "inrun_bench": __version__}
        marker = root / "store.json"
        if create and not marker.exists():
            with self._lock("store"):  # another run may be about to make it
                self._make(marker)
        if not marker.exists():
            raise ValueError(f"no results in {str(root)!r}: it has no store.json; run 'inrun-bench run' first")
        found = json.loads(marker.read_text())
        if found != self._stamp:
            raise ValueError(
                f"results folder {str(root)!r} was written by inrun-bench {found.get('inrun_bench')} "
                f"(format {found.get('format')}); this is {__version__} (format {FORMAT}). "
                "Choose another folder with --out, or remove this one"
            )

    def has(self, unit: Unit) -> bool:
        """Return whether the unit's rows are there, without an error among them."""
        path = self._path(unit)
        return path.exists() and "error" not in pq.read_table(path, columns=["status"])["status"].to_pylist()

    def read(self, unit: Unit) -> pd.DataFrame:
        """Return the rows of one unit."""
        return pq.read_table(self._path(unit)).to_pandas()

    def read_all(self, experiment: str) -> pd.DataFrame:
        """Return all rows of an experiment that are not errors; empty where it never ran."""
        paths = sorted((self.root / "rows").glob(f"{experiment}.*.parquet"))
        tables = [pq.read_table(path) for path in paths] or [SCHEMA.empty_table()]
        frame = pa.concat_tables(tables, promote_options="permissive").to_pandas()
        return frame[frame["status"] == "ok"].reset_index(drop=True)

    def write(self, unit: Unit, rows: Sequence[Row]) -> None:
        """Write the unit's rows, whole or not at all; a row's own columns come before the unit's."""
        records = [{"status": "ok", "message": "", **unit.columns, **row} for row in rows]
        extra = sorted({name for record in records for name in record} - set(SCHEMA.names))
        inferred = pa.Table.from_pylist([{name: record.get(name) for name in extra} for record in records])
        schema = pa.schema([*SCHEMA, *(inferred.schema.field(name) for name in extra)])
        table = pa.Table.from_pylist(records, schema=schema)
        path = self._path(unit)
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as partial:
            pq.write_table(table, partial, compression="zstd")

    def claim(self, unit: Unit) -> FileLock | None:
        """Keep other runs of this machine from the unit until the lock is released, or this process ends.

        Returns None, at once, where another run holds it.
        """
        lock = self._lock(unit.key)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        return lock

    def record_run(self, jobs: int, seeds: Sequence[int], units: int, backend: str = "local") -> None:
        """Add a run that is about to do `units` units of work, and the machine that drives it, to the manifest.

        A run like the last one, but for its size and when it started, is added to that.
        """
        path = self.root / "manifest.json"
        run = {"units": units, "backend": backend, "jobs": jobs, "seeds": list(seeds), **_environment()}
        with self._lock("manifest"):
            runs = json.loads(path.read_text()) if path.exists() else []
            if runs and {**runs[-1], "units": units, "started": run["started"]} == run:
                last = runs.pop()
                run = {**last, "units": last["units"] + units}
            _write_atomically(path, json.dumps([*runs, run], indent=2) + "\n")

    def _make(self, marker: Path) -> None:
        if marker.exists():  # another run was faster
            return
        if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            raise ValueError(f"{str(self.root)!r} is not a results folder, and not empty; choose another with --out")
        self.root.mkdir(parents=True, exist_ok=True)
        _write_atomically(marker, json.dumps(self._stamp, indent=2) + "\n")

    def _lock(self, name: str) -> FileLock:
        claims = Path(tempfile.gettempdir()) / f"inrun-bench-claims-{os.getuid()}"
        claims.mkdir(exist_ok=True)
        folder = hashlib.sha256(str(self.root.resolve()).encode()).hexdigest()[:16]
        return FileLock(claims / f"{folder}-{name}")

    def _path(self, unit: Unit) -> Path:
        return self.root / "rows" / f"{unit.experiment}.{unit.task}.{unit.method}.{unit.seed}.{unit.key}.parquet"


def _environment() -> dict[str, Any]:
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
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
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    """Return the commit of the checkout that this code lies in, with a plus sign if it was changed since; or None."""
    git = shutil.which("git")
    if git is None:
        return None
    where = Path(__file__).parent
    shown = subprocess.run(  # noqa: S603 - a fixed command
        [git, "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
        cwd=where,
        capture_output=True,
        text=True,
        check=False,
    )
    return shown.stdout.strip() or None


def _write_atomically(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text)
