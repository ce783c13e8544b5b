"""Calls that take turns, so that a busy machine is as busy for one as for another, and the clocks that time them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np
import torch

from inrun_bench.runs.unit import Row

__all__ = [
    "Call",
    "Clock",
    "Rounds",
    "described",
    "event_seconds",
    "host_seconds",
    "quartiles",
    "take_turns",
    "wall_seconds",
]

FEWEST_ROUNDS = 3
FLUSH_BYTES = 2**31
"""Written before a call: many times any L2 cache, and long enough (0.7 ms) to hide what Python does before a launch."""

Call: TypeAlias = Callable[[], object]
Clock: TypeAlias = Callable[[Call], float]
Rounds: TypeAlias = list[dict[str, float]]


def take_turns(
    calls: Mapping[str, Call],
    rounds: int,
    clock: Clock | Mapping[str, Clock],
    *,
    budget: float = math.inf,
    takes_part: Callable[[str, int], bool] = lambda _name, _number: True,
    before: Callable[[str], None] = lambda _name: None,
    failed: Callable[[str, str], None] | None = None,
) -> Rounds:
    """Time calls in turns; each round starts with another one.

    Parameters
    ----------
    calls : mapping of str to callable
        By name; each has run before, so that it is warm.
    rounds : int
        At most so many.
    clock : callable, or mapping of str to callable
        Times a call, in seconds; or that of each.
    budget : float
        Seconds after which no new round begins, but for the first three.
    takes_part : callable
        Given a name and the number of a round, whether the call takes part in it.
    before : callable
        Told the name of each call that is about to be made.
    failed : callable, optional
        Told the name of a call that raised, and what it raised; it takes no more part. Without it, that is raised.

    Returns
    -------
    Rounds
        Seconds by name, in the order of `calls`, for each round; calls that failed are in none.
    """
    out: set[str] = set()
    taken: Rounds = []
    deadline = time.perf_counter() + budget
    while len(taken) < rounds and (len(taken) < FEWEST_ROUNDS or time.perf_counter() <= deadline):
        names = [name for name in calls if name not in out and takes_part(name, len(taken))]
        first = len(taken) % max(1, len(names))
        seconds = {}
        for name in (*names[first:], *names[:first]):
            before(name)
            said = ""
            try:
                seconds[name] = (clock[name] if isinstance(clock, Mapping) else clock)(calls[name])
            except Exception as error:
                if failed is None:
                    raise
                said = described(error)
            if said and failed is not None:  # here, where no exception holds what the call has left behind
                out.add(name)
                failed(name, said)
        taken.append(seconds)
    return [{name: one[name] for name in calls if name in one and name not in out} for one in taken]


def wall_seconds(call: Call, calls: int | None = None) -> float:
    """Return the mean time of `calls` calls in a row on the wall clock, by default of three on a GPU and else of one.

    What Python does between launches belongs to it, and so does the work of the GPU.
    """
    calls = calls or (3 if torch.cuda.is_available() else 1)
    _synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    _synchronize()
    return (time.perf_counter() - start) / calls


def host_seconds(call: Call) -> float:
    """Time one call on the wall clock until it returns, which on a GPU is before its work is done."""
    _synchronize()
    start = time.perf_counter()
    call()
    taken = time.perf_counter() - start
    _synchronize()
    return taken


def event_seconds(call: Call) -> float:
    """Time one call on the GPU's own clock, with nothing of its inputs in the cache."""
    if not torch.cuda.is_available():
        return wall_seconds(call)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.empty(FLUSH_BYTES // 8, dtype=torch.int64, device="cuda").fill_(1)
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def quartiles(numbers: Iterable[float]) -> Row:
    """Return the median as the value of a row, and the quartiles beside it."""
    low, middle, high = (float(q) for q in np.quantile(list(numbers), (0.25, 0.5, 0.75)))
    return {"value": middle, "low": low, "high": high}


def described(error: BaseException) -> str:
    """Return what a row says of an error."""
    return f"{type(error).__name__}: {error}"


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
