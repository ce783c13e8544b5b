"""The runner: units in, rows in the store; it knows nothing of what is measured.

Units run in parallel processes, each with one thread, so that what a unit returns does not depend on how many run
beside it. A unit writes its own file when it is done; one that fails writes a row that says why, and the others go on.
Killing a run loses the units in flight and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import joblib
import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from inrun_bench.experiments import EXPERIMENTS
from inrun_bench.store import Store
from inrun_bench.unit import Unit

__all__ = ["Outcome", "run"]


@dataclass(frozen=True)
class Outcome:
    """What became of the units of a run."""

    done: int
    skipped: int
    failed: tuple[tuple[Unit, str], ...]


def run(units: Sequence[Unit], store: Store, *, jobs: int = 1, progress: bool = False) -> Outcome:
    """Run `units`, and before them the units that they need, but for those whose rows are there.

    Parameters
    ----------
    units : sequence of Unit
        In the order in which they should start, needs aside.
    store : Store
        Where rows go.
    jobs : int
        Processes at a time; -1 for one a core. Units of experiments that measure time run alone, after all others.
    progress : bool
        Show a bar on stderr.

    Returns
    -------
    Outcome
        Failed units come with their messages.
    """
    everything = _with_needs(units)
    missing = [unit for unit in everything if not store.has(unit)]
    if missing:
        store.record_run(jobs, sorted({unit.seed for unit in missing}), len(missing))
    failed: list[tuple[Unit, str]] = []
    with tqdm(total=len(missing), unit="unit", disable=not progress, smoothing=0) as bar:
        for wave, alone in _waves(missing):
            workers = joblib.Parallel(n_jobs=1 if alone else jobs, return_as="generator_unordered")
            for unit, message in workers(joblib.delayed(_work)(unit, store.root) for unit in wave):
                bar.set_postfix_str(str(unit), refresh=False)
                bar.update()
                if message:
                    failed.append((unit, message))
    return Outcome(len(missing) - len(failed), len(everything) - len(missing), tuple(failed))


def _work(unit: Unit, root: Path) -> tuple[Unit, str]:
    """Do one unit in this process and write its rows; return it with an error message, empty where all went well."""
    store = Store(root)
    with store.claim(unit):
        if store.has(unit):  # another run was faster
            return unit, ""
        torch.set_num_threads(1)
        try:
            needs = {need: store.read(need) for need in unit.needs if _usable(store, need)}
            with threadpool_limits(1):
                rows = EXPERIMENTS[unit.experiment].measure(unit, needs)
            store.write(unit, rows)
        except Exception as error:  # whatever a unit raises belongs into its row
            message = f"{type(error).__name__}: {error}"
            store.write(unit, [{"metric": "error", "status": "error", "message": message}])
            return unit, message
        return unit, ""


def _usable(store: Store, need: Unit) -> bool:
    if not store.has(need):
        raise RuntimeError(f"needs '{need}', which failed")
    return True


def _with_needs(units: Iterable[Unit]) -> list[Unit]:
    """Return the units and all that they need, each once, needs first."""
    ordered: dict[Unit, None] = {}

    def visit(unit: Unit) -> None:
        for need in unit.needs:
            visit(need)
        ordered.setdefault(unit)

    for unit in units:
        visit(unit)
    return list(ordered)


def _waves(units: Sequence[Unit]) -> list[tuple[list[Unit], bool]]:
    """Group units, given needs first, so that a wave needs only earlier ones; those that must run alone come last."""
    depth: dict[Unit, int] = {}
    for unit in units:
        depth[unit] = 1 + max((depth.get(need, -1) for need in unit.needs), default=-1)
    keys = {unit: (EXPERIMENTS[unit.experiment].EXCLUSIVE, depth[unit]) for unit in units}
    return [([u for u in units if keys[u] == key], key[0]) for key in sorted(set(keys.values()))]
