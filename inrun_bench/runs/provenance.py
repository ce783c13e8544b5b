"""Where rows come from: the unit that they are of, what they follow from, and the run that measured them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from inrun_bench.runs.unit import Setting, Unit

__all__ = ["Provenance"]


@dataclass(frozen=True)
class Provenance:
    """Where the rows of a unit come from.

    Attributes
    ----------
    experiment, task, method, seed, settings
        What defines the unit, see :class:`~inrun_bench.runs.unit.Unit`.
    needs : tuple of str
        Keys of the units whose rows it read.
    fingerprint : mapping of str to str, or None
        What the rows follow from, part by part (:mod:`inrun_bench.runs.fingerprint`); None where nobody noted it.
    run : str
        Name of the run in the folder's manifest; empty where there is none.
    seconds : float, or None
        How long the unit took, all that it does included; None where nobody noted it.
    """

    experiment: str
    task: str
    method: str
    seed: int
    settings: Mapping[str, Setting]
    needs: tuple[str, ...]
    fingerprint: Mapping[str, str] | None = None
    run: str = ""
    seconds: float | None = None

    @classmethod
    def of(
        cls, unit: Unit, fingerprint: Mapping[str, str] | None = None, run: str = "", seconds: float | None = None
    ) -> Provenance:
        """Return where rows of `unit` come from that a run measures now."""
        keys = tuple(need.key for need in unit.needs)
        return cls(unit.experiment, unit.task, unit.method, unit.seed, unit.settings, keys, fingerprint, run, seconds)

    def unit(self, by_key: Mapping[str, Provenance]) -> Unit:
        """Return the unit that the rows are of.

        Parameters
        ----------
        by_key : mapping of str to Provenance
            Those of other units, by their keys; what the unit needs and is not among them, the answer lacks.
        """
        needs = tuple(by_key[key].unit(by_key) for key in self.needs if key in by_key)
        return Unit(self.experiment, self.task, self.method, self.seed, self.settings, needs)

    @classmethod
    def from_json(cls, text: str) -> Provenance:
        """Return what :meth:`to_json` wrote."""
        said = json.loads(text)
        return cls(**{**said, "needs": tuple(said["needs"])})

    def to_json(self) -> str:
        """Return a line of JSON, the same for the same provenance."""
        return json.dumps({**vars(self), "settings": dict(self.settings)}, ensure_ascii=False)
