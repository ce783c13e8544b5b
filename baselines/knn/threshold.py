r"""Threshold KNN-Shapley: all training points within a radius vote, however many they are.

Let :math:`B` be the training points at a distance of at most :math:`\tau` from the test point, :math:`c` of them. A
coalition is worth the share of right votes among its members in :math:`B`; without any it guesses among :math:`C`
classes (Wang, Zhu, Wang, Jia, Mittal: *Threshold KNN-Shapley: A Linear-Time and Privacy-Friendly Approach to Data
Valuation*, NeurIPS 2023, arXiv 2308.15709):

.. math:: v(S) = \frac{1}{|S \cap B|} \sum_{i \in S \cap B} \mathbb{1}[y_i = y], \qquad
          v(S) = \frac1C \text{ if } S \cap B = \emptyset.

Who is outside of :math:`B` is a null player. Inside, the players matter by being there and not by their distance, and a
player who joins :math:`s` others moves their mean by :math:`(m_i - \text{mean of the others}) / (s + 1)`, all :math:`s`
being equally likely. With :math:`M = \sum_{i \in B} m_i` and the harmonic number :math:`H_c`,

.. math:: \phi_i = \frac{m_i - 1/C}{c} + \frac{H_c - 1}{c} \left( m_i - \frac{M - m_i}{c - 1} \right), \quad i \in B.

It is the value of the last neighbour in `soft`, for :math:`c` players who all vote.

**Variance**: none; the values are exact for the given test points.

**Cost**: the distances, and :math:`O(n)` for each test point: nothing is sorted.
"""

from numbers import Real
from time import perf_counter

import numpy as np
from numpy.typing import ArrayLike, NDArray

from baselines.knn.distances import Metric, Points, distances_between
from baselines.knn.labels import checked_labels
from baselines.knn.over_test_points import mean_over_test_points
from baselines.knn.soft import harmonic_numbers, shares_of_mean
from baselines.valuation import Valuation

__all__ = ["threshold_knn_shapley"]


def threshold_knn_shapley(
    x_train: ArrayLike | None,
    y_train: ArrayLike,
    x_test: Points,
    y_test: ArrayLike,
    radius: float,
    *,
    metric: Metric = "euclidean",
    chunk_bytes: int = 2**26,
    n_jobs: int | None = -1,
    progress: bool = False,
) -> Valuation:
    """Exact Shapley values of training points for the vote of all neighbours within a radius.

    Parameters
    ----------
    x_train : float [n, d]
        Features of the training points, the players. None with precomputed distances.
    y_train : [n]
        Their labels: numbers, strings or other values of one kind, in any array, list or column of a data frame.
    x_test : float [t, d], or float [t, n] or a k-NN graph
        Features of the test points that the utility is measured on. With precomputed distances: those from each test
        point to each training point, [t, n], or a k-NN graph: a `KNNGraph` or a SciPy sparse matrix of distances.
    y_test : [t]
        Their labels.
    radius : float
        Largest distance of a neighbour, in units of the metric; a point at this distance, to rounding, is one.
    metric : str or callable
        "euclidean", "sqeuclidean" and "cosine" go by a matrix product and are fast. Any other name goes to
        `scipy.spatial.distance.cdist`, a function of a test and a training point (float64 [d] each) returns their
        distance, and "precomputed" says that `x_test` holds distances or a k-NN graph.
    chunk_bytes : int
        Memory for the distances from a chunk of test points to all training points; those of one test point, 8 n
        bytes, are the least. Changes the values by rounding only.
    n_jobs : int or None
        Threads, as joblib counts them (-1: all cores) and besides those of the linear algebra library. Changes nothing
        in the values.
    progress : bool
        Whether to show a progress bar, in test points, on stderr.

    Returns
    -------
    Valuation
        `values`: shares of the probability of the right label beyond that of a guess, adding up to the utility of the
        whole training set less 1 / C, where C is the number of different labels in `y_train` and `y_test`. They are
        exact for these test points, so `stderr` is None, and `evaluations` is 0.

    Raises
    ------
    TypeError
        If `chunk_bytes` is no integer, `radius` no number, features are sparse or no numbers, or `metric` is neither a
        string nor callable.
    ValueError
        If shapes do not match, a set is empty, a k-NN graph is malformed, a feature or label is missing, features are
        infinite or beyond what can be squared, a vector is zero (cosine), the metric is unknown or its distances are
        negative or not finite, labels are of different kinds, or `radius` is negative or NaN.

    References
    ----------
    Wang, Zhu, Wang, Jia, Mittal, Threshold KNN-Shapley: A Linear-Time and Privacy-Friendly Approach to Data Valuation,
    NeurIPS 2023, arXiv 2308.15709.
    """
    start = perf_counter()
    distances = distances_between(x_train, x_test, metric)
    labels = checked_labels(y_train, y_test, distances)
    radius = _checked_radius(radius)
    harmonic = harmonic_numbers(distances.n_train)

    def values_of_block(keys: NDArray[np.float64], rows: slice) -> NDArray[np.float64]:
        within = distances.within(radius, keys, rows)
        players = distances.players(rows)
        right = labels.right(rows, players) & within
        votes, right_votes = within.sum(axis=1), right.sum(axis=1)
        voters = np.maximum(votes, 1)  # where nobody votes nobody is asked
        own, others = shares_of_mean(voters, harmonic[voters])
        all_alike = others * right_votes + 1 / (labels.n_classes * voters)
        if players is None:
            sums: NDArray[np.float64] = own @ right - all_alike @ within
            return sums
        values = own[:, None] * right - all_alike[:, None] * within
        return np.bincount(players.ravel(), values.ravel(), minlength=distances.n_train).astype(np.float64)

    return mean_over_test_points(
        distances,
        values_of_block,
        method="threshold_knn_shapley",
        parameters={"radius": radius},
        start=start,
        chunk_bytes=chunk_bytes,
        n_jobs=n_jobs,
        progress=progress,
    )


def _checked_radius(radius: float) -> float:
    if isinstance(radius, bool) or not isinstance(radius, Real):
        raise TypeError(f"radius must be a number of at least 0, got {radius!r} ({type(radius).__name__})")
    if not radius >= 0:
        raise ValueError(f"radius must be at least 0, got {radius}")
    return float(radius)
