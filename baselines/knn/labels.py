"""Labels of training and test points: whether a training point votes for the right one."""

from dataclasses import dataclass
from numbers import Number
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from baselines.knn.distances import Distances

__all__ = ["Labels", "checked_labels", "one_each"]

_KINDS = {"numbers": (Number, np.bool_), "strings": (str,), "bytes": (bytes,)}


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

    def right(self, rows: slice, order: NDArray[np.intp] | None = None) -> NDArray[np.bool_]:
        """Whether training points, all or in any order [b, w], have the label of the test points in `rows`."""
        right: NDArray[np.bool_] = self.train[order] == self.test[rows, None]
        return right


def checked_labels(y_train: ArrayLike, y_test: ArrayLike, distances: Distances) -> Labels:
    """Check labels and number them.

    Parameters
    ----------
    y_train, y_test : [n], [t]
        Labels of the training and of the test points: numbers, strings or any other values that can be keys of a
        dictionary, in arrays, lists, or columns of a data frame, categories among them.
    distances : Distances
        Of as many points.

    Returns
    -------
    Labels

    Raises
    ------
    TypeError
        If a label can be no key of a dictionary.
    ValueError
        If there is not one label for each point, one is missing, or they are of different kinds.
    """
    train, test = one_each("y_train", y_train, distances.n_train), one_each("y_test", y_test, distances.n_test)
    kinds = [_kinds(labels) for labels in (train, test)]
    if len(kinds[0] | kinds[1]) > 1:
        told = " and ".join(" or ".join(sorted(kind)) for kind in kinds)
        raise ValueError(f"y_train and y_test must be labels of the same kind, got {told}")
    codes, n_classes = _numbered(train, test)
    codes = codes.astype(np.min_scalar_type(n_classes))
    return Labels(codes[: len(train)], codes[len(train) :], n_classes)


def one_each(name: str, y: ArrayLike, n_points: int, what: str = "label") -> NDArray[Any]:
    """Return labels or targets as an array, having checked that there is one for each point and none is missing.

    Missing are None, NaN, NaT, pandas' NA and masked entries. Lists become arrays of objects: NumPy would make a string
    of a NaN among strings.
    """
    if isinstance(y, np.ma.MaskedArray) and np.ma.is_masked(y):
        y = y.tolist()  # of which masked entries become None
    array: NDArray[Any] = np.asarray(y, dtype=object) if isinstance(y, list | tuple) else np.asarray(y)
    if array.shape != (n_points,):
        raise ValueError(f"{name} must have one {what} for each point, shape ({n_points},), got {array.shape}")
    missing = _missing(array)
    if missing.any():
        first = np.argmax(missing)
        raise ValueError(
            f"{name} must have no missing {what}s, got {np.count_nonzero(missing)} among {n_points} points, "
            f"first {array[first]} in point {first}; leave such points out"
        )
    return array


def _missing(array: NDArray[Any]) -> NDArray[np.bool_]:
    if array.dtype.kind == "O":
        return np.fromiter((_is_missing(value) for value in array), np.bool_, len(array))
    missing: NDArray[np.bool_] = array != array  # NaN, NaT
    return missing


def _is_missing(value: Any) -> bool:
    """Whether it is None or does not equal itself, or, as pandas' NA, will not tell."""
    try:
        return value is None or bool(value != value)
    except TypeError:
        return True


def _kinds(labels: NDArray[Any]) -> set[str]:
    if labels.dtype.kind != "O":
        return {_kind(labels.dtype.type)}
    return {_kind(of_values) for of_values in set(map(type, labels))}


def _kind(of_values: type) -> str:
    return next((kind for kind, types in _KINDS.items() if issubclass(of_values, types)), of_values.__name__)


def _numbered(train: NDArray[Any], test: NDArray[Any]) -> tuple[NDArray[np.intp], int]:
    """Labels of both, as numbers 0, 1, ..., and how many different ones there are."""
    if "O" not in (train.dtype.kind, test.dtype.kind) and not _rounds_integers(train.dtype, test.dtype):
        classes, codes = np.unique(np.concatenate([train, test]), return_inverse=True)
        return codes, len(classes)
    numbers: dict[Any, int] = {}
    labels = [label for each in (train, test) for label in (each.tolist() if each.dtype.kind in "iuf" else each)]
    try:
        return np.array([numbers.setdefault(label, len(numbers)) for label in labels]), len(numbers)
    except TypeError as error:
        raise TypeError(f"labels in y_train and y_test must be hashable, got {error}") from error


def _rounds_integers(first: np.dtype[Any], second: np.dtype[Any]) -> bool:
    """Whether NumPy would make floats of integers that these need not hold, to compare labels of the two types."""
    if first.kind not in "iuf" or second.kind not in "iuf":
        return False
    return np.result_type(first, second).kind == "f" and {first, second} & {np.dtype("i8"), np.dtype("u8")} != set()
