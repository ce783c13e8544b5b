"""Random values: what an experiment shows for a method that knows nothing."""

from __future__ import annotations

import numpy as np

from baselines import Valuation
from inrun_bench.methods.method import Method
from tasks import Task


def chance(task: Task, seed: np.random.SeedSequence) -> Valuation:
    """Return standard normal values."""
    values = np.random.default_rng(seed).standard_normal(task.n_train)
    return Valuation(values=values, stderr=None, evaluations=0, seconds=0.0, method="random", parameters={})


METHODS = {"random": Method(chance, "random", "chance")}
