"""What a game of retraining is told of a task: data, model, recipe and objective, and no more.

A :class:`tasks.Task` is one. Games know this protocol and not the task, which makes games: arrows run one way.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from tasks.data import Split
from tasks.objective import Objective
from tasks.recipe import Recipe

__all__ = ["Rerunnable", "Trainable"]


class Trainable(Protocol):
    """Data, model, recipe and objective of a training run."""

    @property
    def train(self) -> Split:
        """Training samples, the players."""

    @property
    def validation(self) -> Split:
        """Samples that judge."""

    @property
    def test(self) -> Split:
        """Samples that judge where they are named."""

    @property
    def n_train(self) -> int:
        """Number of training samples."""

    @property
    def recipe(self) -> Recipe:
        """Optimiser, batch size, epochs."""

    @property
    def objective(self) -> Objective:
        """What training minimises, and what a trained model is worth."""

    def model(self) -> nn.Module:
        """Return a fresh model with the initial weights."""

    def batches(self) -> list[torch.Tensor]:
        """Return the training indices of every step, int64 [batch] each."""


class Rerunnable(Trainable, Protocol):
    """A training run that can be had again with other chance."""

    def rerun(self, seed: int) -> Trainable:
        """Return the same with initial weights and batch order of another seed."""
