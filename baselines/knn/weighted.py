r"""Weighted KNN-Shapley: whether the right votes of the nearest neighbours outweigh the wrong ones.

The vote of a neighbour has a weight that falls with its distance, discretised to :math:`q \in \{1, \dots, L\}`,
:math:`L = 2^{bits} - 1`, as in Wang, Mittal, Jia: *Efficient Data Shapley for Weighted Nearest Neighbor Algorithms*,
AISTATS 2024, arXiv 2401.11103. Let :math:`u_j = q_j` if the :math:`j`-th training point from near to far has the right
label and :math:`u_j = -q_j` if not. The utility is the hard-label one: right, wrong, or tossed for,

.. math:: v(S) = f\Big( \sum_{j \in N_k(S)} u_j \Big), \qquad
          f(x) = \begin{cases} 1 & x > 0 \\ 1/2 & x = 0 \\ 0 & x < 0 \end{cases}

where :math:`N_k(S)` are the :math:`k` nearest in :math:`S`, or all of it if it has fewer; :math:`v(\emptyset) = 1/2`.
With two classes it is the accuracy of the weighted vote, a tie broken by a coin; with more of them the right label must
outweigh all others together. One bit makes it the plain majority vote.

**Values.** A player :math:`i` changes the utility of :math:`S` in two ways. If :math:`|S| < k`, it adds its vote. If
:math:`|S| \ge k` and :math:`i` is nearer than the :math:`k`-th nearest of :math:`S`, number :math:`m`, it takes the
place of :math:`m` beside the others :math:`T`. In a random order of arrival the latter happens with a certain
:math:`m` with probability :math:`k / (m (m - 1))`, and then :math:`T` is a uniformly random set of :math:`k - 1` of the
:math:`m - 2` points nearer than :math:`m`, without :math:`i`. So, with expectations over uniformly random subsets of
the size given, :math:`T \subseteq \{1, \dots, m - 1\} \setminus \{i\}` in the second sum,

.. math:: \phi_i = \frac1n \sum_{s < k} E_{|T| = s} [f(u_T + u_i) - f(u_T)]
          + \sum_{m > \max(i, k)} \frac{k}{m (m-1)} E_{|T| = k - 1} [f(u_T + u_i) - f(u_T + u_m)].

**Dynamic programme.** Let :math:`F_M[c](x) = E f(u_T + x)` over the sets :math:`T` of :math:`c` of the :math:`M`
nearest points. The last of them is in :math:`T` or not:

.. math:: F_{M+1}[c](x) = \left(1 - \frac{c}{M+1}\right) F_M[c](x) + \frac{c}{M+1} F_M[c-1](x + u_{M+1}).

The same law, read backwards, takes any point out again, and what is left depends on its :math:`u` alone, not on which
one it was. So all players need, at each :math:`m`, no more than the :math:`2 L + 1` possible values of :math:`u`: the
terms are summed over :math:`m` for each :math:`u`, and a player picks its sum. Reading backwards is an alternating sum,
stable upwards from :math:`F_M[0]` for :math:`2c \le M` and downwards from :math:`F_M[M]` for :math:`2c \ge M`. The
former is nearly always the case; for the latter the first :math:`2k` points are done with twice as many sizes
(`subset_votes`).

**Variance**: none; the values are exact for the given test points and discretised weights.

**Cost**: beside that of `hard`, :math:`O(n k^2 L)` operations for each test point, linear in the training points. The
enumeration of Jia et al. (2019) takes :math:`O(n^k)`, the algorithm of Wang et al. :math:`O(n^2)` for fixed :math:`k`
and :math:`L`.
"""

from time import perf_counter

import numpy as np
from numpy.typing import ArrayLike, NDArray

from baselines.arguments import whole_number
from baselines.knn.distances import Metric, Points, distances_between
from baselines.knn.labels import checked_labels
from baselines.knn.neighbours import Neighbours, checked_k, from_neighbours
from baselines.knn.over_test_points import mean_over_test_points
from baselines.knn.subset_votes import SubsetVotes
from baselines.knn.vote_weights import Weights, discretised, weight_function
from baselines.valuation import Valuation

__all__ = ["weighted_knn_shapley"]

_MOST_BITS = 8
_TABLE_ENTRIES = 2**16  # of the dynamic programme of a block: they stay in the cache


