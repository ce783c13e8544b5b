"""Checks of the samples that a learner is fitted to and judged on; errors name the argument and what is allowed."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["class_codes", "features", "real_targets"]

_LABELS_SHOWN = 5


def features(x_train: ArrayLike, x_validation: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both sets of features as float64 [n, d] and [v, d].

    Raises
    ------
    TypeError
        If features are no real numbers.
    ValueError
        If a set is empty or not two-dimensional, has a NaN or an infinity, or the sets differ in width.
    """
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
    for name, labels in (("y_train", train), ("y_validation", validation)):
        if labels.dtype.kind == "f" and np.isnan(labels).any():
            raise ValueError(f"{name} must not contain NaN, got it {np.count_nonzero(np.isnan(labels))} times")
    classes, codes = np.unique(train, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"y_train must have at least two classes, got only {classes[0]!r}")
    unseen = np.setdiff1d(validation, classes)
    if len(unseen):
        shown = ", ".join(map(repr, unseen[:_LABELS_SHOWN].tolist())) + (", ..." if len(unseen) > _LABELS_SHOWN else "")
        raise ValueError(f"y_validation must only have labels that y_train has, got also {shown}")
    return codes.astype(np.int64), np.searchsorted(classes, validation).astype(np.int64), classes


def real_targets(
    y_train: ArrayLike, y_validation: ArrayLike, n_train: int, n_validation: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the targets of a regression as float64 [n_train] and [n_validation].

    Raises
    ------
    TypeError
        If targets are no real numbers.
    ValueError
        If shapes do not match, or a target is NaN or infinite.
    """
    return (
        _numbers("y_train", _one_each("y_train", y_train, n_train)),
        _numbers("y_validation", _one_each("y_validation", y_validation, n_validation)),
    )


def _finite(name: str, x: ArrayLike) -> NDArray[np.float64]:
    array: NDArray[Any] = np.asarray(x)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(
            f"{name} must have shape (samples, features), at least one of each, got {array.shape}; flatten images first"
        )
    return _numbers(name, array)


def _one_each(name: str, y: ArrayLike, n: int) -> NDArray[Any]:
    array: NDArray[Any] = np.asarray(y)
    if array.shape != (n,):
        raise ValueError(f"{name} must have one entry for each of the {n} samples, shape ({n},), got {array.shape}")
    return array


def _numbers(name: str, array: NDArray[Any]) -> NDArray[np.float64]:
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be real numbers, got an array of {array.dtype}")
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{name} must be finite, got NaN or infinity in {np.count_nonzero(~finite)} of {len(finite)} samples, "
            f"first in sample {np.argmin(finite)}"
        )
    return array.astype(np.float64)
