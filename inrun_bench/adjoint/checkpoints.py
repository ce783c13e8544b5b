r"""The states of a run, once forwards and once backwards.

A backward sweep needs the states in the opposite order of their making. Three ways to have them, which give the same
bits:

========== ============================== ======================= =====================
way        states held, of T              beyond the run itself   when
========== ============================== ======================= =====================
memory     T                              nothing                 they fit
disk       T, in a temporary file         writing and reading it  a directory was given
recomputed 2 sqrt(T), in memory           one more forward run    otherwise
========== ============================== ======================= =====================

Recomputed: every :math:`\lceil\sqrt T\rceil`-th state is kept, and the segment behind it run again when its turn comes
(Griewank: *Achieving logarithmic growth of temporal and spatial complexity in reverse automatic differentiation*,
Optimization Methods and Software 1, 1992, of which this is the simplest case, with two levels).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch

from inrun_bench.adjoint.updates import State

__all__ = ["AUTOMATIC", "StateStorage", "Storage", "run_then_reverse", "states_held"]

StateStorage: TypeAlias = Literal["memory", "disk", "recomputed"]
Transition: TypeAlias = Callable[[int, State], State]


@dataclass(frozen=True)
class Storage:
    """Where the states of a run are kept, all ways giving the same bits, and where finished runs are.

    Parameters
    ----------
    way : {"memory", "disk", "recomputed"}, optional
        Default: memory where the states fit, else disk where a directory is given, else recomputed.
    memory_bytes : int, optional
        What the runs that are differentiated at the same time may take. Default: half of what is free.
    directory : path, optional
        Where the temporary file of ``"disk"`` is made. Default for ``way="disk"``: that of the system.
    runs : path, optional
        Folder in which finished runs are kept, and found again: see :mod:`~inrun_bench.adjoint.run_cache`. Default:
        they are not kept.
    """

    way: StateStorage | None = None
    memory_bytes: int | None = None
    directory: Path | None = None
    runs: Path | None = None

    def __post_init__(self) -> None:
        allowed = get_args(StateStorage)
        if self.way is not None and self.way not in allowed:
            raise ValueError(f"way must be one of {', '.join(map(repr, allowed))} or None, got {self.way!r}")


AUTOMATIC = Storage()


def states_held(way: StateStorage, n_steps: int) -> int:
    """Return how many states are kept at most, in memory or on disk."""
    return min(n_steps, 2 * _segment(n_steps)) if way == "recomputed" else n_steps


def run_then_reverse(
    first: State, step: Transition, n_steps: int, way: StateStorage, directory: Path | None = None
) -> tuple[State, Iterator[tuple[int, State]]]:
    """Run all steps and return the last state, and an iterator over the others, latest first.

    Parameters
    ----------
    first : State
        Before the first step.
    step : callable
        From the number of a step and the state before it to the state after it: always the same, to the last bit.
    n_steps : int
        Number of steps T, at least 1.
    way : {"memory", "disk", "recomputed"}
        How the states are kept.
    directory : path, optional
        Where the temporary file is made.

    Returns
    -------
    last : State
        After the last step.
    backwards : iterator of (int, State)
        The numbers of the steps, from T - 1 to 0, each with the state before it.

    Raises
    ------
    OSError
        If the file cannot be made or written; the message says how many bytes it needs.
    """
    if way == "memory":
        return _from_memory(first, step, n_steps)
    if way == "disk":
        return _from_disk(first, step, n_steps, directory)
    return _recomputed(first, step, n_steps)


def _from_memory(first: State, step: Transition, n_steps: int) -> tuple[State, Iterator[tuple[int, State]]]:
    states = _segment_states(first, step, range(n_steps))
    last = step(n_steps - 1, states[-1])

    def backwards() -> Iterator[tuple[int, State]]:
        for number in reversed(range(n_steps)):
            yield number, states.pop()

    return last, backwards()


def _recomputed(first: State, step: Transition, n_steps: int) -> tuple[State, Iterator[tuple[int, State]]]:
    length = _segment(n_steps)
    kept: dict[int, State] = {}
    state = first
    for number in range(n_steps):
        if number % length == 0:
            kept[number] = state
        state = step(number, state)

    def backwards() -> Iterator[tuple[int, State]]:
        for start in reversed(list(kept)):
            numbers = range(start, min(start + length, n_steps))
            states = _segment_states(kept.pop(start), step, numbers)
            for number in reversed(numbers):
                yield number, states.pop()

    return state, backwards()


def _from_disk(
    first: State, step: Transition, n_steps: int, directory: Path | None
) -> tuple[State, Iterator[tuple[int, State]]]:
    shape, dtype, device = (n_steps, len(first), len(first[0])), first[0].dtype, first[0].device
    file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - closed by the iterator, or below
    state = first
    try:
        for number in range(n_steps):
            # written, not mapped: on a full disk a mapping ends the process, while a write is an error
            for row in state:
                file.write(row.cpu().numpy().data)
            state = step(number, state)
        file.flush()
        stored = np.memmap(file, dtype=first[0].cpu().numpy().dtype, mode="r", shape=shape)
    except OSError as error:
        with suppress(OSError):  # closing writes what is still to be written
            file.close()
        needed = math.prod(shape) * first[0].element_size()
        where = tempfile.gettempdir() if directory is None else str(directory)
        message = f"the states of this run, {needed} bytes, could not be kept in {where!r}: {error.strerror}"
        raise OSError(error.errno, message) from error
    except BaseException:
        file.close()
        raise

    def backwards() -> Iterator[tuple[int, State]]:
        with file:
            for number in reversed(range(n_steps)):
                rows = torch.from_numpy(np.array(stored[number])).to(device, dtype)
                yield number, tuple(rows)

    return state, backwards()


def _segment_states(first: State, step: Transition, numbers: range) -> list[State]:
    """Return the states before each of the numbered steps."""
    states = [first]
    for number in numbers[:-1]:
        states.append(step(number, states[-1]))
    return states


def _segment(n_steps: int) -> int:
    return math.isqrt(n_steps - 1) + 1  # the root, rounded up
