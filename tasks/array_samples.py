"""Samples as NumPy arrays, from what users have them in: arrays, data frames, tensors, torch data sets.

What is missing, infinite, no number, or would have to be guessed is refused by name, with the way out.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, IterableDataset

from baselines.real_numbers import check_unmasked, real_numbers

__all__ = ["ArraySamples", "array_samples", "class_numbers", "classes_of"]

_LARGEST = torch.finfo(torch.float32).max
_SHOWN = 5
_KINDS = {"boolean": bool, "integer": np.int64, "floating": float, "mixed-integer-float": float, "string": str}
_ENCODE = "encode it as numbers (pandas.get_dummies, for instance), or leave it out"


@dataclass(frozen=True)
class ArraySamples:
    """Samples as NumPy arrays, and what errors are to call them.

    Attributes
    ----------
    names : (str, str)
        Of features and targets.
    x : float64 or int64 [n, ...]
        Features; int64 where all of them came as integers.
    y : [n] or [n, T]
        Targets: booleans, integers, floats or strings, none of them missing or infinite.
    categories : tuple or None
        Those of pandas' categories, in their order, that `y` has.
    """

    names: tuple[str, str]
    x: NDArray[Any]
    y: NDArray[Any]
    categories: tuple[Hashable, ...] | None

    def __len__(self) -> int:
        return len(self.x)


def array_samples(names: tuple[str, str], x: Any, y: Any) -> ArraySamples:
    """Return samples as NumPy arrays, having checked them.

    Parameters
    ----------
    names : (str, str)
        What errors are to call features and targets.
    x : array, data frame, tensor, list or map-style torch Dataset
        Features [n, ...]. A Dataset has the targets, too.
    y : array, series, data frame, tensor, list or None
        Targets [n], [n, 1] or [n, T]; None with a Dataset.

    Raises
    ------
    TypeError
        If something is of another type, or a feature is no number.
    ValueError
        If lengths, shapes or indexes do not fit, or something is missing, infinite or too large.
    """
    if isinstance(x, Dataset):
        if y is not None:
            raise TypeError(f"{names[1]} must be left out where {names[0]} is a Dataset, which has the targets, too")
        x, y = _of_dataset(names[0], x)
    elif y is None:
        raise TypeError(f"{names[1]} must be given, unless {names[0]} is a torch Dataset of pairs, got {_kind(x)}")
    if isinstance(x, pd.DataFrame) and isinstance(y, pd.Series | pd.DataFrame) and not x.index.equals(y.index):
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same index, since their rows belong together; take "
            f"{names[1]}.loc[{names[0]}.index], or reset_index(drop=True) of both where they are in the same order"
        )
    features = _features(names[0], x)
    targets, categories = _targets(names[1], y, names[0], len(features))
    return ArraySamples(names, features, targets, categories)


def classes_of(samples: ArraySamples) -> tuple[Hashable, ...]:
    """Return the distinct labels of `y`: in the order of the categories where these are pandas', sorted elsewhere."""
    return samples.categories or tuple(np.unique(samples.y).tolist())


def class_numbers(samples: ArraySamples, classes: Sequence[Hashable], known: str) -> NDArray[np.int64]:
    """Return the number of each label of `y` [n] among the `classes`, int64 [n]; `known` says where those are from."""
    numbers = {label: number for number, label in enumerate(classes)}
    labels = samples.y.tolist()
    unknown = list(dict.fromkeys(label for label in labels if label not in numbers))
    if unknown:
        raise ValueError(
            f"{samples.names[1]} must only have labels that {known} has ({_listed(classes)}), got also "
            f"{_listed(unknown)}; leave out such samples"
        )
    return np.array([numbers[label] for label in labels], dtype=np.int64)


