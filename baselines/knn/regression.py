r"""KNN-Shapley for regression: minus the squared error of the mean target of the nearest neighbours.

The utility of a coalition for a test point with target :math:`y` is (Jia et al.: *Efficient Task-Specific Data
Valuation for Nearest Neighbor Algorithms*, VLDB 2019, arXiv 1908.08619, section on KNN regression)

.. math:: v(S) = - \left( \frac1k \sum_{j=1}^{\min(k, |S|)} y_{\alpha_j(S)} - y \right)^2.

It divides by :math:`k` always: a missing neighbour stands for a target of 0, and :math:`v(\emptyset) = - y^2`. So the
values depend on where the targets have their zero; subtract the mean of the training targets from both sets, unless 0
is what one would predict without data.

Write :math:`y_1, \dots, y_n` for the targets from near to far, :math:`P_j = y_1 + \dots + y_j`, and

.. math:: h_j = \frac{\min(k, j)}{j}, \qquad
          g_j = \frac{\min(k, j) \, (\min(k, j) - 1)}{2 \, j \, (j - 1)}, \quad g_1 = 0.

Of two neighbours :math:`j` and :math:`j + 1` that take each other's place in a coalition, the one that is there is
among the :math:`k` nearest if fewer than :math:`k` others are nearer. The coalition has every size with equal
probability, so the number of nearer others is uniform on :math:`0, \dots, j - 1`: that happens with probability
:math:`h_j`. Another :math:`l` is among the :math:`k - 1` nearest of the others then with probability :math:`g_j` for
:math:`l < j` and :math:`g_{l-1}` for :math:`l > j + 1`, by the same count. From
:math:`-(a + y_j)^2 + (a + y_{j+1})^2 = (y_{j+1} - y_j)(2 a + y_j + y_{j+1})`

.. math:: \phi_{\alpha_j} - \phi_{\alpha_{j+1}} = \frac{y_{j+1} - y_j}{k} \left[ \frac1k \left( 2 g_j P_{j-1} +
          2 \sum_{l > j+1} g_{l-1} y_l + h_j (y_j + y_{j+1}) \right) - 2 h_j y \right].

The last neighbour counts in coalitions of fewer than :math:`k` others, whose mean target is :math:`P_{n-1} / (n-1)`:

.. math:: \phi_{\alpha_n} = - \frac{y_n}{n} \left[ \frac1k \left( (k-1) \frac{P_{n-1}}{n-1} + y_n \right) - 2 y \right]
          \qquad (k \le n).

**Variance**: none; the values are exact for the given test points.

**Cost**: that of `hard`: the distances, and :math:`O(n \log n)` for each test point.
"""

from time import perf_counter

import numpy as np
from numpy.typing import ArrayLike, NDArray

from baselines.knn.distances import Metric, Points, distances_between
from baselines.knn.labels import one_each
from baselines.knn.neighbours import Neighbours, checked_k, from_neighbours
from baselines.knn.over_test_points import mean_over_test_points
from baselines.real_numbers import real_numbers
from baselines.valuation import Valuation

__all__ = ["knn_regression_shapley"]

_LARGEST = 1e150  # target that can be squared and summed


def knn_regression_shapley(
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
    """Exact Shapley values of training points for an unweighted k-nearest-neighbour regression.

    Parameters
    ----------
    x_train : float [n, d]
        Features of the training points, the players. None with precomputed distances.
    y_train : float [n]
        Their targets, best centred: a missing neighbour stands for a target of 0.
    x_test : float [t, d], or float [t, n] or a k-NN graph
        Features of the test points that the utility is measured on. With precomputed distances: those from each test
        point to each training point, [t, n], or a k-NN graph: a `KNNGraph` or a SciPy sparse matrix of distances.
    y_test : float [t]
        Their targets, with the same zero.
    k : int
        Number of neighbours whose targets are averaged, 1 to n.
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
        `values`: shares of minus the squared error, in squared units of the target, adding up to the utility of the
        whole training set plus the mean square of `y_test`. They are exact for these test points, so `stderr` is None,
        and `evaluations` is 0.

    Raises
    ------
    TypeError
        If `k` or `chunk_bytes` is no integer, features are sparse, features or targets are no numbers, or `metric` is
        neither a string nor callable.
    ValueError
        If shapes do not match, a set is empty, a k-NN graph is malformed, a feature or target is missing, not finite or
        beyond what can be squared, a vector is zero (cosine), the metric is unknown or its distances are negative or
        not finite, or `k` is not in 1..n.

    References
    ----------
    Jia et al., Efficient Task-Specific Data Valuation for Nearest Neighbor Algorithms, VLDB 2019, arXiv 1908.08619.
    """
    start = perf_counter()
    distances = distances_between(x_train, x_test, metric)
    train, test = _targets("y_train", y_train, distances.n_train), _targets("y_test", y_test, distances.n_test)
    k = checked_k(k, distances)

    def rule(neighbours: Neighbours) -> NDArray[np.float64]:
        return _values(train[neighbours.order], test[neighbours.rows], k)

    return mean_over_test_points(
        distances,
        from_neighbours(distances, rule),
        method="knn_regression_shapley",
        parameters={"k": k},
        start=start,
        chunk_bytes=chunk_bytes,
        n_jobs=n_jobs,
        progress=progress,
    )


def _values(y: NDArray[np.float64], target: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Values [b, n] of the neighbours of test points with targets `target` [b], from their own targets `y` [b, n]."""
    n = y.shape[1]
    j = np.arange(1, n)
    h = np.minimum(k / j, 1)  # h_1, ..., h_(n-1)
    g = np.minimum(k, j) * (np.minimum(k, j) - 1) / np.maximum(2.0 * j * (j - 1), 1)
    nearer = np.cumsum(y, axis=1) - y  # P_(j-1) for j = 1, ..., n
    farther = np.zeros((len(y), n - 1))  # sum over l > j + 1 of g_(l-1) y_l
    farther[:, :-1] = _from_far(g[1:] * y[:, 2:])
    doubled = 2 * (g * nearer[:, :-1] + farther) + h * (y[:, :-1] + y[:, 1:])
    values = np.empty_like(y)
    values[:, :-1] = (y[:, 1:] - y[:, :-1]) / k * (doubled / k - 2 * h * target[:, None])
    others = nearer[:, -1] / max(n - 1, 1)
    values[:, -1] = -y[:, -1] / n * (((k - 1) * others + y[:, -1]) / k - 2 * target)
    return _from_far(values)


def _from_far(terms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of each term and all farther ones."""
    sums: NDArray[np.float64] = np.cumsum(terms[:, ::-1], axis=1)[:, ::-1]
    return sums


def _targets(name: str, y: ArrayLike, n_points: int) -> NDArray[np.float64]:
    targets = real_numbers(name, one_each(name, y, n_points, "target")).astype(np.float64)
    if not np.abs(targets).max() <= _LARGEST:
        raise ValueError(f"{name} must be finite and small enough to be squared, got up to {np.abs(targets).max():.3g}")
    return targets
