"""Calls that take turns, and the clocks that time them, on a GPU or without one."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch

from inrun_bench.runs.unit import Row, Setting

__all__ = [
    "Attempt",
    "Call",
    "DeviceLostError",
    "Rounds",
    "described",
    "device",
    "error_row",
    "event_seconds",
    "quartiles",
    "rate",
    "recover",
    "seconds",
    "take_turns",
    "wall_seconds",
]

FEWEST_ROUNDS = 3
FLUSH_BYTES = 2**31
"""Written before a call: many times any L2 cache, and long enough (0.7 ms) to hide what Python does before a launch."""

Call: TypeAlias = Callable[[], object]
Rounds: TypeAlias = list[dict[str, float]]


class DeviceLostError(RuntimeError):
    """The GPU does nothing more for this process, as after an illegal address: another process must go on."""


@dataclass(frozen=True)
class Attempt:
    """One try at a unit.

    Attributes
    ----------
    begin : callable
        Told the name of each method that is about to be made or called, so that whoever looks on knows which one a
        process died of.
    avoided : collection of str
        Methods that an earlier try ended with.
    """

    begin: Callable[[str], None] = lambda _name: None
    avoided: Mapping[str, str] = field(default_factory=dict)

    def wanted(self, names: Iterable[str]) -> list[str]:
        """Return the names that are to be tried."""
        return [name for name in names if name not in self.avoided]


def device() -> str:
    """Return the kind of device that everything here runs on."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def take_turns(
    calls: Mapping[str, Call],
    settings: Mapping[str, Setting],
    clock: Callable[[Call], float],
    attempt: Attempt,
    *,
    warm_up: int = 2,
) -> tuple[Rounds, dict[str, str]]:
    """Return the seconds of each call in each round, and the messages of calls that failed, which are in no round.

    Each round starts with another call. First, `warm_up` calls of each: kernels are compiled, and an engine checks
    itself in its first three steps. There are at most ``settings["rounds"]`` rounds, and no new ones, but for the first
    three, after ``settings["budget"]`` seconds.

    Raises
    ------
    DeviceLostError
        If a call leaves a GPU that serves no other.
    """
    failed: dict[str, str] = {}
    for name, call in calls.items():
        attempt.begin(name)
        try:
            for _ in range(warm_up):
                call()
            _synchronize()
        except Exception as error:  # out of memory, perhaps; the others go on
            failed[name] = described(error)
        if name in failed:
            recover(failed[name])
    rounds: Rounds = []
    deadline = time.perf_counter() + float(settings["budget"])
    while len(rounds) < int(settings["rounds"]):
        if len(rounds) >= FEWEST_ROUNDS and time.perf_counter() > deadline:
            break
        names = [name for name in calls if name not in failed]
        first = len(rounds) % max(1, len(names))
        taken = {}
        for name in (*names[first:], *names[:first]):
            attempt.begin(name)
            try:
                taken[name] = clock(calls[name])
            except Exception as error:
                failed[name] = described(error)
            if name in failed:
                recover(failed[name])
        rounds.append(taken)
    return [{name: taken[name] for name in calls if name not in failed} for taken in rounds], failed


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


def wall_seconds(call: Call) -> float:
    """Time a few calls in a row on the wall clock: what Python does between launches belongs to a step."""
    calls = 3 if torch.cuda.is_available() else 1
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


def rate(name: str, rounds: Rounds, amount: float) -> Row:
    """Return `amount` in 10^12 per second, by round, and the seconds."""
    return {**quartiles(amount / taken[name] / 1e12 for taken in rounds), "seconds": seconds(name, rounds)}


def seconds(name: str, rounds: Rounds) -> float:
    """Return the median over rounds."""
    return float(np.median([taken[name] for taken in rounds]))


def quartiles(numbers: Iterable[float]) -> Row:
    """Return the median as the value of a row, and the quartiles beside it."""
    low, middle, high = (float(q) for q in np.quantile(list(numbers), (0.25, 0.5, 0.75)))
    return {"value": middle, "low": low, "high": high}


def described(error: BaseException) -> str:
    """Return what a row says of an error."""
    return f"{type(error).__name__}: {error}"


def recover(said: str = "") -> None:
    """Give back the memory that nobody holds any more; call it where no exception holds the frames that do.

    Raises
    ------
    DeviceLostError
        If the GPU does nothing more for this process, saying `said`.
    """
    gc.collect()  # engines and models hold each other
    if not torch.cuda.is_available():
        return
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.ones(1, device="cuda").item()
    except torch.OutOfMemoryError:
        return
    except RuntimeError as error:
        raise DeviceLostError(said or described(error)) from error


def error_row(method: str, said: str) -> Row:
    """Return the row of something that failed."""
    return {"method": method, "metric": "error", "status": "error", "message": said}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
