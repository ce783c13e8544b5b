r"""KNN-Shapley: a missing neighbour casts no vote.

The players are training points. The utility of a coalition :math:`S` for a test point with label :math:`y` is the share
of its :math:`k` votes that the nearest neighbours in :math:`S` cast for the right label,

.. math:: v(S) = \frac1k \sum_{j=1}^{\min(k, |S|)} \mathbb{1}[y_{\alpha_j(S)} = y],

where :math:`\alpha_j(S)` is the :math:`j`-th nearest to the test point in :math:`S`; a missing neighbour casts no
vote. For several test points it is the mean. Let :math:`\alpha_1, \dots, \alpha_n` be all training points from near to
far and :math:`m_j = \mathbb{1}[y_{\alpha_j} = y]`. The Shapley values follow from far to near (Jia et al.:
*Efficient Task-Specific Data Valuation for Nearest Neighbor Algorithms*, VLDB 2019, arXiv 1908.08619, Theorem 1; for
:math:`k \le n`):

.. math:: \phi_{\alpha_n} = \frac{m_n}{n}, \qquad
          \phi_{\alpha_j} = \phi_{\alpha_{j+1}} + \frac{m_j - m_{j+1}}{k} \, \frac{\min(k, j)}{j},

the recursion of `recursion` with weights :math:`w_j = \min(k, j) / (k j) = 1 / \max(k, j)`.

**Variance**: none; the values are exact for the given test points. How well these stand for the distribution they come
from is another matter.

**Cost**: for :math:`T` test points with :math:`d` features, :math:`2 T n d` operations for the distances and
:math:`O(n \log n)` for each test point; no coalition is evaluated.
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

__all__ = ["knn_shapley"]


def knn_shapley(
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
    """Exact Shapley values of training points for an unweighted k-nearest-neighbour classifier.

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
        Number of neighbours that vote, 1 to n.
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
        `values`: shares of right votes, adding up to the utility of the whole training set. They are exact for these
        test points, so `stderr` is None, and `evaluations` is 0.

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
    Jia et al., Efficient Task-Specific Data Valuation for Nearest Neighbor Algorithms, VLDB 2019, arXiv 1908.08619,
    Theorem 1.
    """
    start = perf_counter()
    distances = distances_between(x_train, x_test, metric)
    labels = checked_labels(y_train, y_test, distances)
    k = checked_k(k, distances)
    values_of = from_far_to_near(1 / np.maximum(k, np.arange(1, distances.n_listed + 1)))

    def rule(neighbours: Neighbours) -> NDArray[np.float64]:
        return values_of(labels.right(neighbours.rows, neighbours.order))

    return mean_over_test_points(
        distances,
        from_neighbours(distances, rule),
        method="knn_shapley",
        parameters={"k": k},
        start=start,
        chunk_bytes=chunk_bytes,
        n_jobs=n_jobs,
        progress=progress,
    )
