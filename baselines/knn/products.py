r"""Euclidean and cosine distances by matrix product, and by differences where the product cannot tell.

The keys are squared distances less the square of the test point, :math:`\|x\|^2 - 2 \langle x, t \rangle`, from one
matrix product on all cores. Features are centred first: that changes no distance, and saves digits that the difference
would lose. The centre is the median of each feature, which no outlier moves. For the cosine distance, half the squared
distance of vectors of length 1, they are scaled to it instead.

**Margin.** Whatever its rounding, a key is off by less than :math:`c (\|x\| + \|t\|)^2` with
:math:`c = (d + 1024) u`; the 1024 makes room for features that are rounded themselves, see `differences`. By
:math:`\|x\| \le D^{1/2} + \|t\|`, where :math:`D` is the squared distance, twice that is at most
:math:`4 c (D + 4 \|t\|^2)`, and distances that tie differ by at most :math:`16 c D` (there, :math:`M \le 8 D`). So
where two keys that follow each other are no farther apart than :math:`20 c (D + \|t\|^2)`, the points are compared by
their differences (`near_ties`); farther apart, keys are in the right order. Where a distance itself is asked for, and
the margin is more than a small part of it, it is computed anew.

**Grids.** Features that are multiples of a power of two, whole numbers above all, and not too large beside it make all
products and sums exact. Then keys are equal where distances are, and there is nothing to be compared.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines.knn.differences import SAME_DIRECTION, Pairs, tie_rounding
from baselines.knn.near_ties import settle

__all__ = ["BY_PRODUCT", "by_product"]

# distance = scale * squared distance ** power
BY_PRODUCT = {"euclidean": (1.0, 0.5), "sqeuclidean": (1.0, 1.0), "cosine": (0.5, 1.0)}
# of centred features: squares and their rounding errors neither under- nor overflow
_SMALLEST, _LARGEST = 1e-140, 1e150
_ACCURACY = 1e-10  # of squared distances from keys
_SAMPLE = 1024  # points that the centre is found from
_ROWS = 1024  # points that are in hand at a time


@dataclass(frozen=True)
class _Products:
    """Squared Euclidean distances by matrix product, less the squares of the test points."""

    metric: str
    train: NDArray[np.float64]  # [n, d], centred
    test: NDArray[np.float64]  # [t, d], likewise
    train_squares: NDArray[np.float64]  # [n]
    test_squares: NDArray[np.float64]  # [t]
    pairs: Pairs  # of the points as given, or of directions
    exact: bool  # whether keys are

    @property
    def n_train(self) -> int:
        return len(self.train)

    @property
    def n_test(self) -> int:
        return len(self.test)

    @property
    def n_listed(self) -> int:
        return len(self.train)

    @property
    def fewest(self) -> int:
        return len(self.train)

    def prepare(self, chunk: slice, out: NDArray[np.float64]) -> None:
        np.matmul(-2 * self.test[chunk], self.train.T, out=out)

    def keys(self, rows: slice, prepared: NDArray[np.float64]) -> NDArray[np.float64]:  # noqa: ARG002
        prepared += self.train_squares
        return prepared

    def ties(self, order: NDArray[np.intp], ascending: NDArray[np.float64], rows: slice) -> NDArray[np.bool_]:
        tied: NDArray[np.bool_] = np.diff(ascending, axis=1) <= self._margin(ascending[:, :-1], rows)
        if not self.exact and tied.any():
            settle(order, tied, rows, self.pairs.compare)
        return tied

    def players(self, rows: slice) -> None:  # noqa: ARG002
        return None

    def lengths(self, keys: NDArray[np.float64], rows: slice) -> NDArray[np.float64]:
        squares = keys + self.test_squares[rows, None]
        inaccurate = self._margin(keys, rows) > _ACCURACY * squares
        if inaccurate.any():
            squares[inaccurate] = self._squares(inaccurate, rows)
        scale, power = BY_PRODUCT[self.metric]
        lengths: NDArray[np.float64] = scale * squares**power
        return lengths

    def within(self, radius: float, keys: NDArray[np.float64], rows: slice) -> NDArray[np.bool_]:
        scale, power = BY_PRODUCT[self.metric]
        with np.errstate(over="ignore"):
            root = np.float64(radius / scale) ** (0.5 / power) + self.pairs.directions * SAME_DIRECTION
            limit = root**2 * (1 + 2 * tie_rounding(self.train.shape[1]))
        if limit == np.inf:
            return np.ones(keys.shape, dtype=np.bool_)
        limits = limit - self.test_squares[rows, None]  # of keys
        margins = self._margin(limits, rows)
        within: NDArray[np.bool_] = keys <= limits + margins
        doubtful = within & (keys >= limits - margins)
        if doubtful.any():
            within[doubtful] = self._squares(doubtful, rows) <= limit
        return within

    def _margin(self, keys: NDArray[np.float64], rows: slice) -> NDArray[np.float64]:
        # 20 c (D + |t|^2) with D = key + |t|^2
        c = 0.0 if self.exact else tie_rounding(self.train.shape[1])
        margin: NDArray[np.float64] = keys * (20 * c)
        margin += (40 * c) * self.test_squares[rows, None]
        return margin

    def _squares(self, which: NDArray[np.bool_], rows: slice) -> NDArray[np.float64]:
        test, train = np.nonzero(which)
        return self.pairs.squares(rows.start + test, train)


def by_product(train: NDArray[Any], test: NDArray[Any], metric: str) -> _Products:
    """Centre the features, or scale them to length 1 for the cosine distance.

    Parameters
    ----------
    train, test : [n, d], [t, d]
        Features, finite numbers of any kind; left alone.
    metric : str
        One of `BY_PRODUCT`.

    Returns
    -------
    _Products

    Raises
    ------
    ValueError
        If features are beyond what can be squared, or a vector is zero (cosine).
    """
    moved_train, moved_test = (x.astype(np.float64, order="C") for x in (train, test))
    if metric == "cosine":
        _to_unit_length("x_train", moved_train)
        _to_unit_length("x_test", moved_test)
        pairs = Pairs(moved_train, moved_test, directions=True)
    else:
        centre = _centre(moved_train)
        with np.errstate(over="ignore"):  # an overflow is an error of ours, next
            moved_train -= centre
            moved_test -= centre
        _check_squares(max(moved_train.max(), -moved_train.min(), moved_test.max(), -moved_test.min()))
        pairs = Pairs(train, test, directions=False)
    train_squares, test_squares = (np.einsum("ij,ij->i", x, x) for x in (moved_train, moved_test))
    reach = math.sqrt(train_squares.max()) + math.sqrt(test_squares.max())
    exact = not pairs.directions and _on_a_grid(reach, train, test)
    return _Products(metric, moved_train, moved_test, train_squares, test_squares, pairs, exact)


def _centre(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median of each feature over a sample of the points: a value that there is, so that grids remain."""
    sample = x[:: -(-len(x) // _SAMPLE)]
    middle = len(sample) // 2
    centre: NDArray[np.float64] = np.partition(sample, middle, axis=0)[middle]
    return centre


def _on_a_grid(reach: float, *features: NDArray[Any]) -> bool:
    """Whether features are multiples of a power of two of which `reach`, squared, is at most 2^53 squares."""
    if reach == 0:
        return True
    step = 2.0 ** math.ceil(math.log2(reach) - 26.5)
    for rows in (rows for x in features for rows in _some_at_a_time(x)):
        multiples = np.divide(rows, step, dtype=np.float64)
        if not np.array_equal(multiples, np.rint(multiples)):
            return False
    return True


def _to_unit_length(name: str, x: NDArray[np.float64]) -> None:
    nonzero = x.any(axis=1)
    if not nonzero.all():
        raise ValueError(
            f"{name} must have no zero vectors with metric='cosine', got {np.count_nonzero(~nonzero)}, "
            f"first in point {np.argmin(nonzero)}"
        )
    for rows in _some_at_a_time(x):
        rows /= np.abs(rows).max(axis=1, keepdims=True).clip(min=sys.float_info.min)  # lest squares overflow
        rows /= np.sqrt(np.square(rows).sum(axis=1, keepdims=True))  # summed in pairs: right to a few last digits


def _some_at_a_time(x: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Views of the rows of `x`."""
    return (x[first : first + _ROWS] for first in range(0, len(x), _ROWS))


def _check_squares(reach: float) -> None:
    if reach > _LARGEST or 0 < reach < _SMALLEST:
        size, direction = ("large", "down") if reach > _LARGEST else ("small", "up")
        raise ValueError(
            f"features are too {size} to be squared, up to {reach:.3g} from their medians; "
            f"scale x_train and x_test {direction}"
        )
