"""A process that measures units, one after another, and can be given up.

What a GPU is asked for may end the process that asks (a fault in native code), leave it with a GPU that does nothing
more for it (an illegal address), or never come back. So units are measured in a process of its own, which says what it
is about to do before it does it. It ends with the process that started it, however that ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

import pandas as pd
import torch

from inrun_bench.experiments.gpu.rounds import Attempt, DeviceLostError
from inrun_bench.runs.timing import described
from inrun_bench.runs.unit import Row, Unit

__all__ = ["Answer", "Measure", "Worker"]

POLL_SECONDS = 0.1
START_LIMIT = 120.0  # of a process, in seconds: imports take long where disks are cold

Measure: TypeAlias = Callable[[Unit, Mapping[Unit, pd.DataFrame], Attempt], list[Row]]

READY, BEGUN, ROWS, FAILED, LOST = "ready", "begun", "rows", "failed", "lost"


@dataclass(frozen=True)
class Answer:
    """What became of one try at a unit.

    Attributes
    ----------
    rows : list of Row, or None
        None where there are none, and `message` says why.
    method : str
        What was last begun; empty where nothing was.
    lost : bool
        Whether the process was lost, so that what it had measured is lost, too.
    stopped : bool
        Whether it was given up because nobody waits any more.
    """

    rows: list[Row] | None = None
    message: str = ""
    method: str = ""
    lost: bool = False
    stopped: bool = False


class Worker:
    """A process that measures units, started when there is something to do, and started anew when it was lost.

    Parameters
    ----------
    measure : callable
        Given a unit, the rows that it needs and the attempt, returns the unit's rows. It travels by pickle.
    """

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self._process: Any = None
        self._connection: Connection | None = None

    @property
    def running(self) -> bool:
        """Whether there is a process already."""
        return self._process is not None

    def try_unit(
        self,
        unit: Unit,
        needs: Mapping[Unit, pd.DataFrame],
        avoided: Mapping[str, str],
        limit: float,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """Have the unit measured.

        Parameters
        ----------
        unit, needs
            What to measure, and the rows that it needs.
        avoided : mapping of str to str
            Methods that are left out.
        limit : float
            Seconds after which the process is ended; those that it takes to start do not count.
        stopped : callable
            Asked now and then whether to give up.
        """
        connection = self._begin()
        deadline, method, sent = time.monotonic() + START_LIMIT, "", False
        while True:
            try:
                if not sent:
                    connection.send((unit, dict(needs), dict(avoided)))
                    sent = True
                if connection.poll(POLL_SECONDS):
                    kind, content = connection.recv()
                    if kind == READY:
                        deadline = time.monotonic() + limit
                        continue
                    if kind == BEGUN:
                        method = content
                        continue
                    if kind == LOST:
                        self.end()
                        return Answer(message=content, method=method, lost=True)
                    return Answer(content, method=method) if kind == ROWS else Answer(message=content, method=method)
            except (EOFError, OSError):
                code = self.end()
                return Answer(message=f"WorkerDied: the process ended with code {code}", method=method, lost=True)
            if stopped():
                self.end()
                return Answer(message="stopped", method=method, lost=True, stopped=True)
            if time.monotonic() > deadline:
                self.end()
                message = f"TimeoutError: not done after {limit:g} s; the process was ended"
                return Answer(message=message, method=method, lost=True)

    def end(self) -> int | None:
        """End the process, if there is one, whatever it is doing; return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return None
        assert self._connection is not None
        self._connection.close()
        process.join(1.0)  # one that has died has a code of its own
        process.kill()
        process.join()
        return int(process.exitcode)

    def _begin(self) -> Connection:
        if self._process is None:
            context = multiprocessing.get_context("spawn")  # a forked process cannot use the GPU
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, self._measure), name="gpu-benchmark")
            self._process.start()
            theirs.close()
        assert self._connection is not None
        return self._connection


def _serve(connection: Connection, measure: Measure) -> None:
    """Measure what is sent, until nothing more comes."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the first process decides
        signal.signal(number, lambda *_: None)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    with suppress(EOFError, BrokenPipeError):  # nobody is there any more
        while True:
            unit, needs, avoided = connection.recv()
            connection.send((READY, None))
            connection.send(_answer(measure, unit, needs, Attempt(partial(_begin, connection), avoided)))


def _begin(connection: Connection, method: str) -> None:
    connection.send((BEGUN, method))


def _answer(
    measure: Measure, unit: Unit, needs: Mapping[Unit, pd.DataFrame], attempt: Attempt
) -> tuple[str, list[Row] | str]:
    try:
        return ROWS, measure(unit, needs, attempt)
    except BrokenPipeError:
        raise
    except DeviceLostError as error:
        return LOST, str(error)
    except Exception as error:
        return FAILED, described(error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
