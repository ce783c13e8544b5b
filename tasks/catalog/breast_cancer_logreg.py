"""Breast cancer (Wisconsin, 569 samples of 30 measurements), logistic regression: convex, two classes, fast."""

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from torch import nn

from tasks.recipe import Recipe
from tasks.task import TaskSpec


def dataset() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the 569 samples that come with scikit-learn."""
    x, y = load_breast_cancer(return_X_y=True)
    return x, y.astype(np.int64)


TASK = TaskSpec(
    dataset=dataset,
    architecture=lambda: nn.Linear(30, 2),
    recipes={
        "sgd": Recipe("sgd", learning_rate=0.02, batch_size=10, epochs=5),
        "momentum": Recipe("sgd", learning_rate=0.002, batch_size=10, epochs=5, momentum=0.9),
        "adamw": Recipe("adamw", learning_rate=0.01, batch_size=10, epochs=5, weight_decay=0.01),
    },
    n_classes=2,
    n_train=100,
    n_validation=200,
    n_test=269,
    scaling="feature",
    summary="breast cancer, logistic regression",
    learner="logistic",
)
