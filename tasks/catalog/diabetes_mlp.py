"""Diabetes (442 patients, 10 measurements, disease progression after a year), a perceptron: regression, not convex."""

import dataclasses

from torch import nn

from tasks.catalog import diabetes_ridge
from tasks.recipe import Recipe

TASK = dataclasses.replace(
    diabetes_ridge.TASK,
    architecture=lambda: nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 1)),
    recipes={
        "sgd": Recipe("sgd", learning_rate=0.02, batch_size=10, epochs=5),
        "momentum": Recipe("sgd", learning_rate=0.002, batch_size=10, epochs=5, momentum=0.9),
        "adamw": Recipe("adamw", learning_rate=0.005, batch_size=10, epochs=5, weight_decay=0.01),
    },
    summary="diabetes, 10-16-1 perceptron",
    learner=None,
)
