"""Distances so close to each other that the rounding of their keys decides their order, put in the right one.

Sorted keys fall into runs, each neighbour within the margin of rounding of the next; between runs the order is certain.
Within a run the training points are compared with one of them, to an accuracy that grows as they get closer to it. That
sorts the run and may take it apart; each part is compared in the same way with one of its own, until a part stays
together: these tie. Points at the same place compare alike, and so never come apart.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["settle"]

Compare: TypeAlias = Callable[
    [NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]], tuple[NDArray[np.float64], NDArray[np.float64]]
]


def settle(order: NDArray[np.intp], tied_with_next: NDArray[np.bool_], rows: slice, compare: Compare) -> None:
    """Sort runs of close neighbours, and find out which of them tie; both arrays are changed in place.

    Parameters
    ----------
    order : intp [b, n]
        Training points from near to far but for the order within runs.
    tied_with_next : bool [b, n - 1]
        Whether a neighbour belongs to the run of the next one; then, whether it ties with it.
    rows : slice
        The test points.
    compare : callable
        From test points, training points and references (intp [p] each) to the leads of the training points over the
        references and how much of these may be rounding (float64 [p] each), as in `differences.Pairs.compare`.
    """
    b, n = order.shape
    joined = np.zeros((b, n), dtype=np.bool_)  # with the neighbour before
    joined[:, 1:] = tied_with_next
    points, with_last = order.reshape(-1), joined.reshape(-1)  # views
    places = np.flatnonzero(_in_company(with_last))
    while places.size:
        first = ~with_last[places]  # of its run: the reference
        run = np.cumsum(first) - 1
        train = points[places]
        lead, slack = np.zeros(places.shape), np.zeros(places.shape)
        others = np.flatnonzero(~first)
        reference = train[first][run[others]]
        lead[others], slack[others] = compare(rows.start + places[others] // n, train[others], reference)
        open_ = (np.bincount(run, weights=np.abs(lead) > slack) > 0)[run]  # else all tie with the reference
        places, first, run, train, lead, slack = (x[open_] for x in (places, first, run, train, lead, slack))
        by_lead = np.lexsort((lead, run))
        points[places], lead, slack = train[by_lead], lead[by_lead], slack[by_lead]
        close = ~first
        close[1:] &= np.diff(lead) <= slack[1:] + slack[:-1]
        with_last[places] = close
        came_apart = np.bincount(run, weights=~close & ~first) > 0
        places = places[came_apart[run] & _in_company(close)]
    tied_with_next[...] = joined[:, 1:]


def _in_company(with_last: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether a neighbour is in a run of at least two."""
    in_company: NDArray[np.bool_] = with_last | np.append(with_last[1:], False)
    return in_company
