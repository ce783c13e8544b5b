r"""Exact Shapley values of the training points of a k-nearest-neighbour classifier.

The players are training points. The utility of a coalition :math:`S` for a test point with label :math:`y` is the share
of its :math:`k` votes that the nearest neighbours in :math:`S` cast for the right label,

.. math:: v(S) = \frac1k \sum_{j=1}^{\min(k, |S|)} \mathbb{1}[y_{\alpha_j(S)} = y],

where :math:`\alpha_j(S)` is the :math:`j`-th nearest to the test point in :math:`S`; a missing neighbour casts no
vote. For several test points it is the mean. Let :math:`\alpha_1, \dots, \alpha_n` be all training points from near to
far and :math:`m_j = \mathbb{1}[y_{\alpha_j} = y]`. The Shapley values follow from far to near (Jia et al.:
*Efficient Task-Specific Data Valuation for Nearest Neighbor Algorithms*, VLDB 2019, arXiv 1908.08619, Theorem 1; for
:math:`k \le n`):

.. math:: \phi_{\alpha_n} = \frac{m_n}{n}, \qquad
          \phi_{\alpha_j} = \phi_{\alpha_{j+1}} + \frac{m_j - m_{j+1}}{k} \, \frac{\min(k, j)}{j}.

With :math:`w_j = 1 / \max(k, j)`, which is :math:`\min(k, j) / (k j)`, summation by parts turns the recursion into

.. math:: \phi_{\alpha_j} = w_j m_j - \sum_{l > j} (w_{l-1} - w_l) \, m_l,

one cumulative sum for each test point, done for many of them at a time.

**Ties**: of training points at the same distance the one with the lower index is the nearer. Distances come from a
matrix product, :math:`\|x\|^2 - 2 \langle x, t \rangle`, on centred features. Those that differ by less than the
bound on its rounding error (relative to the squares about :math:`10^{-15}` times the number of features) count as the
same, so that duplicates tie however the product rounds. The centre is the mean of the training points, rounded to a
multiple of a power of two near their spread: integer features stay integers, and their distances exact.

**Variance**: none; the values are exact for the given test points. How well these stand for the distribution they come
from is another matter.

**Cost**: for :math:`T` test points with :math:`d` features, :math:`2 T n d` operations in the matrix product and
:math:`O(n \log n)` for each test point; no coalition is evaluated.
"""

import math
import sys
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

import numpy as np
from joblib import effective_n_jobs
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from baselines.arguments import whole_number
from baselines.valuation import Valuation

__all__ = ["knn_shapley"]

_BLOCK_BYTES = 2**21  # distances that one thread works on at a time: a block and its companions stay in the cache
_SMALLEST, _LARGEST = (
    1e-140,
    1e150,
)  # of centred features: squares and their rounding errors neither under- nor overflow


