r"""Expected outcome of a vote among random subsets of points: the dynamic programme of `weighted`.

Points come one by one, each with a signed vote :math:`u`, an integer of at most :math:`L` in size. The table holds
:math:`F_M[c](x) = E f(u_T + x)` over uniformly random sets :math:`T` of :math:`c` of the :math:`M` points so far, where
:math:`f` is 1, 1/2 or 0 by the sign. It grows by

.. math:: F_{M+1}[c](x) = \left(1 - \frac{c}{M+1}\right) F_M[c](x) + \frac{c}{M+1} F_M[c-1](x + u).

Let :math:`\bar F[c]` be the same without one of the points, whose vote is :math:`u`. Then

.. math:: F_M[c](x) = \left(1 - \frac cM\right) \bar F[c](x) + \frac cM \bar F[c-1](x + u)

can be solved for :math:`\bar F[c]` from :math:`\bar F[c-1]`, or for :math:`\bar F[c-1]` from :math:`\bar F[c]`:

.. math:: \bar F[c](x) &= \sum_{j=0}^{c} (-1)^j \binom{M}{c-j} \Big/ \binom{M-1}{c} \; F_M[c-j](x + j u) \\
                       &= \sum_{j=1}^{M-c} (-1)^{j-1} \binom{M}{c+j} \Big/ \binom{M-1}{c} \; F_M[c+j](x - j u).

The binomials of the first sum fall from term to term if :math:`2 c \le M`, those of the second if :math:`2 c \ge M`, so
that the sums are as accurate as their first terms.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

__all__ = ["SubsetVotes"]


class SubsetVotes:
    """Expected outcomes of votes among subsets, for b independent sequences of points at a time.

    Parameters
    ----------
    b : int
        Number of sequences.
    n_sizes : int
        Sizes of subsets 0, 1, ..., n_sizes - 1 are kept.
    largest : int
        L, the largest vote.
    """

    def __init__(self, b: int, n_sizes: int, largest: int) -> None:
        self.n_points = 0
        self._largest = largest
        self._levels = np.arange(-largest, largest + 1)
        outcomes = 0.5 + 0.5 * np.sign(np.arange(-(n_sizes + 1) * largest, (n_sizes + 1) * largest + 1))
        self._hold(np.tile(outcomes, (b, n_sizes, 1)))

    def add(self, votes: NDArray[np.integer]) -> None:
        """Add one point to each sequence; `votes` [b] are their u."""
        self.n_points += 1
        taken = np.minimum(np.arange(1, self._table.shape[1]) / self.n_points, 1.0)[:, None]  # c / (M + 1)
        shifted = self._windows[self._rows[:, :-1] + votes[:, None]]
        shifted *= taken
        inner = self._table[:, 1:, self._largest : -self._largest]
        inner *= 1 - taken
        inner += shifted

    def keep_sizes_below(self, n_sizes: int) -> None:
        """Forget subsets of `n_sizes` points and more."""
        spare = (self._table.shape[1] - n_sizes) * self._largest
        self._hold(np.ascontiguousarray(self._table[:, :n_sizes, spare : self._table.shape[2] - spare]))

    def gains(self, size: int, instead: NDArray[np.integer]) -> NDArray[np.float64]:
        r"""Expected gain of a point by its vote, in subsets of others, against another vote in its place.

        Parameters
        ----------
        size : int
            c, less than the number of points so far. For 2 c > M all sizes up to M must have been kept.
        instead : int [b]
            The other votes u', at most L in size.

        Returns
        -------
        float64 [b, 2 L + 1]
            :math:`E [f(u_T + u) - f(u_T + u')]` for :math:`u = -L, \dots, L`, over the sets T of `size` of the points
            so far without one that has the vote u. Of no meaning for a u that no point has.
        """
        sizes, steps, coefficients = _without_one(self.n_points, size)
        terms = sizes[:, None] * self._table.shape[2] + self._centre + steps[:, None] * self._levels  # [terms, 2 L + 1]
        start = self._start[:, None, None]
        gains = self._table.take(start + (terms + self._levels))
        gains -= self._table.take((start + instead[:, None, None]) + terms)
        by_level: NDArray[np.float64] = coefficients @ gains
        return by_level

    def _hold(self, table: NDArray[np.float64]) -> None:
        """Keep the table [b, n_sizes, x], where x runs over n_sizes * L on both sides of 0 and L more.

        Since the votes of c points add up to at most c L, the outcome is settled in these margins: they never change.
        """
        b, n_sizes, width = table.shape
        self._table = table
        self._centre = width // 2
        self._start = np.arange(b) * (n_sizes * width)
        self._windows = sliding_window_view(table.reshape(-1), width - 2 * self._largest)
        self._rows = self._start[:, None] + np.arange(n_sizes) * width + self._largest


def _without_one(n_points: int, size: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Sizes, multiples of u and coefficients of the terms that leave one point out of the subsets of `size` points."""
    if 2 * size <= n_points:
        j = np.arange(size + 1)
        sizes, steps = size - j, j
        ratios = -(sizes[:-1]) / (n_points - sizes[1:])  # of a binomial to the last
        first = n_points / (n_points - size)
    else:
        j = np.arange(1, n_points - size + 1)
        sizes, steps = size + j, -j
        ratios = -(n_points - sizes[:-1]) / sizes[1:]
        first = n_points / (size + 1)
    return sizes, steps, first * np.cumprod(np.concatenate([[1.0], ratios]))
