"""Checks of arguments that several estimators take; each error names the argument, what was got and what is allowed."""

from numbers import Integral

__all__ = ["either_permutations_or_budget", "whole_number"]


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


def either_permutations_or_budget(n_permutations: object, budget: object, *, minimum_budget: int) -> None:
    """Check that exactly one of `n_permutations` and `budget` is given, and that it is a sensible number.

    Parameters
    ----------
    n_permutations, budget : int or None
        A number of permutations, or a number of coalitions to evaluate.
    minimum_budget : int
        What the smallest estimate costs, in evaluated coalitions.

    Raises
    ------
    TypeError
        If the one that is given is no integer.
    ValueError
        If both or neither are given, or the one that is given is too small.
    """
    if (n_permutations is None) == (budget is None):
        got = "neither" if budget is None else f"n_permutations={n_permutations!r} and budget={budget!r}"
        raise ValueError(f"give exactly one of n_permutations and budget (in evaluated coalitions), got {got}")
    if n_permutations is not None:
        whole_number("n_permutations", n_permutations)
    elif whole_number("budget", budget) < minimum_budget:
        raise ValueError(
            f"budget must be at least {minimum_budget} evaluated coalitions for this game (the empty and the grand "
            f"coalition, and one draw), got {budget}"
        )
