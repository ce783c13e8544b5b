"""Reference values are made: blocks are added until both halves of the draws agree, or the time is up.

What they are of is noted in the blocks, and can be noted anew (:func:`note_present_task`) where the law of that has
changed, or a library, and the values are those of the present task all the same.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from joblib import cpu_count

import tasks
from inrun_bench.reference import estimate
from inrun_bench.reference.blocks import Reference, block, blocks, read
from inrun_bench.runs.fingerprint import Fingerprints
from inrun_bench.runs.provenance import Provenance
from inrun_bench.runs.runner import run
from inrun_bench.runs.store import Overlay, Store
from inrun_bench.runs.unit import DEFAULT_RECIPE, Measured

__all__ = ["extend", "note_present_task", "thin"]

MEASURED: dict[str, Measured] = {"reference": estimate}


def extend(
    store: Store,
    task: str,
    seed: int = 0,
    *,
    recipe: str = DEFAULT_RECIPE,
    reliability: float = 0.99,
    seconds: float = 3600.0,
    jobs: int = -1,
    backend: str = "local",
    scheduler: str | None = None,
    earlier: Sequence[Store] = (),
) -> Reference:
    """Add blocks to the reference of a task until it is reliable for all utilities, or the time is up.

    Parameters
    ----------
    store : Store
        Where new blocks go.
    task, seed, recipe
        What the values are of.
    reliability : float
        Split-half Spearman correlation to be reached.
    seconds : float
        When to stop all the same: no block is started after that.
    jobs, backend, scheduler
        As in :func:`inrun_bench.runs.runner.run`. A round makes `jobs` blocks, then the halves are compared.
    earlier : sequence of Store
        Where blocks are read that `store` lacks; nothing is written there.

    Returns
    -------
    Reference

    Raises
    ------
    ValueError
        If there is no such task, or it has no such recipe.
    RuntimeError
        If a block fails; those before it are kept.
    """
    start = time.perf_counter()
    there = Overlay((store, *earlier))
    enumerated = tasks.load(task, seed, recipe=recipe).n_train <= estimate.MOST_ENUMERATED
    at_once = 1 if enumerated else cpu_count() if jobs == -1 else jobs
    while True:
        made = len(blocks(there, task, seed, recipe))
        if made:
            reference = read(there, task, seed, recipe)
            reached = min(reference.reliability().values())
            late = time.perf_counter() - start > seconds
            if reference.exact or reached >= reliability or late:
                return reference
        outcome = run(
            [block(task, seed, number, recipe) for number in range(made, made + at_once)],
            store,
            MEASURED,
            jobs=jobs,
            backend=backend,
            scheduler=scheduler,
        )
        if outcome.failed:
            unit, message = outcome.failed[0]
            raise RuntimeError(f"{unit} failed: {message}")


def thin(store: Store, keep: int) -> int:
    """Drop the utilities of all but the first blocks of each reference in a folder; return of how many.

    They take a hundred times the space of the values, and anybody can make them anew from the numbers of the blocks.
    The cost of what is dropped stays on record, and so do enumerated utilities, which are the only block of theirs.
    References of other seeds than 0 keep none: seed 0 shows what lies behind, and blocks of all can be made anew.

    Parameters
    ----------
    store : Store
        The folder.
    keep : int
        How many blocks of each reference of seed 0 keep their utilities.
    """
    units = [unit for unit in store.units() if unit.experiment == "reference"]
    extra = [unit for unit in units if unit.seed != 0 or int(unit.settings["block"]) >= max(keep, 1)]
    long = [unit for unit in extra if "utilities" in store.read(unit)]
    for unit in long:
        store.drop_column(unit, "utilities")
    return len(long)


def note_present_task(store: Store, task: str, seed: int = 0, recipe: str = DEFAULT_RECIPE) -> int:
    """Note in the blocks of a reference that they are of the task as it is now; return in how many it was not noted.

    Parameters
    ----------
    store : Store
        The folder. That the values are those of the present task is for the caller to know, who has proved it.
    task, seed, recipe
        What the reference is of.
    """
    identity = tasks.load(task, seed, recipe=recipe).trajectory_game().identity()
    content = Fingerprints(MEASURED).of(block(task, seed, 0, recipe))["task"]
    noted = 0
    for unit, rows in blocks(store, task, seed, recipe):
        then = store.provenance(unit) or Provenance.of(unit)
        fingerprint = {**(then.fingerprint or {}), "task": content}
        if then.fingerprint != fingerprint or set(rows["identity"]) != {identity}:
            store.note(unit, dataclasses.replace(then, fingerprint=fingerprint), identity=identity)
            noted += 1
    return noted
