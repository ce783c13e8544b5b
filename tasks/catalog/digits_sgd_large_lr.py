"""The task ``digits-mlp`` at learning rates where a Taylor expansion of the loss breaks, though training converges.

SGD's rate is five times that of ``digits-mlp``, the largest of a grid of tenths at which the training loss falls from
epoch to epoch in every seed (of ten). Scores of single steps are then off by 12 to 170 % at first order and by up to
26 % at second.
"""

import dataclasses

from tasks.catalog import digits_mlp
from tasks.recipe import Recipe

TASK = dataclasses.replace(
    digits_mlp.TASK,
    recipes={
        "sgd": Recipe("sgd", learning_rate=0.5, batch_size=20, epochs=5),
        "momentum": Recipe("sgd", learning_rate=0.05, batch_size=20, epochs=5, momentum=0.9),
        "adamw": Recipe("adamw", learning_rate=0.05, batch_size=20, epochs=5, weight_decay=0.01),
    },
    summary="digits-mlp at a learning rate where Taylor expansions break",
)
