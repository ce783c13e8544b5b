"""Checks of arguments that several estimators take; each error names the argument, what was got and what is allowed."""

from numbers import Integral, Real

import numpy as np

__all__ = ["flag", "real_number", "whole_number"]


def whole_number(name: str, value: object, *, minimum: int = 1) -> int:
    """Return `value` as an int, having checked that it is a whole number of at least `minimum`.

    Parameters
    ----------
    name : str
        How the error is to call the value.
    value : object
        An int or a NumPy integer. Booleans and floats are refused, 3.0 too.
    minimum : int
        The smallest value allowed.

    Returns
    -------
    int

    Raises
    ------
    TypeError
        If `value` is no integer.
    ValueError
        If `value` is smaller than `minimum`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer of at least {minimum}, got {value!r} ({type(value).__name__})")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return int(value)


def real_number(name: str, value: object) -> float:
    """Return `value` as a float, having checked that it is a real number.

    Parameters
    ----------
    name : str
        How the error is to call the value.
    value : object
        An int, a float or a NumPy number. Booleans, strings and arrays are refused.

    Returns
    -------
    float

    Raises
    ------
    TypeError
        If `value` is something else.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a real number, got {value!r} ({type(value).__name__})")
    return float(value)


def flag(name: str, value: object) -> bool:
    """Return `value` as a bool, having checked that it is one: strings such as "no" are true for Python."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r} ({type(value).__name__})")
    return bool(value)
