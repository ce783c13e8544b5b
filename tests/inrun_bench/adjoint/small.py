"""Tasks small enough for every law."""

import dataclasses

import numpy as np
import torch

import tasks


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
