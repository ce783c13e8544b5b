r"""A ready k-NN graph in place of features: for each test point the nearest training points, and no others.

Approximate searches, other metrics and sparse features come in by this door: whoever has found the neighbours passes
them. The order of training points that are not listed is unknown, so that **they never vote**: values are exact for the
game in which the neighbours of a test point in a coalition are the listed ones in it. With all training points listed
it is the game without a graph. With :math:`K \ge k` listed it is that game for all coalitions with at least :math:`k`
listed members, the whole training set among them, so that values add up to the same; those of `knn_shapley` differ by
at most :math:`1 / K` (the truncation of Jia et al. 2019, arXiv 1908.08619, Theorem 2), and who is listed for no test
point has the value 0. Threshold values are the same with and without a graph that lists all within the radius.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from baselines.arguments import whole_number
from baselines.real_numbers import check_exact, check_unmasked, real_numbers

__all__ = ["KNNGraph", "listed"]


@dataclass(frozen=True, eq=False)
class KNNGraph:
    """Nearest training points of each test point, as searches return them.

    It goes in the place of `x_test`, with `metric="precomputed"` and None for `x_train`. So does a SciPy sparse matrix
    of distances [t, n], such as scikit-learn's `kneighbors_graph(..., mode="distance")` returns.

    Attributes
    ----------
    indices : int [t, K]
        Numbers of the K nearest training points of each test point, from near to far.
    distances : float [t, K], optional
        Their distances. Weighted and threshold values need them; where they are given, they tell the order, and equal
        ones tie.
    n_train : int
        Number of training points.

    Examples
    --------
    >>> from baselines.knn import KNNGraph, knn_shapley
    >>> graph = KNNGraph([[2, 0], [1, 2]], n_train=3)
    >>> knn_shapley(None, ["a", "b", "a"], graph, ["a", "b"], k=1, metric="precomputed").values.tolist()
    [0.25, 0.5, 0.25]
    """

    indices: ArrayLike
    distances: ArrayLike | None = None
    n_train: int = field(kw_only=True)


@dataclass(frozen=True)
class _Listed:
    """Distances to listed training points; places that a shorter list leaves are infinitely far.

    Attributes
    ----------
    indices : intp [t, w]
        Training points from near to far, ties by index.
    distances : float64 [t, w] or None
        Their distances.
    n_train : int
        Number of training points.
    fewest : int
        Length of the shortest list.
    """

    indices: NDArray[np.intp]
    distances: NDArray[np.float64] | None
    n_train: int
    fewest: int

    @property
    def metric(self) -> str:
        return "precomputed"

    @property
    def n_test(self) -> int:
        return len(self.indices)

    @property
    def n_listed(self) -> int:
        return int(self.indices.shape[1])

    def prepare(self, chunk: slice, out: NDArray[np.float64]) -> None:
        """Nothing: all is there."""

    def keys(self, rows: slice, prepared: NDArray[np.float64]) -> NDArray[np.float64]:
        prepared[...] = np.arange(self.n_listed) if self.distances is None else self.distances[rows]
        return prepared

    def ties(self, order: NDArray[np.intp], ascending: NDArray[np.float64], rows: slice) -> NDArray[np.bool_]:  # noqa: ARG002
        tied: NDArray[np.bool_] = ascending[:, 1:] == ascending[:, :-1]
        return tied

    def players(self, rows: slice) -> NDArray[np.intp]:
        return self.indices[rows]

    def lengths(self, keys: NDArray[np.float64], rows: slice) -> NDArray[np.float64]:  # noqa: ARG002
        if self.distances is None:
            raise ValueError("the k-NN graph has no distances, which these values need; pass them to KNNGraph")
        return keys

    def within(self, radius: float, keys: NDArray[np.float64], rows: slice) -> NDArray[np.bool_]:
        within: NDArray[np.bool_] = self.lengths(keys, rows) <= radius
        if self.fewest == self.n_listed < self.n_train and (all_within := within.all(axis=1)).any():
            raise ValueError(
                f"a k-NN graph must reach beyond the radius, but all {self.n_listed} training points that it lists for "
                f"test point {rows.start + np.argmax(all_within)} are within {radius}, so that others may be as well; "
                "list more, or all within the radius (radius_neighbors_graph)"
            )
        return within


def listed(graph: KNNGraph | Any) -> _Listed:
    """Check a k-NN graph, a record or a sparse matrix of distances [t, n], and sort it.

    Raises
    ------
    TypeError
        If indices or the number of training points are no integers, or distances no numbers.
    ValueError
        If shapes do not match, a test point has a training point twice or one that does not exist, distances are
        negative or not finite, or a sparse matrix holds nothing but ones, and so no distances.
    """
    indices, distances, n_train = _from_record(graph) if isinstance(graph, KNNGraph) else _from_sparse(graph)
    there = indices >= 0
    if distances is not None:
        wrong = there & ~((distances >= 0) & (distances < np.inf))
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise ValueError(
                f"distances of a k-NN graph must be finite and not negative, got {distances[row, column]} "
                f"between test point {row} and training point {indices[row, column]}"
            )
        nearest = np.lexsort((indices, distances), axis=1)
        indices = np.take_along_axis(indices, nearest, axis=1)
        distances = np.take_along_axis(distances, nearest, axis=1)
        there = indices >= 0
    by_index = np.sort(indices, axis=1)
    twice = ((by_index[:, 1:] == by_index[:, :-1]) & (by_index[:, 1:] >= 0)).any(axis=1)
    if twice.any():
        raise ValueError(
            f"a k-NN graph must list a training point once, got one twice for test point {np.argmax(twice)}"
        )
    return _Listed(np.maximum(indices, 0), distances, n_train, int(there.sum(axis=1).min()))


def _from_record(graph: KNNGraph) -> tuple[NDArray[np.intp], NDArray[np.float64] | None, int]:
    check_unmasked("indices of a k-NN graph", graph.indices)
    n_train = whole_number("n_train of a k-NN graph", graph.n_train)
    indices = np.asarray(graph.indices)
    if indices.ndim != 2 or indices.size == 0:
        raise ValueError(f"indices of a k-NN graph must have shape (test points, neighbours), got {indices.shape}")
    if indices.dtype.kind not in "iu":
        raise TypeError(f"indices of a k-NN graph must be integers, got an array of {indices.dtype}")
    wrong = (indices < 0) | (indices >= n_train)
    if wrong.any():
        raise ValueError(
            f"indices of a k-NN graph must be from 0 to n_train - 1 = {n_train - 1}, got {indices[wrong][0]} "
            f"for test point {np.argwhere(wrong)[0][0]}"
        )
    if graph.distances is None:
        return indices.astype(np.intp), None, n_train
    distances = real_numbers("distances of a k-NN graph", graph.distances)
    if distances.shape != indices.shape:
        raise ValueError(
            f"distances of a k-NN graph must have the shape of its indices, {indices.shape}, got {distances.shape}"
        )
    return indices.astype(np.intp), distances.astype(np.float64), n_train


def _from_sparse(matrix: Any) -> tuple[NDArray[np.intp], NDArray[np.float64], int]:
    """Lists of a sparse matrix, those that are shorter filled up with -1, at infinity."""
    csr = matrix.tocsr()
    if 0 in csr.shape:
        raise ValueError(f"a k-NN graph must have at least one test point and one training point, got {csr.shape}")
    lengths = np.diff(csr.indptr)
    if csr.dtype.kind not in "iuf" or (lengths.max() > 1 and np.all(csr.data == 1)):
        raise ValueError(
            "a sparse k-NN graph must hold distances, got one that only tells who is a neighbour; make it with "
            "mode='distance', or pass KNNGraph(indices, n_train=...) with neighbours from near to far"
        )
    check_exact("distances of a k-NN graph", csr.data)
    there = np.arange(max(1, lengths.max())) < lengths[:, None]
    indices, distances = np.full(there.shape, -1, dtype=np.intp), np.full(there.shape, np.inf)
    indices[there], distances[there] = csr.indices, csr.data
    return indices, distances, csr.shape[1]
