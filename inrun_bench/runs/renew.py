"""Renewal: rows whose code has changed, and whose numbers have not, are noted to be of the code as it is now.

Rows count as out of date as soon as any code that they follow from is another (:mod:`inrun_bench.runs.fingerprint`),
whether or not a number changes by it. To measure all of them again takes hours. So some of them, drawn by chance, are
measured again, from the stored rows of what they need, and only where all of these are equal to the last bit are the
others noted to be of today's code. What else has changed (the content of a task, libraries) is no matter of code, and
such units are left as they are; so are those of which the folder lacks what they need.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from inrun_bench.runs.fingerprint import Fingerprint, Fingerprints
from inrun_bench.runs.provenance import Provenance
from inrun_bench.runs.runner import run
from inrun_bench.runs.store import Store
from inrun_bench.runs.unit import Measured, Unit

__all__ = ["TIMES", "Renewal", "renew"]

TIMES = ("seconds", "peak_bytes")
"""Columns that are measured anew each time, and never twice alike."""

CODE = {"method", "experiment", "needs"}  # parts of a fingerprint that follow from code alone


@dataclass(frozen=True)
class Renewal:
    """What became of the units of a folder whose code has changed.

    Attributes
    ----------
    changed : tuple of Unit
        Those whose code has, and nothing else.
    drawn : tuple of Unit
        Those that were measured again.
    differing : tuple of (Unit, str)
        Those among them whose rows are others now, or that failed, and what is other; where there are any, nothing was
        noted.
    left : int
        Units that are out of date for other reasons, too, that measure time, or whose needs the folder leaves out.
    """

    changed: tuple[Unit, ...]
    drawn: tuple[Unit, ...]
    differing: tuple[tuple[Unit, str], ...]
    left: int


def renew(
    store: Store, experiments: Mapping[str, Measured], *, draw: int, seed: int, jobs: int = 1, progress: bool = False
) -> Renewal:
    """Measure some of the units again whose code has changed, and note the others where no number is another.

    Parameters
    ----------
    store : Store
        The folder; rows keep their values, times and runs, and say that they follow from the present code.
    experiments : mapping of str to Measured
        What measures them, by name.
    draw : int
        How many units are measured again, at least; one of each experiment and method is in any case.
    seed : int
        Of the draw.
    jobs : int
        Units at a time; -1 for one a core.
    progress : bool
        Show a bar on stderr.

    Returns
    -------
    Renewal
    """
    if draw < 1:
        raise ValueError(f"draw must be at least 1, got {draw}")
    fingerprints = Fingerprints(experiments)
    stored = store.units()
    whole = {unit for unit, noted in stored.items() if len(unit.needs) == len(noted.needs)}
    parts = {unit: _other_parts(noted, fingerprints.of(unit)) for unit, noted in stored.items()}
    parts = {unit: other if unit in whole else other - {"needs"} for unit, other in parts.items()}
    changed = [
        unit
        for unit, other in parts.items()
        if other
        and other <= CODE
        and unit.experiment in experiments
        and not experiments[unit.experiment].EXCLUSIVE
        and unit in whole
    ]
    left = sum(map(bool, parts.values())) - len(changed)
    drawn = _drawn(changed, draw, np.random.default_rng(seed))
    with tempfile.TemporaryDirectory() as folder:
        anew = Store(Path(folder) / "anew")
        for need in {need for unit in drawn for need in unit.needs} - set(drawn):  # which are as likely to be drawn
            if store.has(need):
                store.copy_to(anew, need, Provenance.of(need, fingerprints.of(need)))
        outcome = run(drawn, anew, experiments, jobs=jobs, progress=progress)
        differing = list(outcome.failed)
        failed = {unit for unit, _ in outcome.failed}
        for unit in drawn:
            if unit not in failed and (column := _first_other(store.read(unit), anew.read(unit))):
                differing.append((unit, column))
    if not differing:
        for unit in changed:
            noted = stored[unit]
            kept = {part: text for part, text in (noted.fingerprint or {}).items() if part not in CODE}
            now = {part: text for part, text in fingerprints.of(unit).items() if part in CODE}
            store.note(unit, replace(noted, fingerprint={**kept, **now}))
        if changed:
            store.note_renewal(units=len(changed), measured_again=len(drawn), seed=seed)
    return Renewal(tuple(changed), tuple(drawn), tuple(differing), left)


def _other_parts(noted: Provenance, now: Fingerprint) -> set[str]:
    """Return which parts of a fingerprint are others now; one that nobody knows where nothing was noted."""
    then = noted.fingerprint
    return {"unknown"} if then is None else {part for part in {*then, *now} if then.get(part) != now.get(part)}


def _drawn(units: Sequence[Unit], draw: int, rng: np.random.Generator) -> list[Unit]:
    """Return units by chance, one of each experiment and method first."""
    mixed = [units[place] for place in rng.permutation(len(units))]
    by_kind: defaultdict[tuple[str, str], list[Unit]] = defaultdict(list)
    for unit in mixed:
        by_kind[unit.experiment, unit.method].append(unit)
    first = [own[0] for own in by_kind.values()]
    others = [unit for unit in mixed if unit not in set(first)]
    return first + others[: max(0, draw - len(first))]


def _first_other(then: pd.DataFrame, now: pd.DataFrame) -> str:
    """Return the first column that differs between two tables of a unit's rows, times apart; empty where none does."""
    if len(then) != len(now):
        return f"{len(now)} rows in place of {len(then)}"
    columns = [name for name in dict.fromkeys([*then, *now]) if name not in TIMES]
    return next((name for name in columns if not _same(then, now, name)), "")


def _same(then: pd.DataFrame, now: pd.DataFrame, column: str) -> bool:
    one, two = (_filled(table, column) for table in (then, now))
    return bool(((one == two) | (one.isna() & two.isna())).all())


def _filled(table: pd.DataFrame, column: str) -> pd.Series:
    """Return a column of a unit's rows; of nothing where there is no such column."""
    missing: Iterable[None] = [None] * len(table)
    return (table[column] if column in table else pd.Series(missing, dtype=object)).reset_index(drop=True)
