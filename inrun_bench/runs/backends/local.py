"""Processes of this machine, by joblib's loky, each an executor of its own.

Executors of one process each, rather than one executor of many: when a process dies (killed for memory, a fault in
native code) an executor fails everything that it was given and does not say which call it was. With one process each,
the call is known, the others never notice, and the dead process is replaced at the next call.

A single job needs no other process: the calls are done in this one, where a debugger sees them and monkeypatching
works. What kills a worker then kills the run; what it finished is in the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import joblib
from joblib.externals.loky import BrokenProcessPool, ProcessPoolExecutor

from inrun_bench.runs.backends import Workers

__all__ = ["connect"]


@contextmanager
def connect(jobs: int, scheduler: str | None) -> Iterator[Workers]:
    """Yield `jobs` processes of this machine; see :mod:`inrun_bench.runs.backends`."""
    if scheduler is not None:
        raise ValueError(f"scheduler {scheduler!r} goes with a cluster, but the backend is 'local'; choose dask or ray")
    slots = joblib.effective_n_jobs(jobs)
    if slots == 1:
        yield Workers(_do_here, slots=lambda: 1, deaths=lambda _: 0)
        return
    processes = _Processes(slots)
    try:
        yield Workers(processes.submit, slots=lambda: slots, deaths=lambda error: isinstance(error, BrokenProcessPool))
    except BaseException:  # nobody waits for what is under way
        processes.end(kill=True)
        raise
    processes.end(kill=False)


def _do_here(call: Callable[..., Any], *arguments: object) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(call(*arguments))
    return future


class _Processes:
    """Executors of one process each, started when first used, and what each of them did last."""

    def __init__(self, number: int) -> None:
        self._executors = [ProcessPoolExecutor(max_workers=1) for _ in range(number)]
        self._last: list[Future[Any] | None] = [None] * number

    def submit(self, call: Callable[..., Any], *arguments: object) -> Future[Any]:
        """Give the call to a process that has nothing to do."""
        slot = next(i for i, last in enumerate(self._last) if last is None or last.done())
        try:
            future: Future[Any] = self._executors[slot].submit(call, *arguments)
        except BrokenProcessPool:  # by what it did last, or while it had nothing to do
            self._executors[slot].shutdown()
            self._executors[slot] = ProcessPoolExecutor(max_workers=1)
            future = self._executors[slot].submit(call, *arguments)
        self._last[slot] = future
        return future

    def end(self, *, kill: bool) -> None:
        """End the processes, and whatever they are doing if `kill`."""
        for executor in self._executors:
            executor.shutdown(kill_workers=kill)
