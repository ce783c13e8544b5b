r"""Squared Euclidean distances of single pairs, from the differences of their features.

A matrix product of features loses the digits in which two distances differ where the vectors are long beside them. A
difference of features is rounded once, at its own scale; so is what is computed here, pair by pair:

.. math:: \|a - t\|^2 = \sum_j (a_j - t_j)^2, \qquad
          \|a - t\|^2 - \|r - t\|^2 = \sum_j e_j (e_j + 2 g_j), \quad e = a - r, \; g = r - t.

The first has a relative error of at most :math:`(d + 3) u`, :math:`u = \epsilon / 2`. The second compares two training
points: a feature that is the same in both plays no part, however large it is. Its error is at most
:math:`(d + 5) u M` with :math:`M = \sum_j |e_j| (|e_j| + 2 |g_j|)`.

**When distances tie.** If they differ by no more than :math:`(d + 1024) u M`. The 1024 stands for the features: decimal
fractions, and pixels in units of 1/255, are rounded to binary ones. In features :math:`p_j h` with whole numbers
:math:`|p_j| \le 256` and any step :math:`h` this moves the difference by at most :math:`4 \cdot 256 \, u M`, since
:math:`|e_j| \ge h` where it is not 0. So what ties in steps ties in floating point, and else distances count as
different from the 13th digit on.

**Directions**, vectors scaled to length 1, are rounded whatever the features were: each component by
:math:`32 u`, relative to itself, and the length by as much. That adds
:math:`128 u \sum_j (|e_j| + |g_j|) |r_j|`, and :math:`M` becomes :math:`\sum_j (|e_j| + |g_j|)^2`. Two of them that are
no farther apart than :math:`64 u` are the same.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SAME_DIRECTION", "Pairs", "tie_rounding"]

_U = sys.float_info.epsilon / 2
_STEPS = 1024
_DIRECTION = 32 * _U  # rounding of a component of a vector of length 1
SAME_DIRECTION = 2 * _DIRECTION
_ENTRIES = 2**15  # features of the pairs that are in hand at a time: they stay in the cache


def tie_rounding(n_features: int) -> float:
    """Relative difference by which distances that tie may differ, (d + 1024) u."""
    return (n_features + _STEPS) * _U


@dataclass(frozen=True)
class Pairs:
    """Pairs of a test and a training point, each taken by itself.

    Attributes
    ----------
    train, test : [n, d], [t, d]
        Features, of any kind of numbers, or directions.
    directions : bool
        Whether they have been scaled to length 1.
    """

    train: NDArray[Any]
    test: NDArray[Any]
    directions: bool

    def squares(self, test: NDArray[np.intp], train: NDArray[np.intp]) -> NDArray[np.float64]:
        """Squared distances [p] of the test points `test` [p] from the training points `train` [p]."""
        squares = np.empty(len(test))
        for part in self._parts(len(test)):
            apart = _rows(self.train, train[part]) - _rows(self.test, test[part])
            apart *= apart
            squares[part] = apart.sum(axis=1)
        if self.directions:
            squares[squares <= SAME_DIRECTION**2] = 0.0
        return squares

    def compare(
        self, test: NDArray[np.intp], train: NDArray[np.intp], reference: NDArray[np.intp]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """How much farther than a reference training point a training point is from a test point.

        Parameters
        ----------
        test, train, reference : intp [p]
            Which test point, training point and reference.

        Returns
        -------
        lead : float64 [p]
            Difference of the squared distances.
        slack : float64 [p]
            How much of it may be rounding, of the features (the reference's too) or of the computation.
        """
        lead, slack = np.empty(len(test)), np.empty(len(test))
        rounding, ones = tie_rounding(self.train.shape[1]), np.ones(self.train.shape[1])
        for part in self._parts(len(test)):
            r = _rows(self.train, reference[part])
            e, g = _rows(self.train, train[part]) - r, r - _rows(self.test, test[part])
            both = 2 * g
            both += e
            both *= e
            lead[part] = both @ ones
            np.abs(e, out=e), np.abs(g, out=g)
            if self.directions:
                e += g
                slack[part] = 2 * rounding * ((e * e) @ ones) + 8 * _DIRECTION * ((e * np.abs(r)) @ ones)
            else:
                g *= 2
                g += e
                g *= e
                slack[part] = rounding * (g @ ones)
        return lead, slack

    def _parts(self, n_pairs: int) -> Iterator[slice]:
        size = max(1, _ENTRIES // self.train.shape[1])
        return (slice(first, first + size) for first in range(0, n_pairs, size))


def _rows(x: NDArray[Any], index: NDArray[np.intp]) -> NDArray[np.float64]:
    rows: NDArray[np.float64] = x.take(index, axis=0).astype(np.float64, copy=False)
    return rows
