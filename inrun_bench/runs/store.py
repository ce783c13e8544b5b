"""The store: rows on disk, named by what defines the unit that they are of, and written atomically.

A row is a flat record. All rows have the columns of :data:`SCHEMA`; the settings of the experiment stand beside them,
and two columns that say where a row comes from: ``unit``, the name of its unit, and ``provenance``, what defines it and
what its rows follow from (:mod:`inrun_bench.runs.provenance`).

What was measured lies *loose*, one Parquet file a unit, until :meth:`Store.pack` puts all units of an experiment into
one file of the same form. Readers see no difference; a loose unit takes the place of one that is packed.
A file that is there is whole, and any change in it is found (:mod:`inrun_bench.attribution.ledger.parquet`).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock, Timeout

from inrun_bench import __version__
from inrun_bench.attribution.ledger.parquet import read_table, sealed
from inrun_bench.runs.atomic import replacing, write_text
from inrun_bench.runs.manifest import BrokenFileError, begin_run, count_units, note_renewal, read_json
from inrun_bench.runs.provenance import Provenance
from inrun_bench.runs.unit import Row, Unit

__all__ = ["SCHEMA", "Overlay", "Store"]

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
ORIGIN = pa.schema([("unit", pa.string()), ("provenance", pa.string())])

FORMAT = 2  # of the folder; a change of what stands where raises it


class _Pack(NamedTuple):
    """The packed rows of an experiment, and where those of each unit are: first row, number of rows."""

    table: pa.Table
    places: dict[str, tuple[int, int]]


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
        If the folder has another format, is not a results folder, or its ``store.json`` is broken.
    """

    def __init__(self, root: Path, *, create: bool = True) -> None:
        self.root = root
        self._packs: dict[Path, tuple[tuple[int, int], _Pack]] = {}
        marker = root / "store.json"
        if create and not marker.exists():
            with self._lock("store"):  # another run may be about to make it
                self._make(marker)
        if not marker.exists():
            raise ValueError(f"no results in {str(root)!r}: it has no store.json; run 'inrun-bench run' first")
        remedy = f"if the folder's rows are of this version, write {json.dumps(_stamp())} into it"
        found = read_json(marker, remedy)
        if not isinstance(found, dict) or "format" not in found:
            raise BrokenFileError(f"{str(marker)!r} is broken (it names no format); {remedy}")
        if found["format"] != FORMAT:
            raise ValueError(
                f"results folder {str(root)!r} was written by inrun-bench {found.get('inrun_bench')} "
                f"(format {found['format']}); this is {__version__} (format {FORMAT}). "
                "Choose another folder with --out, or remove this one"
            )

    def __str__(self) -> str:
        return repr(str(self.root))

    def has(self, unit: Unit) -> bool:
        """Return whether the unit's rows are there, without an error among them."""
        table = self._rows(unit)
        return table is not None and "error" not in table["status"].to_pylist()

    def read(self, unit: Unit) -> pd.DataFrame:
        """Return the rows of one unit; those of an error, too.

        Raises
        ------
        KeyError
            If there are none.
        """
        table = self._rows(unit)
        if table is None:
            raise KeyError(f"no rows of '{unit}' in {str(self.root)!r}")
        unused = [name for name in table.column_names if table[name].null_count == len(table)]
        return _frame(table.drop_columns([name for name in unused if name not in SCHEMA.names]))

    def read_all(self, experiment: str) -> pd.DataFrame:
        """Return all rows of an experiment that are not errors; empty where it never ran."""
        table = self._all_rows(experiment)
        return _frame(table.filter(pc.equal(table["status"], "ok")))

    def provenance(self, unit: Unit) -> Provenance | None:
        """Return where the rows of a unit come from; None where there are none."""
        table = self._rows(unit)
        return None if table is None else Provenance.from_json(table["provenance"][0].as_py())

    def units(self) -> dict[Unit, Provenance]:
        """Return all units of which there are rows, and where these come from."""
        names = self.experiments()
        tables = [table.select(ORIGIN.names) for name in names for table in self._tables(name, self._loose(name))]
        rows = pa.concat_tables(tables or [ORIGIN.empty_table()])
        told = rows.group_by("unit", use_threads=False).aggregate([("provenance", "first")])
        by_key = {
            name.rpartition(".")[2]: Provenance.from_json(text)
            for name, text in zip(told["unit"].to_pylist(), told["provenance_first"].to_pylist(), strict=True)
        }
        return {provenance.unit(by_key): provenance for provenance in by_key.values()}

    def experiments(self) -> list[str]:
        """Return the names of all experiments of which there are rows."""
        return sorted({path.name.partition(".")[0] for path in (self.root / "rows").glob("[!.]*.parquet")})

    def write(self, unit: Unit, rows: Sequence[Row], provenance: Provenance | None = None) -> None:
        """Write the unit's rows, whole or not at all; a row's own columns come before the unit's.

        Parameters
        ----------
        unit : Unit
            What the rows are of.
        rows : sequence of dict
            At least one.
        provenance : Provenance, optional
            Where they come from; of nothing but the unit where None.
        """
        if not rows:
            raise ValueError(f"'{unit}' has no rows; a unit returns at least one")
        origin = {"unit": self._path(unit).stem, "provenance": (provenance or Provenance.of(unit)).to_json()}
        records = [{"status": "ok", "message": "", **unit.columns, **row, **origin} for row in rows]
        known = [*SCHEMA, *ORIGIN]
        extra = sorted({name for record in records for name in record} - {field.name for field in known})
        inferred = pa.Table.from_pylist([{name: record.get(name) for name in extra} for record in records])
        schema = pa.schema([*known, *(inferred.schema.field(name) for name in extra)])
        self._write_table(unit, pa.Table.from_pylist(records, schema=schema))

    def drop_column(self, unit: Unit, name: str) -> None:
        """Write the unit's rows again without one of the columns that are not in :data:`SCHEMA`."""
        table = self._rows(unit)
        if table is None:
            raise KeyError(f"no rows of '{unit}' in {self}")
        self._write_table(unit, table.drop_columns([name]))

    def note(self, unit: Unit, provenance: Provenance, **columns: str) -> None:
        """Write the unit's rows again with another origin, and in `columns`, which must be there, one value for all."""
        table = self._rows(unit)
        if table is None:
            raise KeyError(f"no rows of '{unit}' in {self}")
        for name, text in {"provenance": provenance.to_json(), **columns}.items():
            same = pa.array([text] * len(table), pa.string())
            table = table.set_column(table.schema.get_field_index(name), name, same)
        self._write_table(unit, table)

    def copy_to(self, other: Store, unit: Unit, provenance: Provenance) -> None:
        """Write the unit's rows into another folder, with another origin."""
        table = self._rows(unit)
        if table is None:
            raise KeyError(f"no rows of '{unit}' in {self}")
        other._write_table(unit, table)
        other.note(unit, provenance)

    def pack(self) -> dict[str, int]:
        """Put all units of an experiment into one file, and return how many units each file holds.

        Units that a run is about to write stay as they are.
        """
        return {experiment: self._pack_up(experiment) for experiment in self.experiments()}

    def claim(self, unit: Unit) -> FileLock | None:
        """Keep other runs of this machine from the unit until the lock is released, or this process ends.

        Returns None, at once, where another run holds it.
        """
        return self._claim(unit.key)

    def begin_run(self, jobs: int, seeds: Sequence[int], backend: str = "local") -> str:
        """Add a run, and the machine that drives it, to the manifest; return what it is known by."""
        with self._lock("manifest"):
            return begin_run(self._manifest, jobs=jobs, seeds=seeds, backend=backend)

    def count_units(self, run: str, *, done: int, failed: int) -> None:
        """Add what a run has done by now to the manifest."""
        with self._lock("manifest"):
            count_units(self._manifest, run, done=done, failed=failed)

    def note_renewal(self, *, units: int, measured_again: int, seed: int) -> None:
        """Add to the manifest that rows were noted anew, see :mod:`inrun_bench.runs.renew`."""
        with self._lock("manifest"):
            note_renewal(self._manifest, units=units, measured_again=measured_again, seed=seed)

    @property
    def _manifest(self) -> Path:
        return self.root / "manifest.json"

    def _rows(self, unit: Unit) -> pa.Table | None:
        """Return the rows of a unit, loose or packed, in all columns that their file has."""
        loose = self._path(unit)
        if loose.exists():
            return read_table(loose)
        pack = self._packed(unit.experiment)
        return None if pack is None or loose.stem not in pack.places else pack.table.slice(*pack.places[loose.stem])

    def _write_table(self, unit: Unit, table: pa.Table) -> None:
        path = self._path(unit)
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as partial:
            partial.write_bytes(sealed(table, compression="zstd"))

    def _packed(self, experiment: str) -> _Pack | None:
        path = self._pack_path(experiment)
        if not path.exists():
            return None
        state = path.stat()
        stamp = (state.st_mtime_ns, state.st_size)
        if path not in self._packs or self._packs[path][0] != stamp:
            table = read_table(path)
            units = pc.run_end_encode(table["unit"].combine_chunks())
            ends = units.run_ends.to_pylist()
            places = zip(units.values.to_pylist(), [0, *ends[:-1]], ends, strict=True)
            self._packs[path] = (stamp, _Pack(table, {name: (start, end - start) for name, start, end in places}))
        return self._packs[path][1]

    def _loose(self, experiment: str) -> list[Path]:
        return sorted((self.root / "rows").glob(f"{experiment}.*.parquet"))

    def _tables(self, experiment: str, loose: Sequence[Path]) -> list[pa.Table]:
        """Return the rows in the loose files, and those of all packed units that are in none of them."""
        tables = [read_table(path) for path in loose]
        pack = self._packed(experiment)
        if pack is not None:
            replaced = pa.array([path.stem for path in loose], pa.string())
            tables.append(pack.table.filter(pc.invert(pc.is_in(pack.table["unit"], replaced))))
        return tables

    def _all_rows(self, experiment: str, loose: Sequence[Path] | None = None) -> pa.Table:
        """Return the rows of all packed units and of those in `loose` (all where None), in the order of their names."""
        loose = self._loose(experiment) if loose is None else loose
        pack = self._packed(experiment)
        if pack is not None and not loose:
            return pack.table  # which is in that order
        tables = self._tables(experiment, loose)
        if not tables:
            return pa.schema([*SCHEMA, *ORIGIN]).empty_table()
        try:
            table = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(
                f"units of {experiment!r} have columns of one name and of different kinds: {error}"
            ) from error
        return table.take(pc.sort_indices(table["unit"]))  # a stable sort: rows of a unit stay in their order

    def _pack_up(self, experiment: str) -> int:
        with self._lock(f"pack-{experiment}"):
            claims = {path: claim for path in self._loose(experiment) if (claim := self._claim(_key(path)))}
            try:
                table = self._all_rows(experiment, list(claims))
                if claims:
                    with replacing(self._pack_path(experiment)) as partial:
                        partial.write_bytes(_smallest(table))
                for path in claims:
                    path.unlink()
            finally:
                for claim in claims.values():
                    claim.release()
            return int(pc.count_distinct(table["unit"]).as_py())

    def _make(self, marker: Path) -> None:
        if marker.exists():  # another run was faster
            return
        if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            raise ValueError(f"{str(self.root)!r} is not a results folder, and not empty; choose another with --out")
        self.root.mkdir(parents=True, exist_ok=True)
        write_text(marker, json.dumps(_stamp(), indent=2) + "\n")

    def _claim(self, key: str) -> FileLock | None:
        lock = self._lock(key)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        return lock

    def _lock(self, name: str) -> FileLock:
        claims = Path(tempfile.gettempdir()) / f"inrun-bench-claims-{os.getuid()}"
        claims.mkdir(exist_ok=True)
        folder = hashlib.sha256(os.fsencode(self.root.resolve())).hexdigest()[:16]
        return FileLock(claims / f"{folder}-{name}")

    def _pack_path(self, experiment: str) -> Path:
        return self.root / "rows" / f"{experiment}.parquet"

    def _path(self, unit: Unit) -> Path:
        """Return the file of a loose unit, whose name without suffix is that of the unit."""
        return self.root / "rows" / f"{unit.experiment}.{unit.task}.{unit.method}.{unit.seed}.{unit.key}.parquet"


