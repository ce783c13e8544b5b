"""What failed in a folder of results: units whose rows hold an error, and what it said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from inrun_bench.attribution.ledger.parquet import read_table
from inrun_bench.runs.provenance import Provenance
from inrun_bench.runs.unit import Unit

__all__ = ["Failure", "failures"]


@dataclass(frozen=True)
class Failure:
    """A unit that failed.

    Attributes
    ----------
    unit : Unit
        What was to be measured, without the units that it needs.
    message : str
        What the error said.
    """

    unit: Unit
    message: str


def failures(root: Path) -> list[Failure]:
    """Return what failed in the folder `root`, loose and packed units alike, by name."""
    found = []
    for table in _tables(root):
        errors = table.filter(pc.not_equal(table["status"], "ok"))
        for row in errors.select(["provenance", "message"]).to_pylist():
            found.append(Failure(Provenance.from_json(row["provenance"]).unit({}), row["message"] or ""))
    return sorted(dict.fromkeys(found), key=lambda failure: (str(failure.unit), failure.message))


def _tables(root: Path) -> Iterator[pa.Table]:
    """Yield the rows of all files; of a packed unit none that lies loose, too, which takes its place."""
    paths = sorted((root / "rows").glob("[!.]*.parquet"))
    loose = {path.stem for path in paths if "." in path.stem}
    for path in paths:
        table = read_table(path)
        if path.stem not in loose:
            table = table.filter(pc.invert(pc.is_in(table["unit"], pa.array(loose, pa.string()))))
        yield table
