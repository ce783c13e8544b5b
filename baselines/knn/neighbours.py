"""Training points from near to far, and the rule for ties.

**Ties**: of training points at the same distance the one with the lower index is the nearer. Which distances are the
same is for the metric to say (`distances`); where it is told up to rounding, a run of neighbours, each at the distance
of the next, is at one distance.
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
    """Training points from near to far, all or those that are listed, for a block of test points.

    Attributes
    ----------
    rows : slice
        The test points.
    order : intp [b, w]
        Training points from near to far, ties by index.
    """

    rows: slice
    order: NDArray[np.intp]
    _distances: Distances
    _keys: NDArray[np.float64]  # [b, w], in the order that they came in
    _places: NDArray[np.intp]  # [b, w], where they are, from near to far
    _tied_with_next: NDArray[np.bool_]  # [b, w - 1]

    def lengths(self) -> NDArray[np.float64]:
        """Their distances [b, w], ascending, those of a tie all equal."""
        lengths = np.take_along_axis(self._distances.lengths(self._keys, self.rows), self._places, axis=1)
        np.maximum.accumulate(lengths, axis=1, out=lengths)  # keys, and those computed anew, differ by rounding
        first = np.zeros(self.order.shape, dtype=np.intp)  # position of the first of a tie
        first[:, 1:] = np.where(self._tied_with_next, 0, np.arange(1, self.order.shape[1]))
        return np.take_along_axis(lengths, np.maximum.accumulate(first, axis=1), axis=1)


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
    """Return the number of neighbours, 1 to n, or to as many as are listed; raise otherwise."""
    if distances.fewest < distances.n_listed:
        raise ValueError(
            "a k-NN graph must list equally many training points for each test point, got "
            f"{distances.fewest} to {distances.n_listed}; make it with kneighbors_graph"
        )
    if whole_number("k", k) > distances.n_listed:
        what = "training points" if distances.n_listed == distances.n_train else "neighbours listed in the k-NN graph"
        raise ValueError(f"k must be at most the number of {what}, {distances.n_listed}, got {k}")
    return int(k)


def _neighbours(distances: Distances, keys: NDArray[np.float64], rows: slice) -> Neighbours:
    places = np.argsort(keys, axis=1)
    tied_with_next = distances.ties(places, np.take_along_axis(keys, places, axis=1), rows)
    if tied_with_next.any():
        _sort_ties_by_index(places, tied_with_next)
    players = distances.players(rows)
    order = places if players is None else np.take_along_axis(players, places, axis=1)
    return Neighbours(rows, order, distances, keys, places, tied_with_next)


def _sort_ties_by_index(order: NDArray[np.intp], tied_with_next: NDArray[np.bool_]) -> None:
    """Sort each run of tied neighbours in `order` [b, n] by index, in place; `tied_with_next` is bool [b, n - 1]."""
    b, n = order.shape
    never = np.zeros((b, 1), dtype=np.bool_)
    tied_with_last = np.concatenate([never, tied_with_next], axis=1)
    tied = tied_with_last | np.concatenate([tied_with_next, never], axis=1)
    run = np.cumsum(~tied_with_last).reshape(b, n)  # numbered through all rows
    # one sort for all: runs are in place already, and within a run the index decides
    order[tied] = np.sort(run[tied] * n + order[tied]) % n
