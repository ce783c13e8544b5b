"""Checks of what a learner's game is given: samples and coalitions; errors name the argument and what is allowed."""

from collections.abc import Mapping, Set
from numbers import Number
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse

from baselines.real_numbers import check_same_columns, check_unmasked, real_numbers

__all__ = ["checked_coalitions", "class_codes", "class_codes_of_outputs", "features", "real_targets", "sample_count"]

_LABELS_SHOWN = 5
_NUMBERS = (Number, np.bool_)


def checked_coalitions(coalitions: NDArray[np.bool_], n_players: int) -> NDArray[np.bool_]:
    """Return `coalitions`, having checked that they are bool [m, n_players]; a ValueError otherwise."""
    check_unmasked("coalitions", coalitions)
    coalitions = np.asarray(coalitions)
    if coalitions.dtype != np.bool_ or coalitions.ndim != 2 or coalitions.shape[1] != n_players:
        raise ValueError(
            f"coalitions must be a bool array of shape (m, {n_players}), got {coalitions.dtype} of shape "
            f"{coalitions.shape}"
        )
    return coalitions


def features(x_train: ArrayLike, x_validation: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both sets of features as float64 [n, d] and [v, d].

    Raises
    ------
    TypeError
        If features are no real numbers.
    ValueError
        If a set is empty or not two-dimensional, has a NaN, an infinity, masked entries or a number that float64 does
        not hold, the sets differ in width, or two data frames in their columns.
    """
    check_same_columns("x_train", x_train, "x_validation", x_validation)
    train, validation = _finite("x_train", x_train), _finite("x_validation", x_validation)
    if train.shape[1] != validation.shape[1]:
        raise ValueError(
            f"x_train and x_validation must have the same number of features, "
            f"got {train.shape[1]} and {validation.shape[1]}"
        )
    return train, validation


def class_codes(
    y_train: ArrayLike, y_validation: ArrayLike, n_train: int, n_validation: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]:
    """Number the labels in the order of the sorted classes.

    Parameters
    ----------
    y_train, y_validation : [n_train], [n_validation]
        Numbers or strings.
    n_train, n_validation : int
        How many there must be.

    Returns
    -------
    int64 [n_train], int64 [n_validation], [K]
        Class numbers 0..K-1 of both sets, and the classes.

    Raises
    ------
    ValueError
        If shapes do not match, a label is NaN, there are fewer than two classes, or a validation label never occurs
        in training.
    """
    train, validation = _one_each("y_train", y_train, n_train), _one_each("y_validation", y_validation, n_validation)
    codes, validation_codes, classes = class_codes_of_outputs(train, validation, n_train, n_validation)
    if len(classes[0]) < 2:
        raise ValueError(f"y_train must have at least two classes, got only {classes[0][0]!r}")
    return codes[:, 0], validation_codes[:, 0], classes[0]


def class_codes_of_outputs(
    y_train: ArrayLike, y_validation: ArrayLike, n_train: int, n_validation: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[NDArray[Any]]]:
    """Number the labels of each output in the order of its sorted classes.

    Parameters
    ----------
    y_train, y_validation : [n_train] or [n_train, outputs], [n_validation] or [n_validation, outputs]
        Numbers or strings, in anything that NumPy makes an array of, or a sparse matrix.
    n_train, n_validation : int
        How many there must be.

    Returns
    -------
    int64 [n_train, outputs], int64 [n_validation, outputs], list of [K]
        Class numbers 0..K-1 of both sets, and the classes of each output.

    Raises
    ------
    TypeError
        If labels of an output cannot be sorted.
    ValueError
        If shapes do not match, a label is missing (None, NaN, NaT or pandas' NA), or a validation label never
        occurs in training.
    """
    train, validation = _of_outputs(y_train, y_validation, n_train, n_validation)
    for name, labels in (("y_train", train), ("y_validation", validation)):
        missing = pd.isna(labels).any(axis=1)
        if missing.any():
            raise ValueError(
                f"{name} must not have missing labels (None, NaN, NaT or NA), got them for "
                f"{np.count_nonzero(missing)} samples, first for sample {np.argmax(missing)}"
            )
    codes, validation_codes = np.empty(train.shape, np.int64), np.empty(validation.shape, np.int64)
    classes = []
    for output, (labels, judged) in enumerate(zip(train.T, validation.T, strict=True)):
        try:
            of_output, codes[:, output] = np.unique(labels, return_inverse=True)
            sorted_classes, judged = _comparable(of_output, judged)
            unseen = np.setdiff1d(judged, sorted_classes)
        except TypeError as error:
            raise TypeError(f"labels must be of one kind, so that they can be sorted: {error}") from error
        if len(unseen):
            more = ", ..." if len(unseen) > _LABELS_SHOWN else ""
            shown = ", ".join(map(repr, unseen[:_LABELS_SHOWN].tolist())) + more
            raise ValueError(f"y_validation must only have labels that y_train has, got also {shown}")
        validation_codes[:, output] = np.searchsorted(sorted_classes, judged)
        classes.append(of_output)
    return codes, validation_codes, classes


def real_targets(
    y_train: ArrayLike, y_validation: ArrayLike, n_train: int, n_validation: int, *, several: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the targets of a regression as float64 [n_train] and [n_validation], or [.., outputs] if `several` may be.

    Raises
    ------
    TypeError
        If targets are no real numbers.
    ValueError
        If shapes do not match, or a target is NaN or infinite.
    """
    if several and np.ndim(y_train) > 1:
        train, validation = _of_outputs(y_train, y_validation, n_train, n_validation)
    else:
        train, validation = (
            _one_each("y_train", y_train, n_train),
            _one_each("y_validation", y_validation, n_validation),
        )
    return _numbers("y_train", train), _numbers("y_validation", validation)


def sample_count(name: str, x: Any) -> int:
    """Return the number of samples in an array, data frame, sparse matrix or list.

    Raises
    ------
    TypeError
        If `x` is nothing that has rows.
    ValueError
        If there are none.
    """
    check_unmasked(name, x)
    if (
        isinstance(x, str | bytes | Mapping | Set)
        or not (hasattr(x, "__getitem__") or issparse(x))  # coordinates have rows, though SciPy 1.14 picks none
        or not (np.shape(x) if hasattr(x, "shape") else hasattr(x, "__len__"))
    ):
        raise TypeError(
            f"{name} must be an array, data frame, sparse matrix or list of samples, got {type(x).__name__}"
        )
    n = int(x.shape[0] if hasattr(x, "shape") else len(x))
    if n == 0:
        raise ValueError(f"{name} must have at least one sample, got none")
    return n


def _finite(name: str, x: ArrayLike) -> NDArray[np.float64]:
    array = real_numbers(name, x)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(
            f"{name} must have shape (samples, features), at least one of each, got {array.shape}; flatten images first"
        )
    return _numbers(name, array)


def _one_each(name: str, y: Any, n: int) -> NDArray[Any]:
    array = _as_given(name, y)
    if array.shape != (n,):
        raise ValueError(f"{name} must have one entry for each of the {n} samples, shape ({n},), got {array.shape}")
    return array


def _of_outputs(y_train: Any, y_validation: Any, n_train: int, n_validation: int) -> tuple[NDArray[Any], NDArray[Any]]:
    check_same_columns("y_train", y_train, "y_validation", y_validation)
    arrays: list[NDArray[Any]] = []
    for name, y, n in (("y_train", y_train, n_train), ("y_validation", y_validation, n_validation)):
        array: NDArray[Any] = y.toarray() if issparse(y) else _as_given(name, y)
        if array.ndim not in (1, 2) or len(array) != n:
            raise ValueError(
                f"{name} must have one entry, or a row of them, for each of the {n} samples, got shape {array.shape}"
            )
        arrays.append(array.reshape(n, -1))
    if arrays[0].shape[1] != arrays[1].shape[1]:
        raise ValueError(
            "y_train and y_validation must have the same number of outputs, got "
            f"{arrays[0].shape[1]} and {arrays[1].shape[1]}"
        )
    return arrays[0], arrays[1]


def _as_given(name: str, y: Any) -> NDArray[Any]:
    """Return an array, of objects where NumPy would make strings or floats of something else among them."""
    check_unmasked(name, y)
    if not isinstance(y, list | tuple):
        return np.asarray(y)
    plain: NDArray[Any] = np.asarray(y)
    objects: NDArray[Any] = np.asarray(y, dtype=object)
    if objects.shape != plain.shape:  # of arrays, which it has taken apart
        return plain
    types = {type(value) for value in objects.flat}
    alike = all(issubclass(each, str | np.str_) for each in types) or all(issubclass(each, _NUMBERS) for each in types)
    rounded = plain.dtype.kind == "f" and not all(issubclass(each, float | np.floating) for each in types)
    return plain if alike and not rounded else objects


def _comparable(classes: NDArray[Any], judged: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return both as Python's numbers where NumPy would make floats of integers to compare them."""
    kinds = (classes.dtype.kind, judged.dtype.kind)
    if not set(kinds) <= set("iuf") or len(set(kinds)) == 1:
        return classes, judged
    return classes.astype(object), judged.astype(object)


def _numbers(name: str, array: NDArray[Any]) -> NDArray[np.float64]:
    array = real_numbers(name, array)
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{name} must be finite, got NaN or infinity in {np.count_nonzero(~finite)} of {len(finite)} samples, "
            f"first in sample {np.argmin(finite)}"
        )
    return array.astype(np.float64)
