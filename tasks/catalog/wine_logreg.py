"""Wine (178 wines of three growers, 13 measurements), logistic regression: convex, more than two classes."""

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_wine
from torch import nn

from tasks.recipe import Recipe
from tasks.task import TaskSpec


def dataset() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the 178 samples that come with scikit-learn."""
    x, y = load_wine(return_X_y=True)
    return x, y.astype(np.int64)


TASK = TaskSpec(
    dataset=dataset,
    architecture=lambda: nn.Linear(13, 3),
    recipes={
        "sgd": Recipe("sgd", learning_rate=0.05, batch_size=10, epochs=5),
        "momentum": Recipe("sgd", learning_rate=0.005, batch_size=10, epochs=5, momentum=0.9),
        "adamw": Recipe("adamw", learning_rate=0.02, batch_size=10, epochs=5, weight_decay=0.01),
    },
    n_classes=3,
    n_train=90,
    n_validation=44,
    n_test=44,
    scaling="feature",
    summary="wine, logistic regression of three classes",
    learner="logistic",
)
