"""A Dask cluster, through the futures of ``distributed``.

Not through joblib's Dask backend: it survives the loss of a worker, since the scheduler runs the task again elsewhere,
but a task that kills every worker it meets leaves joblib (1.6) waiting for ever, where unordered results are asked
for: the scheduler gives it up and raises KilledWorker for this task, which joblib does not pass on. The futures do.

How many deaths the scheduler takes before it gives a task up is its own setting,
``distributed.scheduler.allowed-failures``. With its default, 3, it blames whatever is assigned to a dying worker,
running there or waiting. With 0, which a cluster that is started here has, it tells the runner of each death, and the
runner never has more units in flight than there are workers, so that a death has one suspect.

A worker does one unit at a time, whatever its number of threads, since torch's generator, its number of threads and
its default types belong to the process. So start workers with one thread: ``dask worker ADDRESS --nworkers 8
--nthreads 1``. A worker that dies comes back if it has a nanny, as it has unless told otherwise.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack, contextmanager
from typing import Any

import joblib

from inrun_bench.runs.backends import SECONDS_TO_ANSWER, Workers, needed_package

__all__ = ["connect"]

OF_THIS_MACHINE = {
    "distributed.scheduler.allowed-failures": 0,
    "distributed.deploy.lost-worker-timeout": "10 minutes",  # a loaded machine may need more than 15 s to start one
}
"""What a cluster of this machine has beyond Dask's defaults: each death is reported, and each worker comes back."""

ONE_AT_A_TIME = threading.Lock()


@contextmanager
def connect(jobs: int, scheduler: str | None) -> Iterator[Workers]:
    """Yield the workers of a Dask cluster; see :mod:`inrun_bench.runs.backends`.

    Parameters
    ----------
    jobs : int
        Workers of a cluster on this machine, where there is no `scheduler`.
    scheduler : str or None
        ``tcp://host:port``.

    Raises
    ------
    ConnectionError
        If no scheduler answers, or when it no longer does.
    ValueError
        If ``distributed`` is not installed.
    """
    distributed = needed_package("distributed", backend="dask")
    config = needed_package("dask.config", backend="dask")
    with ExitStack() as stack:
        if scheduler is None:
            stack.enter_context(config.set(OF_THIS_MACHINE))
            cluster = distributed.LocalCluster(
                n_workers=joblib.effective_n_jobs(jobs),
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",  # None means the port that is taken where another cluster runs
            )
            address = stack.enter_context(cluster).scheduler_address
        else:
            address = scheduler
        try:
            client = distributed.Client(address, timeout=SECONDS_TO_ANSWER, set_as_default=False)
        except OSError as error:
            raise ConnectionError(
                f"no Dask scheduler answers at {address!r}, tried for {SECONDS_TO_ANSWER} s ({error}); "
                "is it running ('dask scheduler'), and can this machine reach it?"
            ) from error
        executor = stack.enter_context(client).get_executor(pure=False)

        def submit(call: Callable[..., Any], *arguments: object) -> Future[Any]:
            future: Future[Any] = executor.submit(_do, call, *arguments)
            return future

        def deaths(error: BaseException) -> int:
            return error.allowed_failures + 1 if isinstance(error, distributed.KilledWorker) else 0

        try:
            yield Workers(submit, slots=lambda: len(client.nthreads()), deaths=deaths)
        except (CancelledError, distributed.comm.CommClosedError) as error:
            raise ConnectionError(
                f"lost the Dask scheduler at {address!r}; what was finished is kept, run again to go on"
            ) from error


def _do(call: Callable[..., Any], *arguments: object) -> Any:
    with ONE_AT_A_TIME:
        return call(*arguments)