def _of_dataset(name: str, dataset: Any) -> tuple[Any, Any]:
    """Read a map-style data set, each sample once."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"{name} must be a map-style Dataset, with __len__ and __getitem__, got {_kind(dataset)}; collect its "
            "samples in a list, and pass arrays"
        )
    samples = [dataset[number] for number in range(len(dataset))]
    for number, sample in enumerate(samples):
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            size = f" of {len(sample)}" if isinstance(sample, tuple | list) else ""
            raise TypeError(
                f"{name} must be a Dataset of pairs (x, y), got {_kind(sample)}{size} as sample {number}; pass arrays "
                "or a Dataset of pairs"
            )
    if not samples:
        raise ValueError(f"{name} must have at least one sample, got a Dataset without any")
    x, y = ([sample[part] for sample in samples] for part in (0, 1))
    return _stacked(f"the x of samples of {name}", x), _stacked(f"the y of samples of {name}", y)


def _stacked(name: str, values: list[Any]) -> Any:
    shapes = {tuple(np.shape(value)) for value in values}
    if len(shapes) > 1:
        raise ValueError(
            f"{name} must all have one shape, got {' and '.join(map(str, sorted(shapes)[:2]))}; crop, resize or pad"
        )
    if all(isinstance(value, torch.Tensor) for value in values):
        return torch.stack(values)
    return values if shapes == {()} else np.stack([np.asarray(value) for value in values])


def _features(name: str, x: Any) -> NDArray[Any]:
    if isinstance(x, pd.DataFrame):
        numbers = [_column(f"column {x.columns[i]!r} of {name}", x.iloc[:, i]) for i in range(x.shape[1])]
        array = np.stack(numbers, axis=1) if numbers else np.empty(x.shape)
        whole = all(dtype.kind in "iu" for dtype in x.dtypes)
    else:
        array = real_numbers(name, _as_array(name, x, "DataFrame"))
        whole = array.dtype.kind in "iu"
        _check_finite(name, array)
    if array.ndim < 2 or array.size == 0:
        advice = f"; {name}[:, None] makes one feature of it" if array.ndim == 1 and array.size else ""
        raise ValueError(
            f"{name} must have shape [samples, ...], at least one sample and one feature, got {list(array.shape)}"
            f"{advice}"
        )
    if whole and int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"{name} must be integers that int64 holds, got {array.max()}; scale them, as floats")
    return array.astype(np.int64 if whole else np.float64)


def _column(name: str, column: pd.Series) -> NDArray[Any]:
    if isinstance(column.dtype, pd.CategoricalDtype):
        raise TypeError(f"{name} must be numbers, got categories; {_ENCODE}")
    try:
        numbers = real_numbers(name, column)
    except TypeError as error:
        raise TypeError(f"{error}; {_ENCODE}") from error
    _check_finite(name, numbers)
    return numbers


def _targets(name: str, y: Any, of: str, n: int) -> tuple[NDArray[Any], tuple[Hashable, ...] | None]:
    if isinstance(y, pd.DataFrame) and y.shape[1] == 1:
        y = y.iloc[:, 0]
    categories = None
    if isinstance(getattr(y, "dtype", None), pd.CategoricalDtype):
        present = set(pd.Series(y).cat.codes) - {-1}
        categories = tuple(y.dtype.categories[sorted(present)].tolist())
    array = np.asarray(_as_array(name, y, "Series"), dtype=object if isinstance(y, list | tuple) else None)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim not in (1, 2) or len(array) != n:
        raise ValueError(
            f"{name} must have a target for each of the {n} samples of {of}, shape [{n}] or [{n}, 1] (of sequences, "
            f"[{n}, positions]), got {list(array.shape)}"
        )
    missing = pd.isna(array).reshape(n, -1).any(axis=1)
    if missing.any():
        raise ValueError(
            f"{name} must have no gaps (None, NaN or NA), got them in {np.count_nonzero(missing)} of {n} samples, "
            f"first in sample {np.argmax(missing)}; leave such samples out"
        )
    array = _of_one_kind(name, array)
    if array.dtype.kind == "f":
        real_numbers(name, array)
        _check_finite(name, array)
        array = array.astype(np.float64)
    return array, categories


def _of_one_kind(name: str, y: NDArray[Any]) -> NDArray[Any]:
    """Return targets as booleans, integers, floats or strings, having checked that they are one of these."""
    if y.dtype.kind == "O":
        kind = pd.api.types.infer_dtype(y.ravel(), skipna=False)
        if kind not in _KINDS:
            types = sorted({type(value).__name__ for value in y.ravel()})
            raise TypeError(f"{name} must be labels or numbers of one kind, got {' and '.join(types[:_SHOWN])}")
        try:
            return y.astype(_KINDS[kind])
        except OverflowError as error:
            raise ValueError(f"{name} must be integers that int64 holds, or strings: {error}") from error
    if y.dtype.kind not in "biufUS":
        raise TypeError(f"{name} must be labels (booleans, integers, strings) or numbers, got {y.dtype}")
    return y


def _as_array(name: str, x: Any, frame: str) -> Any:
    """Return what NumPy makes an array of, of a tensor an array; check that it is one of the types that are taken."""
    check_unmasked(name, x)
    if isinstance(x, torch.Tensor):
        if x.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got {x.layout}; {name}.to_dense() is one")
        x = x.detach().cpu()
        return (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    if hasattr(x, "toarray"):
        raise TypeError(f"{name} must be dense, got {_kind(x)}; {name}.toarray() is")
    if not (isinstance(x, list | tuple) or hasattr(x, "__array__")):
        raise TypeError(
            f"{name} must be a NumPy array, pandas {frame}, torch tensor or, for x and y together, a map-style torch "
            f"Dataset, got {_kind(x)}"
        )
    try:
        return np.asarray(x) if not isinstance(x, list | tuple) or frame == "DataFrame" else x
    except ValueError as error:  # rows of several lengths
        raise ValueError(f"{name} must be rows of one length: {error}") from error


def _check_finite(name: str, array: NDArray[Any]) -> None:
    """Refuse gaps, infinities, and numbers that float32 does not hold."""
    if array.dtype.kind != "f" or not array.size:
        return
    size = np.abs(array.astype(np.float64, copy=False))
    for wrong, what, advice in (
        (np.isnan(array), "gaps (NaN)", "fill them in, or leave them out"),
        (np.isinf(array), "infinite numbers", "leave them out"),
        (size > _LARGEST, f"numbers beyond {_LARGEST:.2g}, which float32 does not hold", "scale them"),
    ):
        if wrong.any():
            rows = np.flatnonzero(wrong.reshape(len(wrong), -1).any(axis=1))
            first = np.unravel_index(np.argmax(wrong), wrong.shape)
            place = f"row {first[0]}" if wrong.ndim == 1 else f"[{', '.join(map(str, first))}]"
            raise ValueError(f"{name} must have no {what}, got {len(rows)} such rows, first at {place}; {advice}")


def _listed(labels: Sequence[Hashable]) -> str:
    return ", ".join(map(repr, labels[:_SHOWN])) + (", ..." if len(labels) > _SHOWN else "")


def _kind(thing: Any) -> str:
    return type(thing).__name__
