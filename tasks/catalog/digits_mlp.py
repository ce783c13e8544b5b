"""Handwritten digits (scikit-learn, 1797 images of 8 x 8), a 64-32-10 perceptron: the house's standard small task."""

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn

from tasks.recipe import Recipe
from tasks.task import TaskSpec


def dataset() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the 1797 images that come with scikit-learn."""
    x, y = load_digits(return_X_y=True)
    return x, y.astype(np.int64)


TASK = TaskSpec(
    dataset=dataset,
    architecture=lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
    recipes={
        "sgd": Recipe("sgd", learning_rate=0.1, batch_size=20, epochs=5),
        "momentum": Recipe("sgd", learning_rate=0.01, batch_size=20, epochs=5, momentum=0.9),
        "adamw": Recipe("adamw", learning_rate=0.005, batch_size=20, epochs=5, weight_decay=0.01),
    },
    n_classes=10,
    n_train=200,
    n_validation=300,
    n_test=1000,
    scaling="global",
    summary="8 x 8 digits, 64-32-10 perceptron",
)
