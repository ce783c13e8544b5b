"""Training points from near to far, and the rule for ties.

**Ties**: of training points at the same distance the one with the lower index is the nearer. Distances that differ by
no more than the rounding error of their computation count as the same (a run of neighbours, each that close to the
next, too), so that duplicates tie however a matrix product rounds.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baselines.arguments import whole_number
from baselines.knn.distances import Distances
from baselines.knn.over_test_points import ValuesOfBlock

__all__ = ["Neighbours", "checked_k", "from_neighbours"]


@dataclass(frozen=True)
class Neighbours:
    """All training points from near to far, for a block of test points.

    Attributes
    ----------
    rows : slice
        The test points.
    order : intp [b, n]
        Training points from near to far, ties by index.
    keys : float64 [b, n]
        Their keys, ascending.
    tied_with_next : bool [b, n - 1]
        Whether a neighbour is at the same distance as the next one.
    """

    rows: slice
    order: NDArray[np.intp]
    keys: NDArray[np.float64]
    tied_with_next: NDArray[np.bool_]

    def keys_without_rounding(self) -> NDArray[np.float64]:
        """Keys [b, n], those of a tie all equal to the first of them."""
        first = np.zeros(self.order.shape, dtype=np.intp)  # position of the first of a tie
        first[:, 1:] = np.where(self.tied_with_next, 0, np.arange(1, self.order.shape[1]))
        return np.take_along_axis(self.keys, np.maximum.accumulate(first, axis=1), axis=1)


def from_neighbours(distances: Distances, rule: Callable[[Neighbours], NDArray[np.float64]]) -> ValuesOfBlock:
    """Turn a rule for sorted neighbours into one for blocks of distances.

    Parameters
    ----------
    distances : Distances
        Where the keys come from.
    rule : callable
        Values (float64 [b, n], from near to far) of the neighbours of a block of test points.

    Returns
    -------
    callable
        Sum of the values over a block of test points, by training point.
    """

    def values_of_block(keys: NDArray[np.float64], rows: slice) -> NDArray[np.float64]:
        neighbours = _neighbours(distances, keys, rows)
        values = rule(neighbours)
        sums = np.bincount(neighbours.order.ravel(), values.ravel(), minlength=distances.n_train)
        return sums.astype(np.float64)

    return values_of_block


def checked_k(k: int, distances: Distances) -> int:
    """Return the number of neighbours, 1 to n, or raise."""
    if whole_number("k", k) > distances.n_train:
        raise ValueError(f"k must be at most the number of training points, {distances.n_train}, got {k}")
    return int(k)


def _neighbours(distances: Distances, keys: NDArray[np.float64], rows: slice) -> Neighbours:
    order = np.argsort(keys, axis=1)
    ascending = np.take_along_axis(keys, order, axis=1)
    tied_with_next = np.diff(ascending, axis=1) <= distances.margin(ascending[:, :-1], rows)
    if tied_with_next.any():
        _sort_ties_by_index(order, tied_with_next)
    return Neighbours(rows, order, ascending, tied_with_next)


def _sort_ties_by_index(order: NDArray[np.intp], tied_with_next: NDArray[np.bool_]) -> None:
    """Sort each run of tied neighbours in `order` [b, n] by index, in place; `tied_with_next` is bool [b, n - 1]."""
    b, n = order.shape
    never = np.zeros((b, 1), dtype=np.bool_)
    tied_with_last = np.concatenate([never, tied_with_next], axis=1)
    tied = tied_with_last | np.concatenate([tied_with_next, never], axis=1)
    run = np.cumsum(~tied_with_last).reshape(b, n)  # numbered through all rows
    # one sort for all: runs are in place already, and within a run the index decides
    order[tied] = np.sort(run[tied] * n + order[tied]) % n
