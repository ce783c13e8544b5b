"""Calls that take turns, and the clocks that time them, on a GPU or without one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np
import torch

from inrun_bench.unit import Row, Setting

__all__ = [
    "Call",
    "Rounds",
    "device",
    "error_row",
    "event_seconds",
    "message",
    "quartiles",
    "rate",
    "seconds",
    "take_turns",
    "wall_seconds",
]

FEWEST_ROUNDS = 3
FLUSH_BYTES = 2**29  # written between two calls: several times any L2 cache, and long enough to hide a launch

Call: TypeAlias = Callable[[], object]
Rounds: TypeAlias = list[dict[str, float]]


def device() -> str:
    """Return the kind of device that everything here runs on."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def take_turns(
    calls: Mapping[str, Call], settings: Mapping[str, Setting], clock: Callable[[Call], float]
) -> tuple[Rounds, dict[str, str]]:
    """Return the seconds of each call in each round, and the messages of calls that failed, which are in no round.

    Each round starts with another call. Four calls of each warm it up: kernels are tuned, graphs compiled, and an
    engine checks itself in its first three steps. There are at most ``settings["rounds"]`` rounds, and no new ones,
    but for the first three, after ``settings["budget"]`` seconds.
    """
    failed: dict[str, str] = {}
    for name, call in calls.items():
        try:
            for _ in range(4):
                call()
            _synchronize()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # what is free tells the next engine how much it may keep
        except Exception as error:  # out of memory, perhaps; the others go on
            failed[name] = message(error)
    rounds: Rounds = []
    deadline = time.perf_counter() + float(settings["budget"])
    while len(rounds) < int(settings["rounds"]):
        if len(rounds) >= FEWEST_ROUNDS and time.perf_counter() > deadline:
            break
        names = [name for name in calls if name not in failed]
        first = len(rounds) % max(1, len(names))
        taken = {}
        for name in (*names[first:], *names[:first]):
            try:
                taken[name] = clock(calls[name])
            except Exception as error:
                failed[name] = message(error)
        rounds.append(taken)
    return [{name: taken[name] for name in calls if name not in failed} for taken in rounds], failed


def event_seconds(call: Call) -> float:
    """Time one call on the GPU's own clock, with nothing of its inputs in the cache."""
    if not torch.cuda.is_available():
        return wall_seconds(call)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda").fill_(1)
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


def message(error: Exception) -> str:
    """Return what a row says of an error, and give back the memory that was asked for in vain."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return f"{type(error).__name__}: {error}"


def error_row(method: str, said: str) -> Row:
    """Return the row of something that failed."""
    return {"method": method, "metric": "error", "status": "error", "message": said}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
