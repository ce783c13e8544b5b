"""Simple rankings of samples by what one trained model makes of them: what people try before they value data.

``loss``
    Minus the loss of each training sample under the trained model, in nats or squared errors: a sample that the model
    cannot fit is taken for a wrong one (the small-loss criterion; Han et al., *Co-teaching*, NeurIPS 2018, arXiv
    1804.06872).
``gradient-norm``
    The Euclidean norm of the gradient of that loss, over all parameters: a sample that still moves the model is taken
    for an important one (the GraNd score of Paul et al., *Deep Learning on a Data Diet*, NeurIPS 2021, arXiv
    2107.07075, of one model and at the end of its training).

Neither looks at validation samples, and neither is a value: the numbers do not share out any utility.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from baselines import Valuation
from inrun_bench.methods.method import Method
from tasks import Task
from tasks.step_game import per_sample_contributions

AT_A_TIME = 50  # samples that are scored together


def ranking(task: Task, score: Callable[[Task, nn.Module], NDArray[np.float64]], name: str) -> Valuation:
    """Train once by the task's recipe and score the training samples by the trained model."""
    start = time.perf_counter()
    model = task.model()
    optimizer = task.optimizer(model)
    for index in task.batches():
        task.train_on(model, optimizer, index)
    scores = score(task, model.eval())
    return Valuation(scores, stderr=None, evaluations=1, seconds=time.perf_counter() - start, method=name)


@torch.no_grad()
def minus_losses(task: Task, model: nn.Module) -> NDArray[np.float64]:
    """Return minus the loss of each training sample, float64 [n_train]."""
    parts = zip(task.train.x.split(AT_A_TIME), task.train.y.split(AT_A_TIME), strict=True)
    return -torch.cat([task.objective.losses(model(x), y) for x, y in parts]).double().cpu().numpy()


def gradient_norms(task: Task, model: nn.Module) -> NDArray[np.float64]:
    """Return the norm of the gradient of each training sample's loss, float64 [n_train]."""
    norms = []
    for index in torch.arange(task.n_train).split(AT_A_TIME):
        gradients = per_sample_contributions(model, task.objective, task.train.x[index], task.train.y[index])
        squares = sum(gradient.double().square().flatten(1).sum(1) for gradient in gradients.values())
        norms.append(len(index) * torch.as_tensor(squares).sqrt())
    return torch.cat(norms).cpu().numpy()


def by_loss(task: Task, _seed: np.random.SeedSequence) -> Valuation:
    """Rank samples by how small their loss is."""
    return ranking(task, minus_losses, "loss")


def by_gradient_norm(task: Task, _seed: np.random.SeedSequence) -> Valuation:
    """Rank samples by how large their gradient is."""
    return ranking(task, gradient_norms, "gradient-norm")


METHODS = {
    "loss": Method(by_loss, "small loss", "rankings"),
    "gradient-norm": Method(by_gradient_norm, "gradient norm", "rankings"),
}
