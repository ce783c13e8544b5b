"""Checks of the parameters of a learner's game; each error names the parameter, what was got and what is allowed."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import TypeVar

__all__ = ["one_of", "positive"]

T = TypeVar("T")


def one_of(name: str, value: T, allowed: Sequence[object]) -> T:
    """Return `value`, having checked that it is one of those `allowed`; a ValueError otherwise."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def positive(name: str, value: object) -> float:
    """Return `value` as a float, having checked that it is positive and finite; a TypeError or ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a positive number, got {value!r} ({type(value).__name__})")
    number = float(value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be a positive finite number, got {value}")
    return number
