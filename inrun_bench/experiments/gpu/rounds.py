"""Calls that take turns on a GPU, or without one, and may fail, or leave a GPU that serves nobody."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from inrun_bench.runs.timing import Call, Clock, Rounds, described, host_seconds, quartiles, take_turns
from inrun_bench.runs.unit import Row, Setting

__all__ = [
    "Attempt",
    "DeviceLostError",
    "attempt_rounds",
    "device",
    "error_row",
    "rate",
    "recover",
    "seconds",
]


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


def attempt_rounds(
    calls: Mapping[str, Call],
    settings: Mapping[str, Setting],
    clock: Clock,
    attempt: Attempt,
    *,
    warm_up: int = 2,
) -> tuple[Rounds, dict[str, str]]:
    """Return the seconds of each call in each round, and the messages of calls that failed, which are in no round.

    First, `warm_up` calls of each: kernels are compiled, and an engine checks itself in its first three steps. There
    are at most ``settings["rounds"]`` rounds, and no new ones, but for the first three, after ``settings["budget"]``
    seconds.

    Raises
    ------
    DeviceLostError
        If a call leaves a GPU that serves no other.
    """
    failed: dict[str, str] = {}

    def fail(name: str, said: str) -> None:
        failed[name] = said
        recover(said)

    take_turns(calls, warm_up, host_seconds, before=attempt.begin, failed=fail)
    calls = {name: call for name, call in calls.items() if name not in failed}
    taken = take_turns(
        calls,
        int(settings["rounds"]),
        clock,
        budget=float(settings["budget"]),
        before=attempt.begin,
        failed=fail,
    )
    return taken, failed


def rate(name: str, rounds: Rounds, amount: float) -> Row:
    """Return `amount` in 10^12 per second, by round, and the seconds."""
    return {**quartiles(amount / taken[name] / 1e12 for taken in rounds), "seconds": seconds(name, rounds)}


def seconds(name: str, rounds: Rounds) -> float:
    """Return the median over rounds."""
    return float(np.median([taken[name] for taken in rounds]))


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
