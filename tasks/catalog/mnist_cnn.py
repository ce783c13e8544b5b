"""MNIST digits (the 5000 of ``mnist-mlp``), as images, with two strided convolutions and a linear head."""

import dataclasses

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tasks.catalog import mnist_mlp
from tasks.recipe import Recipe


def dataset() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the images, float64 [5000, 1, 28, 28], and their digits."""
    x, y = mnist_mlp.dataset()
    return x.reshape(-1, 1, 28, 28), y


def architecture() -> nn.Module:
    """Return a network that convolves 28 x 28 to 13 x 13 to 6 x 6."""
    convolutions = (nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 8, 3, stride=2), nn.ReLU())
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(8 * 6 * 6, 10))


TASK = dataclasses.replace(
    mnist_mlp.TASK,
    dataset=dataset,
    architecture=architecture,
    recipes={
        "sgd": Recipe("sgd", learning_rate=0.1, batch_size=20, epochs=5),
        "momentum": Recipe("sgd", learning_rate=0.01, batch_size=20, epochs=5, momentum=0.9),
        "adamw": Recipe("adamw", learning_rate=0.005, batch_size=20, epochs=5, weight_decay=0.01),
    },
    summary="28 x 28 MNIST digits, two convolutions",
)
