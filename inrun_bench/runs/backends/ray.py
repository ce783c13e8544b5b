"""A Ray cluster, through tasks.

Not through Ray's joblib backend, a pool of actors that does not outlive the loss of one. A task runs in a process of
its own choosing that does nothing else meanwhile, and one that dies fails this task alone.

Ray would try such a task again by itself, three times after a crash, but without end after its memory monitor stopped
it; so its own retries are off, and the runner counts.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import joblib

from inrun_bench.runs.backends import SECONDS_TO_ANSWER, Workers, needed_package

__all__ = ["connect"]


@contextmanager
def connect(jobs: int, scheduler: str | None) -> Iterator[Workers]:
    """Yield the workers of a Ray cluster; see :mod:`inrun_bench.runs.backends`.

    Parameters
    ----------
    jobs : int
        Workers of a cluster on this machine, where there is no `scheduler`.
    scheduler : str or None
        ``host:port`` of the head, from a machine of the cluster; ``auto`` for the cluster that this machine belongs
        to; ``ray://host:port`` from elsewhere (which needs ``ray[client]``).

    Raises
    ------
    ConnectionError
        If there is no cluster.
    ValueError
        If Ray is not installed.
    """
    ray = needed_package("ray", backend="ray")
    if scheduler is None:
        where: dict[str, Any] = {"num_cpus": joblib.effective_n_jobs(jobs), "include_dashboard": False}
    else:
        where = {"address": scheduler}
        _expect_a_server(scheduler)
    try:
        ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise ConnectionError(f"no Ray cluster answers at {scheduler!r} ({error})") from error
    errors = ray.exceptions
    lost = (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError, errors.ObjectLostError)

    def submit(call: Callable[..., Any], *arguments: object) -> Future[Any]:
        task = ray.remote(num_cpus=1, max_retries=0)(call)
        future: Future[Any] = task.remote(*arguments).future()
        return future

    try:
        yield Workers(
            submit,
            slots=lambda: int(ray.cluster_resources().get("CPU", 0)),
            deaths=lambda error: isinstance(error, lost),
        )
    finally:
        ray.shutdown()


def _expect_a_server(address: str) -> None:
    """Raise ConnectionError unless something listens there: Ray itself looks for minutes and then ends the process."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"scheduler of a Ray cluster must be host:port, ray://host:port or auto; got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=SECONDS_TO_ANSWER).close()
    except OSError as error:
        raise ConnectionError(
            f"no Ray cluster answers at {address!r}, tried for {SECONDS_TO_ANSWER} s ({error}); "
            "is it running ('ray start --head'), and can this machine reach it?"
        ) from error
