"""Checks of arguments that several estimators take; each error names the argument, what was got and what is allowed."""

from numbers import Integral

__all__ = ["whole_number"]


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
