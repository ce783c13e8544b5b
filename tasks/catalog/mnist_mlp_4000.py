"""The task ``mnist-mlp`` with all of the 4000 images that may train: too many players for a retraining reference."""

import dataclasses

from tasks.catalog import mnist_mlp

TASK = dataclasses.replace(
    mnist_mlp.TASK,
    n_train=4000,
    summary="mnist-mlp with 4000 training samples",
    large=True,
)