def knn_shapley(
    x_train: ArrayLike,
    y_train: ArrayLike,
    x_test: ArrayLike,
    y_test: ArrayLike,
    k: int = 5,
    *,
    chunk_bytes: int = 2**26,
    n_jobs: int | None = -1,
    progress: bool = False,
) -> Valuation:
    """Exact Shapley values of training points for an unweighted k-nearest-neighbour classifier, Euclidean distance.

    Parameters
    ----------
    x_train : float [n, d]
        Features of the training points, the players.
    y_train : [n]
        Their labels: numbers or strings.
    x_test : float [t, d]
        Features of the test points that the utility is measured on.
    y_test : [t]
        Their labels.
    k : int
        Number of neighbours that vote, 1 to n.
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
        If `k` or `chunk_bytes` is no integer, or features are no numbers.
    ValueError
        If shapes do not match, a set is empty, a feature or label is NaN, features are infinite or beyond what can be
        squared, labels are of different kinds, or `k` is not in 1..n.

    References
    ----------
    Jia et al., Efficient Task-Specific Data Valuation for Nearest Neighbor Algorithms, VLDB 2019, arXiv 1908.08619,
    Theorem 1.
    """
    start = perf_counter()
    train, test = _features("x_train", x_train), _features("x_test", x_test)
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"x_train and x_test must have the same number of features, got {train.shape[1]} and {test.shape[1]}"
        )
    train_labels, test_labels = _label_codes(_labels("y_train", y_train, train), _labels("y_test", y_test, test))
    n = len(train)
    if whole_number("k", k) > n:
        raise ValueError(f"k must be at most the number of training points, {n}, got {k}")
    whole_number("chunk_bytes", chunk_bytes)

    centre = _coarse_mean(train)
    with np.errstate(over="ignore"):  # an overflow is an error of ours, next
        train, test = train - centre, test - centre
    reach = max(train.max(), -train.min(), test.max(), -test.min())
    if reach > _LARGEST or 0 < reach < _SMALLEST:
        size, direction = ("large", "down") if reach > _LARGEST else ("small", "up")
        raise ValueError(
            f"features are too {size} to be squared, up to {reach:.3g} from the mean; "
            f"scale x_train and x_test {direction}"
        )
    train_squares, test_squares = np.einsum("ij,ij->i", train, train), np.einsum("ij,ij->i", test, test)
    votes = 1 / np.maximum(k, np.arange(1, n + 1))  # w_j
    drops = np.concatenate([[0.0], votes[:-1] - votes[1:]])  # w_(j-1) - w_j

    def values_of_block(products: NDArray[np.float64], block: slice) -> NDArray[np.float64]:
        """Sum of the values over a block of test points, from their products -2 <x, t> (overwritten)."""
        products += train_squares
        order = _neighbours(products, test_squares[block], train.shape[1])
        right = train_labels[order] == test_labels[block, None]
        values = np.cumsum(right * drops, axis=1)
        values -= values[:, -1:].copy()
        values += right * votes
        sums: NDArray[np.float64] = np.bincount(order.ravel(), values.ravel(), minlength=n).astype(np.float64)
        return sums

    totals = np.zeros(n)
    chunk_rows = min(len(test), max(1, chunk_bytes // (8 * n)))
    block_rows = max(1, _BLOCK_BYTES // (8 * n))
    buffer = np.empty((chunk_rows, n))
    with (
        ThreadPoolExecutor(effective_n_jobs(n_jobs)) as threads,
        tqdm(total=len(test), desc="knn_shapley", unit="test point", disable=not progress) as bar,
    ):
        for first in range(0, len(test), chunk_rows):
            chunk = test[first : first + chunk_rows]
            products = np.matmul(-2 * chunk, train.T, out=buffer[: len(chunk)])  # on all cores
            rows = range(0, len(chunk), block_rows)
            blocks = [products[row : row + block_rows] for row in rows]
            slices = [slice(first + row, first + row + len(block)) for row, block in zip(rows, blocks, strict=True)]
            for block_values in threads.map(values_of_block, blocks, slices):  # in this order, however many threads
                totals += block_values
            bar.update(len(chunk))
    return Valuation(
        values=totals / len(test),
        stderr=None,
        evaluations=0,
        seconds=perf_counter() - start,
        method="knn_shapley",
        parameters={"k": int(k), "n_test": len(test)},
    )


def _neighbours(distances: NDArray[np.float64], test_squares: NDArray[np.float64], n_features: int) -> NDArray[np.intp]:
    """Training points from near to far, ties by index (intp [b, n]).

    `distances` [b, n] are squared distances less the squared norm of the test point, `test_squares` [b].
    """
    order = np.argsort(distances, axis=1)
    ascending = np.take_along_axis(distances, order, axis=1)
    # With u = eps / 2, a computed |x|^2 - 2 <x, t> is off by at most (d + 2) u (|x| + |t|)^2. For the squared distance
    # D = distance + |t|^2 that is, by |x| <= sqrt(D) + |t|, at most (d + 2) u (2 D + 8 |t|^2); for a difference, twice.
    rounding = (n_features + 2) * sys.float_info.epsilon
    margin = ascending[:, :-1] * (2 * rounding)
    margin += (10 * rounding) * test_squares[:, None]
    tied_with_next = np.diff(ascending, axis=1) <= margin
    if tied_with_next.any():
        _sort_ties_by_index(order, tied_with_next)
    return order


def _sort_ties_by_index(order: NDArray[np.intp], tied_with_next: NDArray[np.bool_]) -> None:
    """Sort each run of tied neighbours in `order` [b, n] by index, in place; `tied_with_next` is bool [b, n - 1]."""
    b, n = order.shape
    never = np.zeros((b, 1), dtype=np.bool_)
    tied_with_last = np.concatenate([never, tied_with_next], axis=1)
    tied = tied_with_last | np.concatenate([tied_with_next, never], axis=1)
    run = np.cumsum(~tied_with_last).reshape(b, n)  # numbered through all rows
    # one sort for all: runs are in place already, and within a run the index decides
    order[tied] = np.sort(run[tied] * n + order[tied]) % n


def _coarse_mean(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the rows, rounded to a multiple of a power of two near their spread, so that integers stay integers."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean = x.mean(axis=0)
        spread = float(np.sqrt(x.var(axis=0).mean()))
        if not 0 < spread < np.inf:
            any_point: NDArray[np.float64] = x[0]  # they are all the same, or refused in the next step
            return any_point
        grid = 2.0 ** math.floor(math.log2(spread))
        centre: NDArray[np.float64] = np.rint(mean / grid) * grid
        return centre


def _features(name: str, x: ArrayLike) -> NDArray[np.float64]:
    array: NDArray[Any] = np.asarray(x)
    if array.ndim != 2:
        raise ValueError(f"{name} must have shape (points, features), got {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} must have at least one point and one feature, got shape {array.shape}")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be numbers, got an array of {array.dtype}")
    features = array.astype(np.float64)
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(features).all(axis=1))
    if not finite.all():
        raise ValueError(
            f"{name} must be finite, got NaN or infinity in {np.count_nonzero(~finite)} of {len(finite)} points, "
            f"first in point {np.argmin(finite)}"
        )
    return features


def _labels(name: str, y: ArrayLike, points: NDArray[np.float64]) -> NDArray[Any]:
    labels: NDArray[Any] = np.asarray(y)
    if labels.shape != (len(points),):
        raise ValueError(f"{name} must have one label for each point, shape ({len(points)},), got {labels.shape}")
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise ValueError(f"{name} must not contain NaN, got it {np.count_nonzero(np.isnan(labels))} times")
    return labels


def _label_codes(y_train: NDArray[Any], y_test: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Number the labels 0, 1, ..., in the smallest integers that hold them, since they are gathered many times."""
    if (y_train.dtype.kind in "biuf") != (y_test.dtype.kind in "biuf"):
        raise ValueError(f"y_train and y_test must be labels of the same kind, got {y_train.dtype} and {y_test.dtype}")
    classes, codes = np.unique(np.concatenate([y_train, y_test]), return_inverse=True)
    codes = codes.astype(np.min_scalar_type(len(classes)))
    return codes[: len(y_train)], codes[len(y_train) :]
