"""Names of a package that are imported when they are first used, so that who needs one need not wait for the others.

Workers of `tasks.learners.EstimatorGame` import this package to fit scikit-learn estimators, and would otherwise spend
seconds on importing torch before their first fit.
"""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module

__all__ = ["lazy_names"]


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], object]:
    """Return the ``__getattr__`` of a package (PEP 562).

    Parameters
    ----------
    package : str
        Its name.
    modules : mapping of str to str
        From each name to the module of the package that defines it.

    Returns
    -------
    callable
        From a name to its value; raises an AttributeError for a name that is not in `modules`.
    """

    def value_of(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{modules[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return value_of
