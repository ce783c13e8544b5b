"""A model, an optimiser, a batch and a validation set: steps of the engine held against brute force."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from inrun_bench import InRunShapley
from inrun_bench.attribution import Integrated
from tests.attribution.brute_force import BruteForce, relative_error

N, N_VAL = 5, 4


def classes(model, x, y, reduction="mean"):
    return F.cross_entropy(model(x), y, reduction=reduction)


def tokens(model, x, y, reduction="mean"):
    """Next-token prediction; y is not needed."""
    out = model(x)
    logits = getattr(out, "logits", out)
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), x[:, 1:], reduction="none").mean(1)
    return losses.mean() if reduction == "mean" else losses


@dataclass
class Problem:
    """`loss(model, x, y)` is the mean over samples; the batch's is multiplied with `scale`."""

    model: nn.Module
    build_optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    x: torch.Tensor
    y: torch.Tensor
    loss: Callable[..., torch.Tensor] = classes
    between: Callable[[nn.Module], Any] = lambda _model: None  # done to the gradients before the optimiser steps
    received: Callable[[torch.Tensor], torch.Tensor] = lambda g: g  # the same, of one flat vector
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        self.model = copy.deepcopy(self.model)
        self.optimizer = self.build_optimizer(self.model)
        self.run = None  # what is called in place of the model, for instance compiled

    def validation(self, model=None):
        return self.loss(self._callable() if model is None else model, self.x[N:], self.y[N:])

    def batch_loss(self):
        return self.loss(self._callable(), self.x[:N], self.y[:N])

    def _callable(self):
        return self.model if self.run is None else self.run

    def losses(self):
        return self.loss(self._callable(), self.x[:N], self.y[:N], "none") / N

    def engine(self, order, **options):
        order = Integrated(points=12) if order == "integrated" else order  # as exact as the law asks
        return InRunShapley(
            self.model, self.optimizer, N, order, validation=self.validation, **{**self.options, **options}
        )

    def take_step(self):
        self.batch_loss().backward()
        self.between(self.model)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def train(self, engine, steps=2):
        """Take steps under the engine and return its values."""
        for _ in range(steps):
            with engine.step(range(N)):
                self.take_step()
        return engine.values()

    def brute_force(self):
        def sample(model, i):
            return self.loss(model, self.x[i : i + 1], self.y[i : i + 1]) / N

        return BruteForce(self.model, self.optimizer, N, sample, self.validation, self.received)

    def check(self, order, *, steps=2, tolerance=1e-10, engine=None, **step):
        """Take steps, and hold scores and books against brute force."""
        engine = engine or self.engine(order)
        for _ in range(steps):
            brute = self.brute_force()
            expected, drop, account = brute.scores(order), brute.drop(), brute.optimizer_account()
            with engine.step(range(N), **step):
                self.take_step()
            entry = engine.ledger.steps[-1]
            assert relative_error(entry.scores, expected) < tolerance
            assert abs(entry.drop - drop) < 1e-11
            assert abs(entry.optimizer - account) < 1e-11
            assert abs(entry.scores.sum() + entry.optimizer + entry.residual - entry.drop) < 1e-14
        return engine


def perceptron():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))


def problem(
    build=perceptron, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1), shape=(4,), ids=None, **more
):
    """Return a problem on random inputs of the given shape (whole numbers below `ids` where that is given)."""
    torch.manual_seed(0)
    size = (N + N_VAL, *shape)
    x = torch.randn(size, dtype=torch.float64) if ids is None else torch.randint(ids, size)
    y = torch.randint(3, (N + N_VAL,))
    return Problem(build().double(), optimizer, x, y, **more)
