"""Rows as a run sees them: up to date or to be measured again, and written with where they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from inrun_bench.runs.fingerprint import Fingerprints, changes
from inrun_bench.runs.provenance import Provenance
from inrun_bench.runs.store import Overlay, Store
from inrun_bench.runs.unit import Measured, Row, Unit

__all__ = ["RunRows", "changes_since"]


class RunRows:
    """The rows of a store, as a run sees them.

    Parameters
    ----------
    store : Store
        Where they are, and go.
    experiments : mapping of str to Measured
        What measures them, by name.
    force : bool
        Whether nothing is up to date but what this run has written.

    Attributes
    ----------
    run : str
        Name of this run in the manifest; set it when there is one.
    written : set of Unit
        Those that this run has measured.
    """

    def __init__(self, store: Store, experiments: Mapping[str, Measured], *, force: bool = False) -> None:
        self.store = store
        self.run = ""
        self.written: set[Unit] = set()
        self._force = force
        self._fingerprints = Fingerprints(experiments)

    def up_to_date(self, unit: Unit) -> bool:
        """Return whether the unit need not be measured: this run has, or what is there follows from the same."""
        if unit in self.written:  # also where nobody can see its code, which is never the same for a later run
            return True
        return not self._force and self.store.has(unit) and not self.changes(unit)

    def changes(self, unit: Unit) -> list[str]:
        """Return what has changed since the unit's rows were measured, in words; nothing where there are none."""
        return changes_since(unit, self.store, self._fingerprints)

    def write(self, unit: Unit, rows: Sequence[Row], seconds: float | None = None) -> None:
        """Write the rows of the unit, where they come from, and how long it took, where it was measured."""
        self._write(unit, rows, seconds)
        self.written.add(unit)

    def write_error(self, unit: Unit, message: str) -> None:
        """Write why there are no rows of the unit, but for a unit that has some, if out of date: they are kept."""
        if not self.store.has(unit):
            self._write(unit, [{"metric": "error", "status": "error", "message": message}])

    def _write(self, unit: Unit, rows: Sequence[Row], seconds: float | None = None) -> None:
        self.store.write(unit, rows, Provenance.of(unit, self._fingerprints.of(unit), self.run, seconds))


def changes_since(unit: Unit, stored: Store | Overlay, fingerprints: Fingerprints) -> list[str]:
    """Return what has changed since the unit's rows were stored, in words; nothing where there are none."""
    provenance = stored.provenance(unit) if stored.has(unit) else None
    return [] if provenance is None else changes(unit, provenance.fingerprint, fingerprints.of(unit))
