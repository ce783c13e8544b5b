"""Labels of training and test points: whether a training point votes for the right one."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from baselines.knn.distances import Distances

__all__ = ["Labels", "checked_labels", "one_each"]


@dataclass(frozen=True)
class Labels:
    """Labels as numbers 0, 1, ..., in the smallest integers that hold them, since they are gathered many times.

    Attributes
    ----------
    train : unsigned [n]
        Of the training points.
    test : unsigned [t]
        Of the test points.
    n_classes : int
        Number of different labels in both.
    """

    train: NDArray[Any]
    test: NDArray[Any]
    n_classes: int

    def right(self, rows: slice, order: NDArray[np.intp] | slice = slice(None)) -> NDArray[np.bool_]:
        """Whether training points, in any order [b, n], have the label of the test points in `rows` (bool [b, n])."""
        right: NDArray[np.bool_] = self.train[order] == self.test[rows, None]
        return right


def checked_labels(y_train: ArrayLike, y_test: ArrayLike, distances: Distances) -> Labels:
    """Check labels, numbers or strings, and number them.

    Parameters
    ----------
    y_train, y_test : [n], [t]
        Labels of the training and of the test points.
    distances : Distances
        Of as many points.

    Returns
    -------
    Labels

    Raises
    ------
    ValueError
        If there is not one label for each point, one is NaN, or they are of different kinds.
    """
    train, test = one_each("y_train", y_train, distances.n_train), one_each("y_test", y_test, distances.n_test)
    if (train.dtype.kind in "biuf") != (test.dtype.kind in "biuf"):
        raise ValueError(f"y_train and y_test must be labels of the same kind, got {train.dtype} and {test.dtype}")
    classes, codes = np.unique(np.concatenate([train, test]), return_inverse=True)
    codes = codes.astype(np.min_scalar_type(len(classes)))
    return Labels(codes[: len(train)], codes[len(train) :], len(classes))


def one_each(name: str, y: ArrayLike, n_points: int, what: str = "label") -> NDArray[Any]:
    """Return labels or targets as an array, having checked that there is one, not NaN, for each point."""
    array: NDArray[Any] = np.asarray(y)
    if array.shape != (n_points,):
        raise ValueError(f"{name} must have one {what} for each point, shape ({n_points},), got {array.shape}")
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise ValueError(f"{name} must not contain NaN, got it {np.count_nonzero(np.isnan(array))} times")
    return array
