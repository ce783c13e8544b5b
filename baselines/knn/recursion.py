r"""Values from far to near, for utilities that are linear in right votes.

In such a game the values of two neighbours that follow each other differ by

.. math:: \phi_{\alpha_j} - \phi_{\alpha_{j+1}} = w_j \, (m_j - m_{j+1}),

since they take each other's place in every coalition of others. With a last value of :math:`\phi_{\alpha_n} = w_n m_n`
summation by parts gives all of them by one cumulative sum,

.. math:: \phi_{\alpha_j} = w_j m_j - \sum_{l > j} (w_{l-1} - w_l) \, m_l.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["from_far_to_near"]


def from_far_to_near(weights: NDArray[np.float64]) -> Callable[[NDArray[np.bool_]], NDArray[np.float64]]:
    r"""Return the map from right votes to values, both from near to far.

    Parameters
    ----------
    weights : float64 [n]
        :math:`w_1, \dots, w_n`.

    Returns
    -------
    callable
        From right votes (bool [b, n]) to values (float64 [b, n]).
    """
    drops = np.concatenate([[0.0], weights[:-1] - weights[1:]])  # w_(j-1) - w_j

    def values_of(right: NDArray[np.bool_]) -> NDArray[np.float64]:
        values: NDArray[np.float64] = np.cumsum(right * drops, axis=1)
        values -= values[:, -1:].copy()
        values += right * weights
        return values

    return values_of
