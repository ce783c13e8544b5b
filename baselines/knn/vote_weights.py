"""Weights of votes, by distance, and their discretisation."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Weights", "discretised", "weight_function"]

Weights: TypeAlias = str | Callable[[NDArray[np.float64]], NDArray[np.float64]]
_WeightFunction: TypeAlias = Callable[[NDArray[np.float64]], NDArray[np.float64]]

_HALF = 0.5 + 1e-9  # a half goes up, however the distances round


def weight_function(weights: Weights, k: int) -> tuple[_WeightFunction, str]:
    """Return the map from ascending distances [b, n] to weights [b, n], and its name.

    Parameters
    ----------
    weights : str or callable
        "inverse distance", "rbf", or a function of distances.
    k : int
        The neighbour whose distance is the bandwidth of "rbf".

    Returns
    -------
    function : callable
    name : str

    Raises
    ------
    TypeError
        If `weights` is neither a string nor callable.
    ValueError
        If the name is unknown. The function raises it if weights are NaN, negative or of another shape.
    """
    if weights == "inverse distance":
        return _inverse_distance, weights
    if weights == "rbf":
        return lambda distances: _rbf(distances, k), weights
    if isinstance(weights, str):
        raise ValueError(f"weights must be 'inverse distance', 'rbf' or a function of distances, got {weights!r}")
    if not callable(weights):
        raise TypeError(
            "weights must be 'inverse distance', 'rbf' or a function of distances, "
            f"got {weights!r} ({type(weights).__name__})"
        )
    return lambda distances: _checked(weights(distances), distances), getattr(
        weights, "__name__", type(weights).__name__
    )


def discretised(weights: NDArray[np.float64], largest: int) -> NDArray[np.int64]:
    """Round weights [b, n] to whole multiples of 1 / `largest` of the largest in their row; positive ones to 1 or more.

    An infinite weight is the largest, and finite ones beside it are as small as can be.
    """
    peaks = weights.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # 0 / 0 has no vote, inf / inf is a peak
        shares = np.where(weights == peaks, 1.0, weights / peaks)
    levels = np.clip(np.floor(shares * largest + _HALF), 1, largest)
    votes: NDArray[np.int64] = np.where(weights > 0, levels, 0).astype(np.int64)
    return votes


def _inverse_distance(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", over="ignore"):  # a point at the same place outweighs all others
        weights: NDArray[np.float64] = 1 / distances
    return weights


def _rbf(distances: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Gaussian weights, in units of the distance of the k-th nearest; if that is 0, only points there have a vote."""
    bandwidth = distances[:, k - 1 : k]
    with np.errstate(divide="ignore", over="ignore"):
        apart = np.divide(distances, bandwidth, out=np.zeros_like(distances), where=distances > 0)
        weights: NDArray[np.float64] = np.exp(-(apart**2) / 2)
    return weights


def _checked(weights: object, distances: NDArray[np.float64]) -> NDArray[np.float64]:
    array = np.asarray(weights, dtype=np.float64)
    if array.shape != distances.shape:
        raise ValueError(f"weights must be one for each distance, shape {distances.shape}, got {array.shape}")
    if not (array >= 0).all():
        raise ValueError(f"weights must not be negative or NaN, got {array[~(array >= 0)][0]}")
    return array
