"""What a method is: a function that values samples, and what tables and figures call it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from baselines import Valuation
from tasks import Task

__all__ = ["Method"]


@dataclass(frozen=True)
class Method:
    """A method of data valuation.

    Parameters
    ----------
    run : callable
        ``run(task, seed) -> Valuation``: a value for each training sample of the task; `seed` is a
        ``numpy.random.SeedSequence``, the only source of random numbers.
    label : str
        What tables and figures call it.
    family : str
        The idea that it shares with others, a name of :data:`inrun_bench.report.looks.FAMILIES`: how it looks follows
        from it.
    """

    run: Callable[..., Valuation]
    label: str
    family: str = "other"

    def __call__(self, task: Task, seed: np.random.SeedSequence, **more: Any) -> Valuation:
        """Value the samples of a task."""
        return self.run(task, seed, **more)
