"""Generators of random numbers that everyone shares: what draws from them is another thing each time.

A draw is seen in the generator's state, whatever it was for, so that it is found even where it changed nothing: the
sample that was left out this time made no difference, or one is drawn only beyond some size.
"""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Callable

import numpy as np

__all__ = ["draws_from", "states"]


def draws_from(before: dict[str, bytes], again: Callable[[], object]) -> list[str]:
    """Return the names of the shared generators that something has drawn from that has just run, or none of them.

    Parameters
    ----------
    before : dict
        What `states` said before it ran.
    again : callable
        Runs it another time, where a state has changed: what seeds a generator itself leaves it in the same state from
        wherever it starts, and draws the same; what another thread has drawn it does not draw.
    """
    after = states()
    changed = {name for name in before if before[name] != after[name]}
    if not changed:
        return []
    for name in changed:
        _GENERATORS[name][1]()
    start = states()
    again()
    end = states()
    return [name for name in _GENERATORS if name in changed and end[name] not in (start[name], after[name])]


def states() -> dict[str, bytes]:
    """Return the states of the shared generators by name; of torch's only where torch has been imported."""
    return {name: pickle.dumps(state_of()) for name, (state_of, _) in _GENERATORS.items() if name in sys.modules}


def _torch_state() -> object:
    return sys.modules["torch"].get_rng_state().numpy().tobytes()


_GENERATORS: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "numpy.random": (lambda: np.random.get_state(legacy=False), np.random.random_sample),  # noqa: NPY002
    "random": (random.getstate, random.random),
    "torch": (_torch_state, lambda: sys.modules["torch"].rand(1)),
}
