"""Distances from test points to training points, some rows at a time, and how far they can be trusted.

Nearest-neighbour values need three things of a metric: keys that sort the training points from near to far, which of
them tie, and now and then the distances themselves. Keys that are too close to each other for their rounding are no
ground for an order, nor for a tie.

========================================  =================================================  ===========================
metric                                    keys                                               ties
========================================  =================================================  ===========================
"euclidean", "sqeuclidean", "cosine"      by a matrix product (`products`)                   by differences of features
any other that SciPy's `cdist` knows      distances, pair by pair (`pairwise`)               within their rounding
a function, or "precomputed" [t, n]       distances (`pairwise`)                             equal
"precomputed", a k-NN graph               distances, or places in the list (`graph`)         equal
========================================  =================================================  ===========================
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse

from baselines.knn.graph import KNNGraph, listed
from baselines.knn.pairwise import by_function, by_name, from_table
from baselines.knn.products import BY_PRODUCT, by_product
from baselines.real_numbers import check_same_columns, real_numbers

__all__ = ["Distances", "Metric", "Points", "distances_between"]

Metric: TypeAlias = str | Callable[[NDArray[np.float64], NDArray[np.float64]], float]
Points: TypeAlias = ArrayLike | KNNGraph | Any  # a sparse matrix has no type of its own


class Distances(Protocol):
    """Distances between test points and training points, computed for some test points at a time.

    There are w keys for a test point, one for each training point or for each that is listed for it.
    """

    @property
    def metric(self) -> str:
        """Name of the metric."""

    @property
    def n_train(self) -> int:
        """Number of training points."""

    @property
    def n_test(self) -> int:
        """Number of test points."""

    @property
    def n_listed(self) -> int:
        """Number of keys for a test point, w."""

    @property
    def fewest(self) -> int:
        """The least number of them that stand for training points, where lists differ in length."""

    def prepare(self, chunk: slice, out: NDArray[np.float64]) -> None:
        """Do for a chunk of test points what is best done on all cores at once; `out` [c, w] goes to `keys`."""

    def keys(self, rows: slice, prepared: NDArray[np.float64]) -> NDArray[np.float64]:
        """Keys [b, w] that grow with the distance, in the rows that `prepare` has filled (overwritten)."""

    def players(self, rows: slice) -> NDArray[np.intp] | None:
        """Training points that the keys stand for (intp [b, w]); None if they are all, as numbered."""

    def ties(self, order: NDArray[np.intp], ascending: NDArray[np.float64], rows: slice) -> NDArray[np.bool_]:
        """Whether distances tie with the next farther ones (bool [b, w - 1]).

        `order` [b, w] sorts the keys to `ascending` [b, w]. Where rounding could have decided it is corrected, but for
        the order within ties.
        """

    def lengths(self, keys: NDArray[np.float64], rows: slice) -> NDArray[np.float64]:
        """Distances [b, w] that belong to `keys` [b, w]; 0 for a point at the same place."""

    def within(self, radius: float, keys: NDArray[np.float64], rows: slice) -> NDArray[np.bool_]:
        """Whether distances are at most `radius`, to rounding (bool [b, w])."""


def distances_between(x_train: ArrayLike | None, x_test: Points, metric: Metric) -> Distances:
    """Check the features and the metric that an estimator is given.

    Parameters
    ----------
    x_train : float [n, d] or None
        Features of the training points; None with precomputed distances.
    x_test : float [t, d], or float [t, n] or a k-NN graph with precomputed distances
        Features of the test points, their distances to the training points, or those training points that are nearest:
        a `KNNGraph`, or a SciPy sparse matrix of distances [t, n].
    metric : str or callable
        "euclidean", "sqeuclidean", "cosine" (fast); any other metric that `scipy.spatial.distance.cdist` takes by name
        and that needs no statistics of the data; a function of a test and a training point (float64 [d] each) that
        returns their distance, called from several threads; or "precomputed".

    Returns
    -------
    Distances
        No distance is computed yet.

    Raises
    ------
    TypeError
        If features are no numbers or sparse, or `metric` is neither a string nor callable.
    ValueError
        If shapes do not match, two data frames have other columns, a set is empty, features are masked, not finite,
        beyond what can be squared or not to be held by float64, a vector is zero (cosine), the metric is unknown, or a
        k-NN graph is malformed. Distances that are not finite, and negative ones, are refused when they are computed.
    """
    if not isinstance(metric, str) and not callable(metric):
        raise TypeError(f"metric must be a name or a function of two points, got {metric!r} ({type(metric).__name__})")
    if metric == "precomputed":
        return _precomputed(x_train, x_test)
    if isinstance(x_test, KNNGraph) or (x_train is None and issparse(x_test)):
        raise ValueError(f"metric must be 'precomputed' with a k-NN graph, got {metric!r}")
    check_same_columns("x_train", x_train, "x_test", x_test)
    train, test = _features("x_train", x_train), _features("x_test", x_test)
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"x_train and x_test must have the same number of features, got {train.shape[1]} and {test.shape[1]}"
        )
    if not isinstance(metric, str):
        return by_function(train, test, metric)
    return by_product(train, test, metric) if metric in BY_PRODUCT else by_name(train, test, metric)


def _precomputed(x_train: ArrayLike | None, x_test: Points) -> Distances:
    if x_train is not None:
        raise ValueError(
            "x_train must be None with metric='precomputed', since x_test holds the distances from each test point "
            f"(row) to each training point (column), got {type(x_train).__name__}"
        )
    if isinstance(x_test, KNNGraph) or issparse(x_test):
        return listed(x_test)
    return from_table(_matrix("x_test", x_test, "(test points, training points)"))


def _features(name: str, x: ArrayLike | None) -> NDArray[Any]:
    """Return the features as they are, [points, features], having checked that they are finite numbers."""
    if issparse(x):
        raise TypeError(
            f"{name} must be dense, got a sparse {type(x).__name__}; pass .toarray(), fewer features (such as those of "
            "a truncated SVD), or a k-NN graph by a search that takes sparse features, as x_test with "
            "metric='precomputed' (KNNGraph)"
        )
    features = _matrix(name, x, "(points, features)")
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(features).all(axis=1))
    if not finite.all():
        raise ValueError(
            f"{name} must be finite, got NaN or infinity in {np.count_nonzero(~finite)} of {len(finite)} points, "
            f"first in point {np.argmin(finite)}"
        )
    return features


def _matrix(name: str, x: ArrayLike | None, shape: str) -> NDArray[Any]:
    array = real_numbers(name, x)
    if array.ndim != 2:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    if array.size == 0:
        one_each = " and one ".join(axis.removesuffix("s") for axis in shape.strip("()").split(", "))
        raise ValueError(f"{name} must have at least one {one_each}, got shape {array.shape}")
    return array
