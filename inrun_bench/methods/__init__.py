"""Methods of data valuation, as the experiments run them: ``method(task, seed) -> Valuation``.

A module here names its methods in ``METHODS``; to add a method is to add one file, or to name a callable under the
entry-point group ``inrun_bench.methods`` in a package of your own. Values are higher for better samples; `evaluations`
of the valuation counts trainings, so that costs compare.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from baselines import Valuation
from inrun_bench.unit import REFERENCE
from tasks import Task
from tasks.registry import Registry

__all__ = ["METHODS", "Method", "valued"]

Method: TypeAlias = Callable[[Task, np.random.SeedSequence], Valuation]

METHODS: Registry[Method] = Registry(
    "method",
    sys.modules[__name__],
    lambda _name, module: module.METHODS,
    group="inrun_bench.methods",
    reserved=(REFERENCE,),
    accepts=callable,
)


def valued(name: str, task: Task, seed: np.random.SeedSequence) -> Valuation:
    """Return what the method makes of the task.

    Raises
    ------
    TypeError
        If it returns no :class:`baselines.Valuation`.
    ValueError
        If that does not hold one finite value a training sample.
    """
    found = METHODS[name](task, seed)
    if not isinstance(found, Valuation):
        raise TypeError(
            f"method {name!r} must return a baselines.Valuation, got {type(found).__name__}; wrap values as "
            "Valuation(values, stderr=None, evaluations=..., seconds=..., method=...)"
        )
    if found.values.shape != (task.n_train,) or not np.isfinite(found.values).all():
        raise ValueError(
            f"method {name!r} must return {task.n_train} finite values, "
            f"got shape {found.values.shape} with {np.sum(~np.isfinite(found.values))} not finite"
        )
    return found
