r"""Distances that are computed pair by pair or given: their keys are they themselves.

By SciPy's `cdist`, any metric that it knows by name and that needs no statistics of the data, each distance is computed
by itself, to a relative accuracy of about :math:`(d + 2) u`. The correlation distance, and the cosine distance by its
short name, are one less a product, and so have that as an absolute error. A function's distances, and those of a table,
count as exact.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

__all__ = ["by_function", "by_name", "from_table"]

# SciPy takes the statistics from the block of points at hand, so that values would depend on the blocks
_FROM_STATISTICS = {"mahalanobis", "mahal", "mah", "seuclidean", "se", "s"}
_ONE_LESS_A_PRODUCT = {"correlation", "co", "cosine", "cos"}


@dataclass(frozen=True)
class _Pairwise:
    """Distances that a function writes into an array: pair by pair, or from a table."""

    metric: str
    n_train: int
    n_test: int
    write: Callable[[slice, NDArray[np.float64]], object]
    rounding: float = 0.0  # relative error of a distance
    absolute: float = 0.0  # and absolute error

    @property
    def n_listed(self) -> int:
        return self.n_train

    @property
    def fewest(self) -> int:
        return self.n_train

    def prepare(self, chunk: slice, out: NDArray[np.float64]) -> None:
        """Nothing: the work is done by the threads, in `keys`."""

    def keys(self, rows: slice, prepared: NDArray[np.float64]) -> NDArray[np.float64]:
        self.write(rows, prepared)
        for allowed, what in ((np.isfinite(prepared), "finite"), (prepared >= -self.absolute, "not negative")):
            if not allowed.all():
                row, column = np.argwhere(~allowed)[0]
                raise ValueError(
                    f"distances (metric={self.metric!r}) must be {what}, got {prepared[row, column]} "
                    f"between test point {rows.start + row} and training point {column}"
                )
        prepared[prepared <= self.absolute] = 0.0
        return prepared

    def ties(self, order: NDArray[np.intp], ascending: NDArray[np.float64], rows: slice) -> NDArray[np.bool_]:  # noqa: ARG002
        farthest = ascending[:, :-1] * (1 + 2 * self.rounding) + 2 * self.absolute
        tied: NDArray[np.bool_] = ascending[:, 1:] <= farthest
        return tied

    def players(self, rows: slice) -> None:  # noqa: ARG002
        return None

    def lengths(self, keys: NDArray[np.float64], rows: slice) -> NDArray[np.float64]:  # noqa: ARG002
        return keys

    def within(self, radius: float, keys: NDArray[np.float64], rows: slice) -> NDArray[np.bool_]:  # noqa: ARG002
        within: NDArray[np.bool_] = keys <= radius * (1 + self.rounding) + self.absolute
        return within


def by_name(train: NDArray[Any], test: NDArray[Any], metric: str) -> _Pairwise:
    """Distances by `cdist`; raise ValueError if it does not know the metric or would need statistics."""
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
    rounding = (train.shape[1] + 2) * sys.float_info.epsilon
    absolute = rounding if metric.lower() in _ONE_LESS_A_PRODUCT else 0.0
    return _Pairwise(metric, len(train), len(test), _writer(train, test, metric), rounding, absolute)


def by_function(
    train: NDArray[Any], test: NDArray[Any], metric: Callable[[NDArray[np.float64], NDArray[np.float64]], float]
) -> _Pairwise:
    """Distances by a function of a test and a training point."""
    name = getattr(metric, "__name__", type(metric).__name__)
    return _Pairwise(name, len(train), len(test), _writer(train, test, metric))


def from_table(table: NDArray[Any]) -> _Pairwise:
    """Distances from test points (rows) to training points (columns)."""

    def write(rows: slice, out: NDArray[np.float64]) -> None:
        out[...] = table[rows]

    return _Pairwise("precomputed", table.shape[1], table.shape[0], write)


def _writer(train: NDArray[Any], test: NDArray[Any], metric: Any) -> Callable[[slice, NDArray[np.float64]], object]:
    train, test = train.astype(np.float64), test.astype(np.float64)

    def write(rows: slice, out: NDArray[np.float64]) -> None:
        cdist(test[rows], train, metric, out=out)

    return write
