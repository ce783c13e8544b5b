"""Real numbers as they are given: what float64 cannot hold, and what is masked, is refused and never rounded away.

NumPy's own conversions are silent: `numpy.asarray` forgets a mask, a float64 is the nearest one of a larger integer
(beyond 2^53: times in nanoseconds, hashes), and frames are matrices whatever the names of their columns.
"""

from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["check_exact", "check_same_columns", "check_unmasked", "float64_utilities", "real_numbers"]

_EXACT = 2.0**53  # up to here float64 holds all whole numbers


def real_numbers(name: str, x: Any) -> NDArray[Any]:
    """Return an array of real numbers (bools, integers, floats), each of which float64 holds.

    Parameters
    ----------
    name : str
        How errors are to call it.
    x : array_like
        An array, tensor, list, or a data frame, with nullable columns too, of which missing entries become NaN.

    Raises
    ------
    TypeError
        If something is no real number, or NumPy cannot read `x`.
    ValueError
        If entries are masked, or float64 cannot hold a number exactly.
    """
    check_unmasked(name, x)
    if hasattr(x, "iloc") and hasattr(x, "columns") and len(set(x.dtypes)) > 1:
        columns = [real_numbers(name, x.iloc[:, column]) for column in range(x.shape[1])]
        return np.stack(columns, axis=1)  # of integers and floats a float64, which holds them
    try:
        array: NDArray[Any] = np.asarray(x)
    except (RuntimeError, TypeError) as error:  # tensors that want gradients, bfloat16
        raise TypeError(f"{name} must be numbers that NumPy can read, got {type(x).__name__}: {error}") from error
    if isinstance(x, list | tuple) and array.dtype.kind == "f" and np.any(np.abs(array) >= _EXACT):
        array = np.asarray(x, dtype=object)  # integers among floats have been rounded
    if array.dtype.kind == "O":
        return _of_objects(name, array)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be real numbers, got an array of {array.dtype}")
    check_exact(name, array)
    return array


def check_unmasked(name: str, x: Any) -> None:
    """Raise ValueError if entries of `x` are masked."""
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise ValueError(
            f"{name} must have no masked entries, got {np.count_nonzero(np.ma.getmaskarray(x))}; fill them in, or "
            "leave them out"
        )


def check_exact(name: str, array: NDArray[Any]) -> None:
    """Raise ValueError if a finite number of `array` is not one that float64 holds, such as 2^53 + 1."""
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        rounded = array.astype(np.float64)
        beyond = np.abs(rounded) >= _EXACT
        if not beyond.any():
            return
        # the largest of all becomes one more, which its type does not have
        there = beyond & (rounded < float(np.iinfo(array.dtype).max))
        inexact = beyond & ~there
        inexact[there] = rounded[there].astype(array.dtype) != array[there]
    elif array.dtype.kind == "f" and array.dtype.itemsize > 8:
        with np.errstate(over="ignore"):
            inexact = np.isfinite(array) & (array.astype(np.float64) != array)
    else:
        return
    if inexact.any():
        raise ValueError(
            f"{name} must be numbers that float64 holds exactly (whole ones up to 2**53), got {array[inexact][0]!s} "
            f"among {np.count_nonzero(inexact)} such; subtract an offset from all of them, or scale them"
        )


def check_same_columns(name: str, x: Any, other_name: str, other: Any) -> None:
    """Raise ValueError if both are data frames, and their columns have other names or another order."""
    columns, others = (getattr(each, "columns", None) for each in (x, other))
    if columns is None or others is None or list(columns) == list(others):
        return
    differing = [pair for pair in zip(columns, others, strict=False) if pair[0] != pair[1]]
    first = f"{differing[0][0]!r} and {differing[0][1]!r} first" if differing else "one has more of them"
    raise ValueError(
        f"{name} and {other_name} must have the same columns in the same order, got {first}; take "
        f"{other_name}[{name}.columns], or pass arrays"
    )


def float64_utilities(answer: Any, of: str) -> NDArray[np.float64]:
    """Return utilities as float64; ValueError if they are masked, no real numbers, or rounded away by the cast."""
    check_unmasked(f"what {of} returns", answer)
    utilities = np.asarray(answer)
    if utilities.dtype.kind not in "biuf":
        raise ValueError(f"{of} must return real numbers, got an array of {utilities.dtype}")
    if utilities.dtype.kind in "iu":
        check_exact(f"what {of} returns", utilities)
    with np.errstate(over="ignore"):  # what becomes infinite is not finite, and refused as that
        return utilities.astype(np.float64, copy=False)


def _of_objects(name: str, array: NDArray[Any]) -> NDArray[np.float64]:
    """Return objects as float64, having checked that they are real numbers that it holds, or missing: NaN."""
    numbers = np.empty(array.shape)
    for place, value in np.ndenumerate(array):
        if value is None or type(value).__name__ in ("NAType", "NaTType"):
            numbers[place] = np.nan
        elif isinstance(value, Real | np.bool_):
            value = value.item() if isinstance(value, np.generic) else value  # Python compares numbers exactly
            try:
                number = float(value)
            except OverflowError:
                number = np.inf
            numbers[place] = number
            if number != value and value == value:
                raise ValueError(
                    f"{name} must be numbers that float64 holds exactly (whole ones up to 2**53), got {value}; "
                    "subtract an offset from all of them, or scale them"
                )
        else:
            raise TypeError(f"{name} must be real numbers, got {value!r} ({type(value).__name__})")
    return numbers
