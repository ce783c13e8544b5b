"""Iris (150 flowers, 4 measurements), logistic regression on 16 of them: every coalition can be trained."""

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_iris
from torch import nn

from tasks.recipe import Recipe
from tasks.task import TaskSpec


def dataset() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the 150 samples that come with scikit-learn."""
    x, y = load_iris(return_X_y=True)
    return x, y.astype(np.int64)


TASK = TaskSpec(
    dataset=dataset,
    architecture=lambda: nn.Linear(4, 3),
    recipes={
        "sgd": Recipe("sgd", learning_rate=0.2, batch_size=4, epochs=5),
        "momentum": Recipe("sgd", learning_rate=0.02, batch_size=4, epochs=5, momentum=0.9),
        "adamw": Recipe("adamw", learning_rate=0.05, batch_size=4, epochs=5, weight_decay=0.01),
    },
    n_classes=3,
    n_train=16,  # 2^16 coalitions: exact values by enumeration
    n_validation=50,
    n_test=60,
    scaling="feature",
    summary="iris, logistic regression; 16 samples, so that values can be exact",
    learner="logistic",
)
