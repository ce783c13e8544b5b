r"""Distances from test points to training points, some rows at a time, and how far they can be trusted.

Nearest-neighbour values need three things of a metric: keys that sort the training points from near to far, the largest
difference of two keys that may be nothing but rounding (such points tie), and now and then the distances themselves.

**By product** (``"euclidean"``, ``"sqeuclidean"``, ``"cosine"``): the keys are squared distances less the square of the
test point, :math:`\|x\|^2 - 2 \langle x, t \rangle`, from one matrix product on all cores. Features are centred first:
that changes no distance, and saves the digits that the difference would lose. The centre is the mean of the training
points, rounded to a multiple of a power of two near their spread: integer features stay integers, and their distances
exact. For the cosine distance, half the squared distance of vectors of length 1, they are scaled to it instead.
With :math:`u = \epsilon / 2` a computed key is off by at most :math:`(d + 2) u (\|x\| + \|t\|)^2`. By
:math:`\|x\| \le D^{1/2} + \|t\|`, where :math:`D` is the squared distance, that is at most
:math:`(d + 2) u (2 D + 8 \|t\|^2)`, and for a difference of two keys at most twice that.

**Pair by pair** (any other metric that SciPy's `cdist` knows by name): the keys are distances, each computed by itself
to a relative accuracy of about :math:`(d + 2) u`.

**As given** (a function, or ``"precomputed"``): the keys are distances that count as exact.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist

__all__ = ["Distances", "Metric", "distances_between"]

Metric: TypeAlias = str | Callable[[NDArray[np.float64], NDArray[np.float64]], float]

# distance = scale * squared distance ** power
_BY_PRODUCT = {"euclidean": (1.0, 0.5), "sqeuclidean": (1.0, 1.0), "cosine": (0.5, 1.0)}
# SciPy takes the statistics from the block of points at hand, so that values would depend on the blocks
_FROM_STATISTICS = {"mahalanobis", "mahal", "mah", "seuclidean", "se", "s"}
# of centred features: squares and their rounding errors neither under- nor overflow
_SMALLEST, _LARGEST = 1e-140, 1e150


class Distances(Protocol):
    """Distances between all test points and all training points, computed for some test points at a time."""

    @property
    def metric(self) -> str:
        """Name of the metric."""

    @property
    def n_train(self) -> int:
        """Number of training points."""

    @property
    def n_test(self) -> int:
        """Number of test points."""

    def prepare(self, chunk: slice, out: NDArray[np.float64]) -> None:
        """Do for a chunk of test points what is best done on all cores at once; `out` [c, n] goes to `keys`."""

    def keys(self, rows: slice, prepared: NDArray[np.float64]) -> NDArray[np.float64]:
        """Keys [b, n] that grow with the distance, in the rows that `prepare` has filled (overwritten)."""

    def margin(self, keys: NDArray[np.float64], rows: slice) -> NDArray[np.float64]:
        """Largest difference to a greater key that may be rounding [b, m], for `keys` [b, m]."""

    def lengths(self, keys: NDArray[np.float64], rows: slice) -> NDArray[np.float64]:
        """Distances [b, m] that belong to `keys` [b, m]; 0 where the key cannot be told from that of distance 0."""

    def within(self, radius: float, keys: NDArray[np.float64], rows: slice) -> NDArray[np.bool_]:
        """Whether distances are at most `radius`, to rounding (bool [b, m])."""


def distances_between(x_train: ArrayLike | None, x_test: ArrayLike, metric: Metric) -> Distances:
    """Check the features and the metric that an estimator is given.

    Parameters
    ----------
    x_train : float [n, d] or None
        Features of the training points; None with precomputed distances.
    x_test : float [t, d], or [t, n] with precomputed distances
        Features of the test points, or their distances to the training points.
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
        If features are no numbers, or `metric` is neither a string nor callable.
    ValueError
        If shapes do not match, a set is empty, features are not finite or beyond what can be squared, a vector is
        zero (cosine), or the metric is unknown. Distances that are not finite, and negative ones, are refused when
        they are computed.
    """
    if not isinstance(metric, str) and not callable(metric):
        raise TypeError(f"metric must be a name or a function of two points, got {metric!r} ({type(metric).__name__})")
    if metric == "precomputed":
        return _precomputed(x_train, x_test)
    train, test = _features("x_train", x_train), _features("x_test", x_test)
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"x_train and x_test must have the same number of features, got {train.shape[1]} and {test.shape[1]}"
        )
    if isinstance(metric, str) and metric in _BY_PRODUCT:
        return _by_product(train, test, metric)
    return _pair_by_pair(train, test, metric)


@dataclass(frozen=True)
class _Products:
    """Squared Euclidean distances by matrix product, less the squares of the test points."""

    metric: str
    train: NDArray[np.float64]  # [n, d], centred
    test: NDArray[np.float64]  # [t, d], likewise
    train_squares: NDArray[np.float64]  # [n]
    test_squares: NDArray[np.float64]  # [t]

    @property
    def n_train(self) -> int:
        return len(self.train)

    @property
    def n_test(self) -> int:
        return len(self.test)

    def prepare(self, chunk: slice, out: NDArray[np.float64]) -> None:
        np.matmul(-2 * self.test[chunk], self.train.T, out=out)

    def keys(self, rows: slice, prepared: NDArray[np.float64]) -> NDArray[np.float64]:  # noqa: ARG002
        prepared += self.train_squares
        return prepared

    def margin(self, keys: NDArray[np.float64], rows: slice) -> NDArray[np.float64]:
        # 2 (d + 2) u (2 D + 8 |t|^2) with D = key + |t|^2
        rounding = (self.train.shape[1] + 2) * sys.float_info.epsilon
        margin: NDArray[np.float64] = keys * (2 * rounding)
        margin += (10 * rounding) * self.test_squares[rows, None]
        return margin

    def lengths(self, keys: NDArray[np.float64], rows: slice) -> NDArray[np.float64]:
        squares = keys + self.test_squares[rows, None]
        squares[squares <= self.margin(keys, rows)] = 0.0
        scale, power = _BY_PRODUCT[self.metric]
        lengths: NDArray[np.float64] = scale * squares**power
        return lengths

    def within(self, radius: float, keys: NDArray[np.float64], rows: slice) -> NDArray[np.bool_]:
        scale, power = _BY_PRODUCT[self.metric]
        with np.errstate(over="ignore"):  # an infinite square holds all points, as it should
            square = np.float64(radius / scale) ** (1 / power)
        within: NDArray[np.bool_] = keys <= square - self.test_squares[rows, None] + self.margin(keys, rows)
        return within


@dataclass(frozen=True)
class _Written:
    """Distances that a function writes into an array: pair by pair, or from a table."""

    metric: str
    n_train: int
    n_test: int
    write: Callable[[slice, NDArray[np.float64]], object]
    rounding: float  # relative error of a distance

    def prepare(self, chunk: slice, out: NDArray[np.float64]) -> None:
        """Nothing: the work is done by the threads, in `keys`."""

    def keys(self, rows: slice, prepared: NDArray[np.float64]) -> NDArray[np.float64]:
        self.write(rows, prepared)
        for allowed, what in ((np.isfinite(prepared), "finite"), (prepared >= -self.rounding, "not negative")):
            if not allowed.all():
                row, column = np.argwhere(~allowed)[0]
                raise ValueError(
                    f"distances (metric={self.metric!r}) must be {what}, got {prepared[row, column]} "
                    f"between test point {rows.start + row} and training point {column}"
                )
        np.maximum(prepared, 0.0, out=prepared)
        return prepared

    def margin(self, keys: NDArray[np.float64], rows: slice) -> NDArray[np.float64]:  # noqa: ARG002
        margin: NDArray[np.float64] = keys * (2 * self.rounding)
        return margin

    def lengths(self, keys: NDArray[np.float64], rows: slice) -> NDArray[np.float64]:  # noqa: ARG002
        return keys

    def within(self, radius: float, keys: NDArray[np.float64], rows: slice) -> NDArray[np.bool_]:  # noqa: ARG002
        within: NDArray[np.bool_] = keys <= radius * (1 + self.rounding)
        return within


def _by_product(train: NDArray[np.float64], test: NDArray[np.float64], metric: str) -> _Products:
    """Centre the features, or scale them to length 1 for the cosine distance (both in place)."""
    if metric == "cosine":
        _to_unit_length("x_train", train)
        _to_unit_length("x_test", test)
    else:
        centre = _coarse_mean(train)
        with np.errstate(over="ignore"):  # an overflow is an error of ours, next
            train -= centre
            test -= centre
        _check_squares(max(train.max(), -train.min(), test.max(), -test.min()))
    squares = (np.einsum("ij,ij->i", x, x) for x in (train, test))
    return _Products(metric, train, test, *squares)


def _pair_by_pair(train: NDArray[np.float64], test: NDArray[np.float64], metric: Metric) -> _Written:
    if isinstance(metric, str):
        if metric.lower() in _FROM_STATISTICS:
            raise ValueError(
                f"metric must not need statistics of the data, got {metric!r}; standardise or whiten the features "
                "and use 'euclidean'"
            )
        try:
            cdist(test[:1], train[:1], metric)
        except ValueError as error:
            raise ValueError(
                "metric must be 'precomputed', a function of two points, or the name of a metric that "
                f"scipy.spatial.distance.cdist computes from these features, got {metric!r}: {error}"
            ) from error

    def write(rows: slice, out: NDArray[np.float64]) -> None:
        cdist(test[rows], train, metric, out=out)

    if isinstance(metric, str):
        return _Written(metric, len(train), len(test), write, (train.shape[1] + 2) * sys.float_info.epsilon)
    return _Written(getattr(metric, "__name__", type(metric).__name__), len(train), len(test), write, 0.0)


def _precomputed(x_train: ArrayLike | None, x_test: ArrayLike) -> _Written:
    if x_train is not None:
        raise ValueError(
            "x_train must be None with metric='precomputed', since x_test holds the distances from each test point "
            f"(row) to each training point (column), got {type(x_train).__name__}"
        )
    table = _matrix("x_test", x_test, "(test points, training points)")

    def write(rows: slice, out: NDArray[np.float64]) -> None:
        out[...] = table[rows]

    return _Written("precomputed", table.shape[1], table.shape[0], write, 0.0)


def _to_unit_length(name: str, x: NDArray[np.float64]) -> None:
    x /= np.maximum(x.max(axis=1), -x.min(axis=1))[:, None].clip(min=sys.float_info.min)  # lest squares overflow
    norms = np.sqrt(np.einsum("ij,ij->i", x, x))
    if not norms.all():
        raise ValueError(
            f"{name} must have no zero vectors with metric='cosine', got {np.count_nonzero(norms == 0)}, "
            f"first in point {np.argmin(norms)}"
        )
    x /= norms[:, None]


def _check_squares(reach: float) -> None:
    if reach > _LARGEST or 0 < reach < _SMALLEST:
        size, direction = ("large", "down") if reach > _LARGEST else ("small", "up")
        raise ValueError(
            f"features are too {size} to be squared, up to {reach:.3g} from the mean; "
            f"scale x_train and x_test {direction}"
        )


def _coarse_mean(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the rows, rounded to a multiple of a power of two near their spread, so that integers stay integers."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean = x.mean(axis=0)
        spread = float(np.sqrt(x.var(axis=0).mean()))
        if not 0 < spread < np.inf:
            any_point: NDArray[np.float64] = x[0].copy()  # they are all the same, or refused in the next step
            return any_point
        grid = 2.0 ** math.floor(math.log2(spread))
        centre: NDArray[np.float64] = np.rint(mean / grid) * grid
        return centre


def _features(name: str, x: ArrayLike | None) -> NDArray[np.float64]:
    """Return a copy of the features as float64 [points, features]."""
    features = _matrix(name, x, "(points, features)").astype(np.float64)
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(features).all(axis=1))
    if not finite.all():
        raise ValueError(
            f"{name} must be finite, got NaN or infinity in {np.count_nonzero(~finite)} of {len(finite)} points, "
            f"first in point {np.argmin(finite)}"
        )
    return features


def _matrix(name: str, x: ArrayLike | None, shape: str) -> NDArray[Any]:
    array: NDArray[Any] = np.asarray(x)
    if array.ndim != 2:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    if array.size == 0:
        one_each = " and one ".join(axis.removesuffix("s") for axis in shape.strip("()").split(", "))
        raise ValueError(f"{name} must have at least one {one_each}, got shape {array.shape}")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be numbers, got an array of {array.dtype}")
    return array
