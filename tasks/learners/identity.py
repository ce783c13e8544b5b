"""The identity of a learner's game: a digest that keys a store of its utilities."""

import hashlib
import json
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

__all__ = ["identity_of"]


def identity_of(learner: str, parameters: Mapping[str, object], *arrays: NDArray[np.float64 | np.int64]) -> str:
    """Return a SHA-256 digest, as 64 hexadecimal digits, of a learner, its parameters and its samples.

    Parameters
    ----------
    learner : str
        Name of the game's class.
    parameters : mapping
        Whatever changes the utilities: numbers, strings, booleans.
    *arrays : float64 or int64 arrays
        Samples, in a fixed order.

    Returns
    -------
    str
        The same on every machine and in every process; another one when any of the above changes, be it by one bit.
    """
    shapes = [[array.dtype.str, *array.shape] for array in arrays]
    digest = hashlib.sha256(json.dumps([learner, parameters, shapes], sort_keys=True).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
