"""Contenders take turns, so that a busy machine is as busy for one as for the other."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import joblib
import torch
from threadpoolctl import threadpool_limits

from inrun_bench.runs.timing import take_turns, wall_seconds
from inrun_bench.runs.unit import Row

__all__ = ["compare", "threads"]


@contextmanager
def threads(number: int | None = None) -> Iterator[None]:
    """Give torch and the linear algebra libraries so many threads, one a core where None, until the block ends."""
    wanted, before = number or joblib.cpu_count(), torch.get_num_threads()
    torch.set_num_threads(wanted)
    try:
        with threadpool_limits(wanted):
            yield
    finally:
        torch.set_num_threads(before)


def compare(
    contenders: Mapping[str, Callable[[], object]], rival: str, *, repeats: int, work: Mapping[str, int] | None = None
) -> list[Row]:
    """Time contenders in turns.

    Parameters
    ----------
    contenders : mapping of str to callable
        Ours first; each has run once before.
    rival : str
        Name of the one to compare ours with.
    repeats : int
        Rounds.
    work : mapping of str to int, optional
        Pieces of work in a call, where these differ; ratios are of the time for a piece.

    Returns
    -------
    list of Row
        Median seconds of each, pieces of work a second where `work` is given, and the median over rounds of the
        rival's time over ours.
    """
    ours = next(iter(contenders))
    rounds = take_turns(contenders, repeats, wall_seconds)
    rows: list[Row] = []
    for name in contenders:
        seconds = statistics.median(taken[name] for taken in rounds)
        rows.append({"contender": name, "metric": "seconds", "value": seconds})
        if work:
            rows.append({"contender": name, "metric": "evaluations_per_second", "value": work[name] / seconds})
    pieces = work or dict.fromkeys(contenders, 1)
    ratios = [taken[rival] / pieces[rival] / (taken[ours] / pieces[ours]) for taken in rounds]
    return [*rows, {"contender": ours, "metric": "speedup", "value": statistics.median(ratios)}]
