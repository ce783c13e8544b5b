r"""Soft-label KNN-Shapley: the share of right votes among the neighbours that there are.

A coalition with fewer than :math:`k` members lets all of them vote, and an empty one guesses among :math:`C` classes:

.. math:: v(S) = \frac{1}{\min(k, |S|)} \sum_{j=1}^{\min(k, |S|)} \mathbb{1}[y_{\alpha_j(S)} = y], \qquad
          v(\emptyset) = \frac1C,

in the notation of `hard`, which divides by :math:`k` always and so takes a small coalition for a bad one. It is the
probability that the classifier gives to the right label (Wang, Jia: *A Note on "Efficient Task-Specific Data Valuation
for Nearest Neighbor Algorithms"*, 2023, arXiv 2304.04258).

Two neighbours :math:`j` and :math:`j + 1` differ in coalitions of :math:`s` others. For :math:`s < k` both vote, each
with weight :math:`1 / (s + 1)`; from :math:`s = k` on only if fewer than :math:`k` others are nearer, as in the
hard-label game. With the harmonic numbers :math:`H_c = 1 + 1/2 + \dots + 1/c` that makes

.. math:: \phi_{\alpha_j} - \phi_{\alpha_{j+1}} = w_j (m_j - m_{j+1}), \qquad
          w_j = \frac{1}{n-1} \left[ H_{\min(k, n-1)} +
                \frac1k \left( (n-1) \frac{\min(k, j)}{j} - \min(k, n-1) \right) \right].

The last neighbour matters in coalitions of :math:`s < k` others alone. There it moves the mean by
:math:`(m_n - \text{mean of the others}) / (s + 1)`, and by :math:`m_n - 1/C` in the empty one:

.. math:: \phi_{\alpha_n} = \frac{m_n - 1/C}{n} + \frac{H_k - 1}{n} \left( m_n - \frac{M - m_n}{n - 1} \right)
          \qquad (k \le n, \; M = \sum_j m_j).

The terms in :math:`M` and :math:`C` pass on to all neighbours alike; the rest is the recursion of `recursion`.

**Variance**: none; the values are exact for the given test points.

**Cost**: that of `hard`: the distances, and :math:`O(n \log n)` for each test point.
"""

from time import perf_counter

import numpy as np
from numpy.typing import ArrayLike, NDArray

from baselines.knn.distances import Metric, Points, distances_between
from baselines.knn.labels import checked_labels
from baselines.knn.neighbours import Neighbours, checked_k, from_neighbours
from baselines.knn.over_test_points import mean_over_test_points
from baselines.knn.recursion import from_far_to_near
from baselines.valuation import Valuation

__all__ = ["harmonic_numbers", "shares_of_mean", "soft_knn_shapley"]


def soft_knn_shapley(
    x_train: ArrayLike | None,
    y_train: ArrayLike,
    x_test: Points,
    y_test: ArrayLike,
    k: int = 5,
    *,
    metric: Metric = "euclidean",
    chunk_bytes: int = 2**26,
    n_jobs: int | None = -1,
    progress: bool = False,
) -> Valuation:
    """Exact Shapley values for the probability that a k-nearest-neighbour classifier gives to the right label.

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
    k : int
        Number of neighbours that vote, 1 to n; all members of a coalition if they are fewer.
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
        If `k` or `chunk_bytes` is no integer, features are sparse or no numbers, or `metric` is neither a string nor
        callable.
    ValueError
        If shapes do not match, a set is empty, a k-NN graph is malformed, a feature or label is missing, features are
        infinite or beyond what can be squared, a vector is zero (cosine), the metric is unknown or its distances are
        negative or not finite, labels are of different kinds, or `k` is not in 1..n.

    References
    ----------
    Wang, Jia, A Note on "Efficient Task-Specific Data Valuation for Nearest Neighbor Algorithms", 2023, arXiv
    2304.04258.
    """
    start = perf_counter()
    distances = distances_between(x_train, x_test, metric)
    labels = checked_labels(y_train, y_test, distances)
    k = checked_k(k, distances)
    n = distances.n_listed
    own, others = shares_of_mean(np.array(n), harmonic_numbers(k)[k])
    values_of = from_far_to_near(np.append(_weights_of_differences(n, k), own))

    def rule(neighbours: Neighbours) -> NDArray[np.float64]:
        right = labels.right(neighbours.rows, neighbours.order)
        values = values_of(right)
        values -= others * right.sum(axis=1, keepdims=True) + 1 / (n * labels.n_classes)
        return values

    return mean_over_test_points(
        distances,
        from_neighbours(distances, rule),
        method="soft_knn_shapley",
        parameters={"k": k},
        start=start,
        chunk_bytes=chunk_bytes,
        n_jobs=n_jobs,
        progress=progress,
    )


def shares_of_mean(n: NDArray[np.intp], harmonic: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    r"""Shares of a player who moves a mean of right votes, in the votes of its own and of all.

    Among n players its value is :math:`a m_i - b M` (less what the empty coalition is worth), if it counts in
    coalitions of fewer than :math:`k \le n` others and takes part in their mean.

    Parameters
    ----------
    n : intp [...]
        Numbers of players, at least 1.
    harmonic : float64 [...]
        :math:`H_k`.

    Returns
    -------
    own, others : float64 [...]
        :math:`a` and :math:`b`.
    """
    pairs = np.maximum(n * (n - 1), 1)  # a single player has no others: H = 1
    others = (harmonic - 1) / pairs
    return harmonic / n + others, others


def harmonic_numbers(n: int) -> NDArray[np.float64]:
    """Harmonic numbers H_0, ..., H_n (float64 [n + 1])."""
    return np.concatenate([[0.0], np.cumsum(1 / np.arange(1, n + 1))])


def _weights_of_differences(n: int, k: int) -> NDArray[np.float64]:
    """Weights w_1, ..., w_(n-1)."""
    j, small = np.arange(1, n), min(k, n - 1)  # others than two neighbours: of fewer than k there are `small` sizes
    sizes_from_k = (n - 1) * np.minimum(k / j, 1) - small
    weights: NDArray[np.float64] = (harmonic_numbers(small)[small] + sizes_from_k / k) / max(n - 1, 1)
    return weights
