"""KNN-Shapley, judged by the validation samples: on the task's features, and on embeddings of a model trained once.

An embedding is what the trained model's last linear layer sees: the penultimate activations. A linear model has no
other layer, so that its embedding is the features themselves.
"""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from baselines import Valuation
from baselines.knn import knn_regression_shapley, knn_shapley
from inrun_bench.methods.method import Method
from tasks import Task

NEIGHBOURS = 5


def knn(task: Task, _seed: np.random.SeedSequence) -> Valuation:
    """Return exact Shapley values of the nearest-neighbour game on features, flattened; it trains nothing."""
    return _shapley(task, task.train.x.flatten(1).numpy(), task.validation.x.flatten(1).numpy())


def knn_embedding(task: Task, _seed: np.random.SeedSequence) -> Valuation:
    """Train once by the task's recipe; return exact Shapley values of the nearest-neighbour game on embeddings."""
    start = time.perf_counter()
    model = task.model()
    optimizer = task.optimizer(model)
    for index in task.batches():
        task.train_on(model, optimizer, index)
    valuation = _shapley(task, embed(model, task.train.x), embed(model, task.validation.x))
    return dataclasses.replace(valuation, evaluations=1, seconds=time.perf_counter() - start)


@torch.no_grad()
def embed(model: nn.Module, x: torch.Tensor) -> NDArray[np.float64]:
    """Return what the last linear layer of `model` is given for inputs `x` [n, ...], flattened, [n, d].

    Raises
    ------
    ValueError
        If the model has no linear layer.
    """
    heads = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    if not heads:
        raise ValueError(f"{type(model).__name__} has no nn.Linear, so that there are no penultimate activations")
    seen: list[torch.Tensor] = []
    hook = heads[-1].register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0]))
    try:
        model(x)
    finally:
        hook.remove()
    return seen[-1].flatten(1).double().numpy()


def _shapley(task: Task, train: NDArray[np.float64], validation: NDArray[np.float64]) -> Valuation:
    estimate = knn_regression_shapley if task.n_classes is None else knn_shapley
    return estimate(train, task.train.y.numpy(), validation, task.validation.y.numpy(), k=NEIGHBOURS)


METHODS = {
    "knn": Method(knn, "KNN-Shapley", "neighbours"),
    "knn-embedding": Method(knn_embedding, "KNN-Shapley on embeddings", "neighbours"),
}
