"""Random values: what an experiment shows for a method that knows nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from baselines import Valuation
from inrun_bench.methods.method import Method
from tasks import Task


def chance(task: Task, seed: np.random.SeedSequence, *, groups: NDArray[np.int64] | None = None) -> Valuation:
    """Return standard normal values."""
    players = task.n_train if groups is None else int(groups.max()) + 1
    values = np.random.default_rng(seed).standard_normal(players)
    return Valuation(values=values, stderr=None, evaluations=0, seconds=0.0, method="random", parameters={})


METHODS = {"random": Method(chance, "random", "chance")}
