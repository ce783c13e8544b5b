"""The runner: units in, rows in the store; it knows nothing of what is measured.

Units run in the worker processes of a backend, each with one thread, so that what a unit returns does not depend on
how many run beside it, or where. A worker gets a unit with the rows that the unit needs, and returns rows; this
process alone reads and writes the store, so that workers need not share its disk.

- A unit is claimed before it is sent and until its rows are written: of several runs into one folder each does what
  no other is doing.
- Rows that are there are taken for the unit's own only while what they follow from is what it was when they were
  measured (:mod:`inrun_bench.runs.fingerprint`); else the unit is measured again, and its rows take the place of the
  old.
- A worker whose code or libraries are others than this process's measures nothing.
- A unit that fails leaves a row that says why, and the others go on.
- A unit whose worker dies is sent again, and fails when it has cost :data:`LIVES` workers.
- Killing a run loses the units in flight and nothing else.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from graphlib import TopologicalSorter
from typing import Any

import joblib
import pandas as pd
import torch
from filelock import FileLock
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from baselines import InterruptedEstimateWarning
from inrun_bench.runs.backends import BACKENDS, Workers
from inrun_bench.runs.fingerprint import Fingerprint, Fingerprints, changes, code_parts
from inrun_bench.runs.run_rows import RunRows, changes_since
from inrun_bench.runs.store import Overlay, Store
from inrun_bench.runs.unit import Measure, Measured, Row, Unit, measure_of

__all__ = ["LIVES", "Outcome", "run", "to_measure"]

LIVES = 3
"""Workers that a unit may cost: a death may be the machine's fault, three in a row are the unit's."""

POLL_SECONDS = 0.2  # between looks at who is there: workers, and other runs that hold claims
SECONDS_DIGITS = 3  # of how long a unit took
PATIENCE_SECONDS = 60  # without a single worker


@dataclass(frozen=True)
class Outcome:
    """What became of the units of a run.

    Attributes
    ----------
    done, skipped : int
        Units measured, and units whose rows were there.
    failed : tuple of (Unit, str)
        Units that failed, and why.
    outdated : mapping of str to int
        Why units whose rows were there were measured again, and how many for each reason.
    """

    done: int
    skipped: int
    failed: tuple[tuple[Unit, str], ...]
    outdated: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Answer:
    """The rows of a unit, None where another run has stored them, or a message that says why there are none.

    `seconds` is how long they took, None where nothing was measured.
    """

    rows: list[Row] | None = None
    message: str = ""
    seconds: float | None = None


def run(
    units: Sequence[Unit],
    store: Store,
    experiments: Mapping[str, Measured],
    *,
    jobs: int = 1,
    backend: str = "local",
    scheduler: str | None = None,
    progress: bool = False,
    force: bool = False,
    prepare: Callable[[], None] | None = None,
) -> Outcome:
    """Run `units`, and before them the units that they need, but for those whose rows are there and up to date.

    Parameters
    ----------
    units : sequence of Unit
        In the order in which they should start, needs aside.
    store : Store
        Where rows go.
    experiments : mapping of str to Measured
        What measures units, by the name of their experiment.
    jobs : int
        Units at a time; -1 for one a core of this machine, or of the cluster at `scheduler`. Units of experiments that
        measure time run alone, after all others.
    backend : str
        Where units run, a name of :data:`inrun_bench.runs.backends.BACKENDS`.
    scheduler : str, optional
        Address of a cluster of that kind that is running already; without it one is started here, and ended.
    progress : bool
        Show a bar on stderr.
    force : bool
        Measure all units anew, whatever is there.
    prepare : callable, optional
        Called in whichever process measures a unit, before it does; what it holds travels with each unit.

    Returns
    -------
    Outcome
        Failed units come with their messages.

    Raises
    ------
    ConnectionError
        If the cluster is not there, or is lost with all its workers. What was finished is in the store.
    ValueError
        If the backend is unknown, its package is not installed, or the scheduler does not go with it.
    """
    if prepare is not None:
        prepare()
    rows = RunRows(store, experiments, force=force)
    everything = _with_needs(units)
    missing = [unit for unit in everything if not rows.up_to_date(unit)]
    if not missing:
        return Outcome(0, len(everything), ())
    outdated = Counter(change for unit in missing for change in rows.changes(unit))
    failed: list[tuple[Unit, str]] = []
    with (
        BACKENDS[backend].connect(jobs, scheduler) as connected,
        tqdm(total=len(missing), unit="unit", disable=not progress, smoothing=0) as bar,
    ):
        workers = connected if prepare is None else _prepared(connected, prepare)
        rows.run = store.begin_run(jobs, sorted({unit.seed for unit in missing}), backend)
        try:
            for unit, message in _settle(missing, rows, experiments, workers, jobs):
                bar.set_postfix_str(str(unit), refresh=False)
                bar.update()
                if message:
                    failed.append((unit, message))
        finally:
            store.count_units(rows.run, done=len(rows.written), failed=len(failed))
    return Outcome(len(missing) - len(failed), len(everything) - len(missing), tuple(failed), outdated)


def _prepared(workers: Workers, prepare: Callable[[], None]) -> Workers:
    """Return workers that prepare themselves for each call."""

    def submit(call: Callable[..., Any], *arguments: object) -> Future[Any]:
        return workers.submit(_do_prepared, prepare, call, *arguments)

    return replace(workers, submit=submit)


def _do_prepared(prepare: Callable[[], None], call: Callable[..., Any], *arguments: object) -> Any:
    prepare()
    return call(*arguments)


def to_measure(
    units: Sequence[Unit], stored: Store | Overlay, experiments: Mapping[str, Measured], *, force: bool = False
) -> tuple[list[Unit], list[Unit]]:
    """Return which units :func:`run` would measure, those that they need among them, and which are there already."""
    fingerprints, everything = Fingerprints(experiments), _with_needs(units)
    missing: list[Unit] = []
    there: list[Unit] = []
    for unit in everything:
        known = not force and stored.has(unit) and not changes_since(unit, stored, fingerprints)
        (there if known else missing).append(unit)
    return missing, there


def _with_needs(units: Iterable[Unit]) -> list[Unit]:
    """Return the units and all that they need, each once."""
    ordered: dict[str, Unit] = {}

    def visit(unit: Unit) -> None:
        if unit.key not in ordered:
            for need in unit.needs:
                visit(need)
            ordered[unit.key] = unit

    for unit in units:
        visit(unit)
    return list(ordered.values())


def _settle(
    units: Sequence[Unit], rows: RunRows, experiments: Mapping[str, Measured], workers: Workers, jobs: int
) -> Iterator[tuple[Unit, str]]:
    """Run `units`; yield each when its rows are stored, with the message of its error, empty where all went well."""
    todo = set(units)
    order = TopologicalSorter({unit: todo.intersection(unit.needs) for unit in units})
    order.prepare()
    ready: list[Unit] = []
    flights: dict[Future[_Answer], Unit] = {}
    claims: dict[Unit, FileLock] = {}
    deaths: Counter[Unit] = Counter()
    slots = _slots(workers, jobs)
    try:
        while order.is_active():
            ready += order.get_ready()
            free = [unit for unit in ready if not _exclusive(unit, experiments)]
            room = next(slots) if free else 1  # exclusive units start when no other can, and only while nothing runs
            for unit in free or ready:
                if len(flights) >= room:
                    break
                claim = rows.store.claim(unit)
                if claim is not None:  # else another run is at it: look again later
                    claims[unit] = claim
                    ready.remove(unit)
                    flights[_send(unit, rows, experiments, workers)] = unit
            for unit, answer in _landed(flights, workers, deaths):
                message = _keep(answer, unit, rows) if answer else ""
                claims.pop(unit).release()
                if answer:
                    order.done(unit)
                    yield unit, message
                else:
                    ready.insert(0, unit)
    finally:  # whatever ended the run, and whoever keeps its exception, and with it this frame
        for claim in claims.values():
            claim.release()


def _slots(workers: Workers, jobs: int) -> Iterator[int]:
    """Yield, each time, how many units may be in flight; at least one, so that a cluster that grows has a reason to."""
    seen = time.monotonic()
    while True:
        slots = workers.slots()
        if slots:
            seen = time.monotonic()
        elif time.monotonic() - seen > PATIENCE_SECONDS:
            raise ConnectionError(f"the cluster has had no worker for {PATIENCE_SECONDS} s; start some, and run again")
        yield max(1, slots if jobs == -1 else min(slots, jobs))


def _exclusive(unit: Unit, experiments: Mapping[str, Measured]) -> bool:
    return unit.given is None and experiments[unit.experiment].EXCLUSIVE


def _send(unit: Unit, rows: RunRows, experiments: Mapping[str, Measured], workers: Workers) -> Future[_Answer]:
    """Have a worker measure the unit, unless there is no need to, or no way."""
    if rows.up_to_date(unit):  # another run was faster
        return _settled(_Answer())
    if unit.given is not None:
        return _settled(_Answer(list(unit.given)))
    for need in unit.needs:
        if not rows.up_to_date(need):
            return _settled(_Answer(message=f"RuntimeError: needs '{need}', which failed"))
    needs = {need: rows.store.read(need) for need in unit.needs}
    measure = measure_of(experiments[unit.experiment], unit)
    return workers.submit(_measure, measure, unit, needs, code_parts(unit, measure))


def _settled(answer: _Answer) -> Future[_Answer]:
    future: Future[_Answer] = Future()
    future.set_result(answer)
    return future


def _landed(
    flights: dict[Future[_Answer], Unit], workers: Workers, deaths: Counter[Unit]
) -> Iterator[tuple[Unit, _Answer | None]]:
    """Wait a little; take what came back out of `flights`, Futures too: a cluster keeps results while someone does."""
    if not flights:
        time.sleep(POLL_SECONDS)  # for other runs
    for future in wait(flights, POLL_SECONDS, FIRST_COMPLETED).done:
        unit = flights.pop(future)
        yield unit, _answer(future, unit, workers, deaths)


def _answer(future: Future[_Answer], unit: Unit, workers: Workers, deaths: Counter[Unit]) -> _Answer | None:
    """Return what came back; None where it was the death of a worker, but the unit has another life."""
    error = future.exception()
    if error is None:
        return future.result()
    died = workers.deaths(error)
    if not died:
        return _Answer(message=_described(error))
    deaths[unit] += died
    if deaths[unit] < LIVES:
        return None
    last = " ".join(str(error).split())
    return _Answer(message=f"WorkerDied: a worker died {deaths[unit]} times while running this unit: {last}")


def _keep(answer: _Answer, unit: Unit, rows: RunRows) -> str:
    """Store the unit's rows, or the row that says why there are none; return that message."""
    message = answer.message
    if answer.rows is not None:
        try:
            rows.write(unit, answer.rows, answer.seconds)
        except Exception as error:  # rows that are no table
            message = _described(error)
    if message:
        rows.write_error(unit, message)
    return message


def _measure(measure: Measure, unit: Unit, needs: dict[Unit, pd.DataFrame], code: Fingerprint) -> _Answer:
    """Measure a unit in this process, whichever it is, if its code and libraries are those of the run."""
    here = code_parts(unit, measure)
    if code != here:
        different = changes(unit, code, here)
        return _Answer(message=f"RuntimeError: the worker and the run differ in {' and '.join(different)}")
    torch.set_num_threads(1)
    start = time.perf_counter()
    try:
        with threadpool_limits(1), joblib.parallel_config("sequential"), warnings.catch_warnings():
            warnings.simplefilter("error", InterruptedEstimateWarning)  # Ctrl-C leaves no rows of half an estimate
            rows = measure(unit, needs)
            return _Answer(rows, seconds=round(time.perf_counter() - start, SECONDS_DIGITS))
    except Exception as error:  # whatever a unit raises belongs into its row
        return _Answer(message=_described(error))


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
