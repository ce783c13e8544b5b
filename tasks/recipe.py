"""A recipe: everything besides data and model that makes a training run repeatable."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """Optimiser, learning rate, batch size and number of epochs of a training run.

    Every optimiser named here is element-wise: it treats each number of a tensor alone. That is what lets one optimiser
    train a stack of models at once (:mod:`tasks.trajectory`), without a second implementation of its formula.

    Parameters
    ----------
    optimizer : {"sgd", "adamw"}
        ``torch.optim.SGD`` or ``torch.optim.AdamW``.
    learning_rate : float
        Constant over the run.
    batch_size : int
        Samples a step; the last batch of an epoch may be smaller.
    epochs : int
        Passes over the training set, each in an order of its own.
    weight_decay : float
        Coupled (L2) for SGD, decoupled for AdamW, as in ``torch.optim``.
    momentum : float
        Of SGD, in [0, 1): share of the last step's velocity that is carried over. AdamW has its own averages, and takes
        none.
    """

    optimizer: Literal["sgd", "adamw"]
    learning_rate: float
    batch_size: int
    epochs: int
    weight_decay: float = 0.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if self.optimizer not in ("sgd", "adamw"):
            raise ValueError(f"optimizer must be 'sgd' or 'adamw', got {self.optimizer!r}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be a positive number, got {self.learning_rate!r}")
        for name in ("batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)!r}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay!r}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum!r}")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum is for optimizer 'sgd' alone, got {self.momentum!r} with {self.optimizer!r}")

    def build_optimizer(self, parameters: Iterable[torch.Tensor]) -> torch.optim.Optimizer:
        """Return a fresh ``torch.optim`` optimiser over `parameters`, be they of one model or stacks of many."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                list(parameters), lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
            )
        return torch.optim.AdamW(list(parameters), lr=self.learning_rate, weight_decay=self.weight_decay)

    def batches(self, n_samples: int, seed: np.random.SeedSequence) -> list[torch.Tensor]:
        """Return the sample indices of every step, int64 [batch_size] each, in the order of the run."""
        rng = np.random.default_rng(seed)
        epochs = (torch.from_numpy(rng.permutation(n_samples)) for _ in range(self.epochs))
        return [batch for order in epochs for batch in torch.split(order, self.batch_size)]