def weighted_knn_shapley(
    x_train: ArrayLike | None,
    y_train: ArrayLike,
    x_test: Points,
    y_test: ArrayLike,
    k: int = 5,
    *,
    weights: Weights = "inverse distance",
    bits: int = 3,
    metric: Metric = "euclidean",
    chunk_bytes: int = 2**26,
    n_jobs: int | None = -1,
    progress: bool = False,
) -> Valuation:
    """Exact Shapley values of training points for a k-nearest-neighbour vote weighted by distance.

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
    weights : str or callable
        "inverse distance"; "rbf", exp(-distance^2 / (2 h^2)) with h the distance of the k-th nearest training point; or
        a function of distances (float64 [b, n], a row a test point, ascending) that returns weights of this shape,
        element by element: not negative, infinity for one that beats all finite ones, 0 for no vote.
    bits : int
        Weights are rounded to 1, ..., 2^bits - 1, in units of that fraction of the largest of the test point: 1 to 8.
        A positive weight counts at least 1. One bit is the unweighted majority.
    metric : str or callable
        "euclidean", "sqeuclidean" and "cosine" go by a matrix product and are fast. Any other name goes to
        `scipy.spatial.distance.cdist`, a function of a test and a training point (float64 [d] each) returns their
        distance, and "precomputed" says that `x_test` holds distances or a k-NN graph.
    chunk_bytes : int
        Memory for the distances from a chunk of test points to all training points; those of one test point, 8 n
        bytes, are the least. The rest of the work needs some eight times as much for a chunk. Changes the values by
        rounding only.
    n_jobs : int or None
        Threads, as joblib counts them (-1: all cores) and besides those of the linear algebra library. Changes nothing
        in the values.
    progress : bool
        Whether to show a progress bar, in test points, on stderr.

    Returns
    -------
    Valuation
        `values`: shares of the accuracy beyond that of a tossed coin, adding up to the utility of the whole training
        set less 1/2. They are exact for these test points, so `stderr` is None, and `evaluations` is 0.

    Raises
    ------
    TypeError
        If `k`, `bits` or `chunk_bytes` is no integer, features are sparse or no numbers, or `metric` or `weights` is
        neither a string nor callable.
    ValueError
        If shapes do not match, a set is empty, a k-NN graph is malformed, a feature or label is missing, features are
        infinite or beyond what can be squared, a vector is zero (cosine), the metric is unknown or its distances are
        negative or not finite, labels are of different kinds, `k` is not in 1..n, `bits` is not in 1..8, or weights are
        unknown, NaN, negative or of another shape.

    References
    ----------
    Wang, Mittal, Jia, Efficient Data Shapley for Weighted Nearest Neighbor Algorithms, AISTATS 2024, arXiv 2401.11103.
    """
    start = perf_counter()
    distances = distances_between(x_train, x_test, metric)
    labels = checked_labels(y_train, y_test, distances)
    k = checked_k(k, distances)
    weigh, name = weight_function(weights, k)
    if whole_number("bits", bits) > _MOST_BITS:
        raise ValueError(f"bits must be at most {_MOST_BITS}, got {bits}")
    largest = 2**bits - 1

    def rule(neighbours: Neighbours) -> NDArray[np.float64]:
        votes = discretised(weigh(neighbours.lengths()), largest)
        np.negative(votes, out=votes, where=~labels.right(neighbours.rows, neighbours.order))
        return _values(votes, k, largest)

    return mean_over_test_points(
        distances,
        from_neighbours(distances, rule),
        method="weighted_knn_shapley",
        parameters={"k": k, "weights": name, "bits": int(bits)},
        start=start,
        chunk_bytes=chunk_bytes,
        n_jobs=n_jobs,
        progress=progress,
        block_rows=max(1, _TABLE_ENTRIES // (2 * k * k * largest)),
    )


def _values(votes: NDArray[np.int64], k: int, largest: int) -> NDArray[np.float64]:
    """Values [b, n] of the neighbours of b test points, from their signed votes u [b, n]."""
    b, n = votes.shape
    by_level = np.zeros((b, 2 * largest + 1))  # the sum over m, for each u that a player can have
    own = np.arange(b)[:, None] * by_level.shape[1] + largest + votes  # where a player finds its u there
    not_own = np.empty((b, n))  # terms of m up to the player itself
    subsets = SubsetVotes(b, min(2 * k, n + 1), largest)
    for m in range(1, n + 1):
        vote = votes[:, m - 1]
        if m > k:
            by_level += k / (m * (m - 1)) * subsets.gains(k - 1, instead=vote)
        not_own[:, m - 1] = by_level.take(own[:, m - 1])
        subsets.add(vote)
        if subsets.n_points == 2 * k:
            subsets.keep_sizes_below(k)
    for size in range(k):
        by_level += subsets.gains(size, instead=np.zeros(b, dtype=np.int64)) / n
    values: NDArray[np.float64] = by_level.take(own) - not_own
    return values
