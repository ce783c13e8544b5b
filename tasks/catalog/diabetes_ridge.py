"""Diabetes (442 patients, 10 measurements, disease progression after a year), ridge regression: convex, no classes.

Weight decay `d` of coupled SGD is the ridge penalty ``d / 2 ||w||^2`` beside the mean squared error.
"""

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes
from torch import nn

from tasks.recipe import Recipe
from tasks.task import TaskSpec


def dataset() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the 442 samples that come with scikit-learn."""
    x, y = load_diabetes(return_X_y=True)
    return x, y


TASK = TaskSpec(
    dataset=dataset,
    architecture=lambda: nn.Linear(10, 1),
    recipes={
        "sgd": Recipe("sgd", learning_rate=0.01, batch_size=10, epochs=5, weight_decay=0.1),
        "momentum": Recipe("sgd", learning_rate=0.001, batch_size=10, epochs=5, weight_decay=0.1, momentum=0.9),
        "adamw": Recipe("adamw", learning_rate=0.01, batch_size=10, epochs=5, weight_decay=0.1),
    },
    n_classes=None,
    n_train=150,
    n_validation=150,
    n_test=142,
    scaling="feature",
    summary="diabetes, ridge regression",
    learner="ridge",
)
