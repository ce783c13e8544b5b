"""Tasks small enough for every law."""

import dataclasses

import numpy as np
import torch

import tasks
from inrun_bench.adjoint.sweep import utilities_at


def small_task(name="digits-mlp", recipe="sgd", n=8, **changes):
    task = tasks.load(name, seed=3, n_train=n, recipe=recipe, dtype=torch.float64)
    return dataclasses.replace(
        task, recipe=dataclasses.replace(task.recipe, **{"batch_size": 3, "epochs": 2} | changes)
    )


def quadratic_task(n=8):
    """One step of linear regression on all samples: the utility is a quadratic function of the sample weights."""
    return small_task("diabetes-ridge", n=n, batch_size=n, epochs=1, weight_decay=0.0)


def some_weights(m, n, seed=0):
    return np.random.default_rng(seed).random((m, n))


def central_differences(task, weights, step=1e-5, **options):
    """Return the derivatives [m, n] of the utility at `weights` [m, n]."""
    shifts = step * np.eye(weights.shape[1])
    ahead, behind = ((weights[:, None] + s * shifts).reshape(-1, len(shifts)) for s in (1, -1))
    slopes = utilities_at(task, ahead, **options) - utilities_at(task, behind, **options)
    return slopes.reshape(weights.shape) / (2 * step)
