"""Backends: where units of work run. One file a place: this machine, a Dask cluster, a Ray cluster.

A backend is a module with

``connect(jobs, scheduler)``
    a context manager that yields :class:`Workers`: those of the cluster at the address `scheduler`, or, where that is
    None, `jobs` processes of this machine (-1 for one a core), which end with the context.

Workers share nothing with the process that sends them work, no disk either: a call carries all that it needs, and
its result carries all that it found. So whoever sends the work alone touches the store, and a worker can die at any
moment without harm to it.

A worker's death is reported, never raised for the run as a whole, and never repeated in silence without bound: it is
the runner that decides how often a unit is tried again, in the same way wherever the unit runs.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, cast

from tasks.registry import Registry

__all__ = ["BACKENDS", "SECONDS_TO_ANSWER", "Backend", "Workers", "needed_package"]

SECONDS_TO_ANSWER = 5
"""How long a cluster has to answer the first call."""


@dataclass(frozen=True)
class Workers:
    """Processes that do what they are sent.

    Attributes
    ----------
    submit : callable
        ``submit(call, *arguments)`` has a worker do the call and returns its Future. All of it travels by pickle.
    slots : callable
        How many calls can run at a time, now: workers come and go. 0 while there is none.
    deaths : callable
        How many workers the exception of a Future says have died of the call; 0 where it says something else.
    """

    submit: Callable[..., Future[Any]]
    slots: Callable[[], int]
    deaths: Callable[[BaseException], int]


class Backend(Protocol):
    """What a module of this package offers; see above."""

    def connect(self, jobs: int, scheduler: str | None) -> AbstractContextManager[Workers]:
        """Return a context with workers; a cluster that is not there raises ConnectionError on entry."""


def needed_package(name: str, backend: str) -> ModuleType:
    """Import a package that comes with the backend's extra, and raise ValueError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"backend {backend!r} needs the package {name!r} ({error}); pip install 'inrun-bench[{backend}]'"
        ) from error


def _collect(name: str, module: ModuleType) -> dict[str, Backend]:
    return {name: cast(Backend, module)}


BACKENDS: Registry[Backend] = Registry("backend", sys.modules[__name__], _collect)
