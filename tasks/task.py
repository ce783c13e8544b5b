"""A task: a dataset, a model and a recipe, from which runs and games are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tasks.data import Scaling, Split, flip_labels, partition, standardise
from tasks.recipe import Recipe
from tasks.trajectory import TrajectoryGame

__all__ = ["Task", "TaskSpec"]


@dataclass(frozen=True)
class Task:
    """What is trained, on what, how, and how its outcome is judged. Deterministic from its name, options and seed.

    Attributes
    ----------
    name : str
        Name in the catalogue.
    recipe_name : str
        Which of the task's recipes is in use.
    seed : int
        Source of the split, the flipped labels, the initial weights and the batch order.
    train, validation, test : Split
        Players of the games; judges of their utility; samples that no method ever sees.
    n_classes : int
        Labels lie in ``0 .. n_classes - 1``.
    flipped : int64 [k]
        Indices of training samples whose label was flipped.
    recipe : Recipe
        Optimiser, batch size, epochs.
    """

    name: str
    recipe_name: str
    seed: int
    train: Split
    validation: Split
    test: Split
    n_classes: int
    flipped: NDArray[np.int64]
    recipe: Recipe
    architecture: Callable[[], nn.Module]

    def __post_init__(self) -> None:
        for part in ("train", "validation", "test"):
            split: Split = getattr(self, part)
            if len(split) == 0:
                raise ValueError(f"the {part} set of task {self.name!r} is empty; it needs at least one sample")
            low, high = int(split.y.min()), int(split.y.max())
            if low < 0 or high >= self.n_classes:
                raise ValueError(
                    f"labels of the {part} set of task {self.name!r} lie in {low} .. {high}; "
                    f"with n_classes = {self.n_classes} they must lie in 0 .. {self.n_classes - 1}"
                )

    @property
    def n_train(self) -> int:
        """Number of training samples: the players of the task's games."""
        return len(self.train)

    def model(self) -> nn.Module:
        """Return a fresh model with the task's initial weights, in the data's dtype."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.architecture().to(self.train.x.dtype)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the recipe's optimiser over the parameters of `model`."""
        return self.recipe.build_optimizer(model.parameters())

    def batches(self) -> list[torch.Tensor]:
        """Return the training indices of every step, int64 [batch] each, in the order of the run."""
        return self.recipe.batches(self.n_train, np.random.SeedSequence([self.seed, 3]))

    def loss(self, model: nn.Module, split: Split, index: torch.Tensor | None = None) -> torch.Tensor:
        """Return the mean cross-entropy in nats, a scalar, of `model` on (the samples `index` of) `split`."""
        x, y = (split.x, split.y) if index is None else (split.x[index], split.y[index])
        return nn.functional.cross_entropy(model(x), y)

    def train_on(self, model: nn.Module, optimizer: torch.optim.Optimizer, index: torch.Tensor) -> None:
        """Take one training step on the samples `index`."""
        self.loss(model, self.train, index).backward()
        optimizer.step()
        optimizer.zero_grad()

    def trajectory_game(
        self, utility: Literal["loss", "accuracy"] = "loss", split: Literal["validation", "test"] = "validation"
    ) -> TrajectoryGame:
        """Return the game of retraining: players are training samples, worth is the utility of the trained model."""
        return TrajectoryGame(self, utility=utility, split=split)


@dataclass(frozen=True)
class TaskSpec:
    """A task in the catalogue, before a seed is chosen.

    Attributes
    ----------
    dataset : callable
        Returns the whole dataset: features float64 [n, d] and labels int64 [n].
    architecture : callable
        Returns a model with fresh weights from torch's global generator.
    recipes : mapping
        Named recipes; ``"sgd"`` is the default one.
    n_classes, n_train, n_validation, n_test : int
        Classes, and default sizes of the three parts.
    scaling : {"feature", "global"}
        How features are standardised, see :func:`tasks.data.standardise`.
    summary : str
        One line for listings.
    """

    dataset: Callable[[], tuple[NDArray[np.float64], NDArray[np.int64]]]
    architecture: Callable[[], nn.Module]
    recipes: Mapping[str, Recipe]
    n_classes: int
    n_train: int
    n_validation: int
    n_test: int
    scaling: Scaling
    summary: str

    def build(
        self,
        name: str,
        *,
        seed: int,
        recipe: str,
        n_train: int | None,
        flipped: float,
        dtype: torch.dtype,
    ) -> Task:
        """Draw the split, flip labels, and put the task together; see :func:`tasks.load`."""
        size = self.n_train if n_train is None else n_train
        if size < 1:
            raise ValueError(f"n_train must be at least 1, got {size}")
        x, y = self.dataset()
        streams = {key: np.random.SeedSequence([seed, stream]) for stream, key in enumerate(("split", "flip"), 1)}
        parts = partition(y, [size, self.n_validation, self.n_test], streams["split"])
        x = standardise(x, parts[0], self.scaling)
        labels = [y[part] for part in parts]
        labels[0], flips = flip_labels(labels[0], self.n_classes, flipped, streams["flip"])
        train, validation, test = (
            Split(torch.from_numpy(x[part]).to(dtype), torch.from_numpy(label))
            for part, label in zip(parts, labels, strict=True)
        )
        return Task(
            name=name,
            recipe_name=recipe,
            seed=seed,
            train=train,
            validation=validation,
            test=test,
            n_classes=self.n_classes,
            flipped=flips,
            recipe=self.recipes[recipe],
            architecture=self.architecture,
        )
