"""Fingerprints: what the rows of a unit follow from, part by part, so that no stale row is taken for a new one.

==============  ================================================================================================
part            what it covers
==============  ================================================================================================
``task``        data, sizes and scaling of the splits, recipe, architecture and initial weights
                (:func:`tasks.content.content_identity`)
``method``      the code of the method (:func:`tasks.code_identity.code_identity`): sources, or released versions
``experiment``  the code that the experiment's `measure` reaches, likewise, or its `measure_reference`: not how rows are
                drawn and told
``libraries``   versions of the libraries that change numbers
``needs``       the fingerprints of the units whose rows the unit reads
==============  ================================================================================================

A unit on something that is no task of the catalogue, or of no method, does without that part: what it measures stands
in its experiment's code.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping

from inrun_bench.methods import METHODS, method_of
from inrun_bench.runs.provenance import Provenance
from inrun_bench.runs.unit import Measure, Measured, Unit, measure_of
from inrun_bench.version import versions
from tasks import CATALOG
from tasks.code_identity import CodeIdentityError, code_identity
from tasks.content import content_identity

__all__ = ["Fingerprint", "Fingerprints", "changes", "code_of", "code_parts", "outdated"]

Fingerprint = Mapping[str, str]

LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch")
OPTIONAL = ("triton",)  # torch brings it or not, and on CPUs, of which rows are, nothing is computed by it
UNKNOWN = "unknown: "  # of code that cannot be seen: it may change at any time, so that its rows are never new
NOBODY_NOTED = "nobody noted what they follow from"


class Fingerprints:
    """Fingerprints of units; what several have in common is computed once.

    Parameters
    ----------
    experiments : mapping of str to Measured
        What measures units, by the name of their experiment; rows of others were handed over.
    """

    def __init__(self, experiments: Mapping[str, Measured]) -> None:
        self._experiments = experiments
        self._whole: dict[str, Fingerprint] = {}
        self._contents: dict[tuple[str, int, str], str] = {}
        self._code: dict[tuple[str, str], Fingerprint] = {}

    def of(self, unit: Unit) -> Fingerprint:
        """Return what rows of the unit would follow from if it were measured now."""
        if unit.key not in self._whole:
            found = dict(self._code_of(unit)) if unit.experiment in self._experiments else {}
            if unit.task in CATALOG:
                found["task"] = self._content_of(unit)
            if unit.needs:
                found["needs"] = _digest([self.of(need) for need in unit.needs])
            self._whole[unit.key] = found
        return self._whole[unit.key]

    def _code_of(self, unit: Unit) -> Fingerprint:
        kind = (unit.experiment, unit.method)
        if kind not in self._code:
            self._code[kind] = code_parts(unit, measure_of(self._experiments[unit.experiment], unit))
        return self._code[kind]

    def _content_of(self, unit: Unit) -> str:
        definition = (unit.task, unit.seed, unit.recipe)
        if definition not in self._contents:
            try:
                content = content_identity(CATALOG[unit.task], unit.seed, unit.recipe)
            except Exception as error:  # whatever a third party's dataset raises; its units will say so themselves
                content = f"{UNKNOWN}{type(error).__name__}: {error}"
            self._contents[definition] = content
        return self._contents[definition]


def code_parts(unit: Unit, measure: Measure) -> Fingerprint:
    """Return those parts of a unit's fingerprint that depend on the code and the libraries of this process."""
    parts = {"experiment": code_of(measure, reached_alone=True), "libraries": _libraries()}
    if unit.method in METHODS:
        parts["method"] = code_of(method_of(unit.method).run, reached_alone=True)
    return parts


def changes(unit: Unit, then: Fingerprint | None, now: Fingerprint) -> list[str]:
    """Return what has changed since rows were measured, in words; nothing where they are up to date."""
    if then is None:
        return [NOBODY_NOTED]
    foreign = "task" in then and "task" not in now
    words = {
        "task": f"task {unit.task!r}, which is not known here" if foreign else f"the content of task {unit.task!r}",
        "method": f"the code of method {unit.method!r}",
        "experiment": f"the code of experiment {unit.experiment!r}",
        "libraries": f"libraries ({then.get('libraries', 'none')}; now {now.get('libraries', 'none')})",
        "needs": "what they were computed from",
    }
    return [words[p] for p in words if then.get(p) != now.get(p) or now.get(p, "").startswith(UNKNOWN)]


def outdated(stored: Mapping[Unit, Provenance], experiments: Mapping[str, Measured]) -> tuple[int, Counter[str]]:
    """Return how many stored units are out of date, and for how many of them each thing has changed.

    Parameters
    ----------
    stored : mapping of Unit to Provenance
        Where their rows come from, see :meth:`inrun_bench.runs.store.Store.units`. What rows were computed from counts
        where it is among them: a published folder may leave out blocks of a reference.
    experiments : mapping of str to Measured
        As for :class:`Fingerprints`.
    """
    now = Fingerprints(experiments)
    found = [_changed(unit, provenance, now) for unit, provenance in stored.items()]
    return sum(map(bool, found)), Counter(what for several in found for what in several)


def _changed(unit: Unit, provenance: Provenance, fingerprints: Fingerprints) -> list[str]:
    then = provenance.fingerprint
    now = {} if then is None else fingerprints.of(unit)
    if then is not None and len(unit.needs) < len(provenance.needs):  # what it was computed from may be the same
        then, now = ({part: noted for part, noted in each.items() if part != "needs"} for each in (then, now))
    return changes(unit, then, now)


def code_of(thing: Callable[..., object], *, reached_alone: bool = False) -> str:
    """Return a digest of a function's code and state, or that of its own that it carries to where it has no source."""
    carried: str | None = getattr(thing, "code_identity", None)
    if carried is not None:
        return carried
    try:
        return code_identity(thing, reached_alone=reached_alone, optional=OPTIONAL, in_memory=True)
    except CodeIdentityError as error:
        return f"{UNKNOWN}{error}"


def _libraries() -> str:
    found = versions(LIBRARIES).items()
    return ", ".join(f"{name} {(got or 'none').partition('+')[0]}" for name, got in found)  # 2.13.0+cpu is 2.13.0


def _digest(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