def _smallest(table: pa.Table) -> bytes:
    """Return rows as a file that takes little space: of numbers the bytes of one place side by side, nothing lost."""
    numbers = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    others = [name for name in table.column_names if name not in numbers]
    return sealed(table, compression="zstd", compression_level=19, use_dictionary=others, use_byte_stream_split=numbers)


@dataclass(frozen=True)
class Overlay:
    """Several folders of results, read as one: of a unit that is in several of them, the first has a say.

    Attributes
    ----------
    stores : tuple of Store
        The first one's rows come first.
    """

    stores: tuple[Store, ...]

    def has(self, unit: Unit) -> bool:
        """Return whether the unit's rows are in one of the folders, without an error among them."""
        return any(store.has(unit) for store in self.stores)

    def read(self, unit: Unit) -> pd.DataFrame:
        """Return the rows of one unit; KeyError if there are none without an error."""
        return self._holder(unit).read(unit)

    def provenance(self, unit: Unit) -> Provenance | None:
        """Return where the rows of a unit come from; KeyError if there are none without an error."""
        return self._holder(unit).provenance(unit)

    def _holder(self, unit: Unit) -> Store:
        for store in self.stores:
            if store.has(unit):
                return store
        raise KeyError(f"no rows of '{unit}' in {self}")

    def __str__(self) -> str:
        return " or ".join(map(str, self.stores))


def _frame(table: pa.Table) -> pd.DataFrame:
    """Return the rows without their origin: the columns of the schema, and the others by name."""
    others = sorted({*table.column_names} - {*SCHEMA.names, *ORIGIN.names})
    return table.select([*SCHEMA.names, *others]).to_pandas()


def _stamp() -> dict[str, Any]:
    return {"format": FORMAT, "inrun_bench": __version__}


def _key(path: Path) -> str:
    """Return the key of the unit whose rows lie loose in a file."""
    return path.stem.rpartition(".")[2]
