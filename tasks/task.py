"""A task: a dataset, a model and a recipe, from which runs and games are made."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from baselines.arguments import whole_number
from tasks.conventional_game import ConventionalGame
from tasks.data import HeldOut, Scaling, Split, exchange_targets, flip_labels, partition, standardise
from tasks.learners import LogisticGame, RidgeGame
from tasks.learners.parameters import one_of
from tasks.objective import CLASSIFICATION, REGRESSION, Objective
from tasks.recipe import Recipe
from tasks.registry import unknown_name
from tasks.trajectory_game import TrajectoryGame

__all__ = ["Task", "TaskSpec"]

Learner = Literal["logistic", "ridge"]

DEFAULTS: dict[str, Any] = {"recipe": "sgd", "flipped": 0.1, "dtype": torch.float32}  # of tasks that have no own ones
SEEDS_OF_DATA = 1000  # that can be used side by side before two of them share the seed of a run


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
        Source of the split and the wrong targets, and of the run where it has no seed of its own.
    train, validation, test : Split
        Players of the games; judges of their utility; samples that no method ever sees.
    n_classes : int or None
        Labels lie in ``0 .. n_classes - 1``; None where the targets are numbers (regression).
    flipped : int64 [k]
        Indices of training samples whose target was made wrong.
    recipe : Recipe
        Optimiser, batch size, epochs.
    architecture : callable
        Returns a model with fresh weights from torch's global generator.
    learner : {"logistic", "ridge"} or None
        How the model is fitted to its optimum, where it has a single one; see :meth:`optimum_game`.
    dtype : torch.dtype or None
        Of the weights; that of the features where None.
    domains : int64 [n_train] or None
        Where each training sample comes from, where the dataset says so: numbers from 0 on.
    rows : int64 [n_train] or None
        Which sample of the dataset each training sample is: value i of a valuation is that of the dataset's sample
        ``rows[i]``. None where the parts were not drawn from a dataset.
    spec : TaskSpec or None
        What the task was built from; see :meth:`rebuilt`.
    run_seed : int or None
        Source of the initial weights and the batch order; `seed` where None. See :meth:`rerun`.
    """

    name: str
    recipe_name: str
    seed: int
    train: Split
    validation: Split
    test: Split
    n_classes: int | None
    flipped: NDArray[np.int64]
    recipe: Recipe
    architecture: Callable[[], nn.Module]
    learner: Learner | None = None
    dtype: torch.dtype | None = None
    domains: NDArray[np.int64] | None = None
    rows: NDArray[np.int64] | None = None
    spec: TaskSpec | None = field(default=None, repr=False)
    run_seed: int | None = None

    def __post_init__(self) -> None:
        for part in ("train", "validation", "test"):
            split: Split = getattr(self, part)
            if len(split) == 0:
                raise ValueError(f"the {part} set of task {self.name!r} is empty; it needs at least one sample")
            widths = [(of.x.shape[1:].numel(), of.y.shape[1:].numel(), of.y.dtype) for of in (split, self.train)]
            if widths[0] != widths[1]:
                raise ValueError(
                    f"a sample of the {part} set of task {self.name!r} must have as many features and targets as "
                    f"one of the training set, of the same type, got {', '.join(map(str, widths[0]))}; "
                    f"there, {', '.join(map(str, widths[1]))}"
                )
            if self.n_classes is None:
                if split.y.ndim != 1 or split.y.is_complex():
                    raise ValueError(
                        f"targets of the {part} set of task {self.name!r} must be one number a sample, [n], "
                        f"got {split.y.dtype} of shape {list(split.y.shape)}"
                    )
                continue
            if split.y.dtype != torch.int64:
                raise TypeError(
                    f"labels of the {part} set of task {self.name!r} must be int64, got {split.y.dtype}; .long() makes "
                    "them of whole numbers"
                )
            low, high = int(split.y.min()), int(split.y.max())
            if low < 0 or high >= self.n_classes:
                raise ValueError(
                    f"labels of the {part} set of task {self.name!r} lie in {low} .. {high}; "
                    f"with n_classes = {self.n_classes} they must lie in 0 .. {self.n_classes - 1}"
                )

    @property
    def objective(self) -> Objective:
        """What training minimises, and the utilities by which a model can be judged."""
        return REGRESSION if self.n_classes is None else CLASSIFICATION

    @property
    def classes(self) -> tuple[Hashable, ...] | None:
        """What the labels stand for: label k is ``classes[k]``. None where the dataset itself numbers them."""
        return None if self.spec is None else self.spec.classes

    @property
    def n_train(self) -> int:
        """Number of training samples: the players of the task's games."""
        return len(self.train)

    def rebuilt(self, *, seed: int | None = None, recipe: str | None = None) -> Task:
        """Return the task from another seed, or trained by another of its recipes; the same where both are None.

        It is built anew from its `spec`: what was replaced in this task is not kept.

        Raises
        ------
        ValueError
            If the seed is negative, no recipe is called so, or the task was put together by hand, from its parts.
        """
        if self.spec is None:
            raise ValueError(
                f"task {self.name!r} was put together from its parts, and cannot be built from another seed or recipe; "
                "tasks.from_arrays and tasks.load make tasks that can"
            )
        return self.spec.build(
            self.name,
            seed=self.seed if seed is None else seed,
            recipe=self.recipe_name if recipe is None else recipe,
            n_train=self.n_train,
            flipped=len(self.flipped) / self.n_train,
            dtype=self.dtype or self.train.x.dtype,
        )

    def rerun(self, seed: int) -> Task:
        """Return the same task, trained from the initial weights and in the batch order of another seed.

        Its data and how they were drawn stay as they are, so that its games differ by the chance of a run alone:
        ``task.rerun(1000).trajectory_game()``.

        Parameters
        ----------
        seed : int
            Of the run, at least 0. That of the task itself gives the run of the task.
        """
        return replace(self, run_seed=whole_number("seed", seed, minimum=0))

    def run_seeds(self, seeds: int | Sequence[int]) -> tuple[int, ...]:
        """Return seeds of runs, for :meth:`rerun`.

        Parameters
        ----------
        seeds : int or sequence of int
            Which ones, each at least 0, or how many: ``seed + 1000``, ``seed + 2000`` and so on, none of which is that
            of this task's own run, nor one of those of the same task from another of the first thousand seeds.

        Raises
        ------
        TypeError, ValueError
            If a number is not whole or too small, there is none, or one occurs twice.
        """
        if not isinstance(seeds, Iterable):
            others = (seed for seed in count(self.seed + SEEDS_OF_DATA, SEEDS_OF_DATA) if seed != self._seed_of_run)
            return tuple(islice(others, whole_number("seeds", seeds)))
        given = tuple(whole_number("each of seeds", seed, minimum=0) for seed in seeds)
        if not given or len(set(given)) < len(given):
            raise ValueError(f"seeds must be at least one, and different from each other, got {given}")
        return given

    @property
    def _seed_of_run(self) -> int:
        return self.seed if self.run_seed is None else self.run_seed

    def model(self) -> nn.Module:
        """Return a fresh model with the task's initial weights, in the task's dtype."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed_of_run)
            return self.architecture().to(self.dtype or self.train.x.dtype)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the recipe's optimiser over the parameters of `model`, for one run.

        Its ``step`` is the whole step of the recipe: the gradient is clipped before it, and after it the learning rate
        is that of the next step. The steps taken are counted in its ``param_groups``, so that one that goes on from
        another's ``state_dict`` goes on with the schedule, too.
        """
        recipe, n_steps = self.recipe, self.recipe.n_steps(self.n_train)
        optimizer = recipe.build_optimizer(model.parameters())

        def clip(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], cast(float, recipe.clip_norm))

        def set_rate(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            group = optimizer.param_groups[0]
            group["steps"] = group.get("steps", -1) + 1
            group["lr"] = recipe.rate(group["steps"], n_steps)

        if recipe.clip_norm is not None:
            optimizer.register_step_pre_hook(clip)
        if recipe.schedule != "constant" or recipe.warmup:
            set_rate(optimizer)
            optimizer.register_step_post_hook(set_rate)
        return optimizer

    def batches(self) -> list[torch.Tensor]:
        """Return the training indices of every step, int64 [batch] each, in the order of the run."""
        return self.recipe.batches(self.n_train, np.random.SeedSequence([self._seed_of_run, 3]))

    def loss(self, model: nn.Module, split: Split, index: torch.Tensor | None = None) -> torch.Tensor:
        """Return the objective's mean loss, a scalar, of `model` on (the samples `index` of) `split`."""
        x, y = (split.x, split.y) if index is None else (split.x[index], split.y[index])
        return self.objective.losses(model(x), y).mean()

    def train_on(self, model: nn.Module, optimizer: torch.optim.Optimizer, index: torch.Tensor) -> None:
        """Take one training step on the samples `index`."""
        self.loss(model, self.train, index).backward()
        optimizer.step()
        optimizer.zero_grad()

    def trajectory_game(
        self, utility: str = "loss", split: HeldOut = "validation", *, renormalised: bool = False
    ) -> TrajectoryGame:
        """Return the game of retraining: players are training samples, worth is the utility of the trained model.

        `utility` is one of those of the objective; see :class:`tasks.trajectory_game.TrajectoryGame`.
        """
        return TrajectoryGame(self, utility, split, renormalised=renormalised)

    def conventional_game(
        self, utility: str = "loss", split: HeldOut = "validation", *, seeds: int | Sequence[int] = 1
    ) -> ConventionalGame:
        """Return the game of training on a coalition alone, in batches of its own, averaged over runs.

        `seeds` are those of the runs, or how many of them, as in :meth:`run_seeds`: other ones than the task's own. See
        :class:`tasks.conventional_game.ConventionalGame`.
        """
        return ConventionalGame(self, utility, split, seeds=self.run_seeds(seeds))

    def optimum_game(
        self, utility: str = "loss", split: HeldOut = "validation", *, l2: float = 1.0
    ) -> LogisticGame | RidgeGame:
        """Return the convex twin of the trajectory game: the task's model, fitted to its optimum on each coalition.

        It knows no recipe: what a sample is worth here does not depend on learning rate, batch order or epochs.

        Parameters
        ----------
        utility : str
            ``"loss"`` or, of a logistic regression, ``"accuracy"``; of a ridge regression, ``"r2"``.
        split : {"validation", "test"}
            Samples on which the fitted model is judged.
        l2 : float
            Penalty on all coefficients, positive; see :class:`tasks.learners.LogisticGame` and
            :class:`tasks.learners.RidgeGame`.

        Returns
        -------
        LogisticGame or RidgeGame

        Raises
        ------
        ValueError
            If the task declares no learner, or an argument is not among those allowed.
        """
        if self.learner is None:
            raise ValueError(
                f"task {self.name!r} declares no learner ('logistic' or 'ridge'): its model need not have a single "
                "optimum, so that only trajectory_game() can judge it"
            )
        judges: Split = getattr(self, one_of("split", split, get_args(HeldOut)))
        samples = (array.numpy() for part in (self.train, judges) for array in (part.x.flatten(1), part.y))
        game: Any = {"logistic": LogisticGame, "ridge": RidgeGame}[self.learner]
        return cast(LogisticGame | RidgeGame, game(*samples, l2=l2, utility=utility))


@dataclass(frozen=True)
class TaskSpec:
    """A task in the catalogue, before a seed is chosen.

    Attributes
    ----------
    dataset : callable
        Returns the whole dataset: features float64 [n, ...] (tokens: int64 [n, T]), and labels int64 [n] (of sequences:
        [n, T]) or, for regression, numbers float64 [n]. A third array, int64 [n], numbers the domain of each sample
        from 0 on. The split keeps the proportions of domains or, where there are none, of labels.
    architecture : callable
        Returns a model with fresh weights from torch's global generator.
    recipes : mapping
        Named recipes; ``"sgd"`` is the default one.
    n_classes : int or None
        Number of classes. None makes the task a regression: targets are standardised, too, and the model's output is
        [B] or [B, 1].
    n_train, n_validation, n_test : int
        Default sizes of the three parts.
    scaling : {"feature", "global"} or None
        How features are standardised, see :func:`tasks.data.standardise`. None leaves them as they are: tokens, which
        stay integers.
    summary : str
        One line for listings.
    learner : {"logistic", "ridge"}, optional
        For a linear model: how it is fitted to its optimum, see :meth:`Task.optimum_game`.
    large : bool
        Whether tens of thousands of trainings would take too long. A large task has no retraining reference, and runs
        only where it is named.
    domains : tuple of str
        Names of the domains, where the dataset numbers them.
    classes : tuple or None
        What the labels stand for, where the dataset has names for them. Each must then occur in the training set.
    held_out : mapping of {"validation", "test"} to range
        Samples of the dataset that are one of these parts as they stand. The other parts are drawn from the rest; where
        all of it is the training set, it keeps the dataset's order.
    defaults : mapping of {"recipe", "flipped", "dtype"} to object
        What :func:`tasks.load` takes where it is told nothing, in place of its own defaults.
    """

    dataset: Callable[[], tuple[NDArray[Any], NDArray[Any]] | tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]]
    architecture: Callable[[], nn.Module]
    recipes: Mapping[str, Recipe]
    n_classes: int | None
    n_train: int
    n_validation: int
    n_test: int
    scaling: Scaling | None
    summary: str
    learner: Learner | None = None
    large: bool = False
    domains: tuple[str, ...] = ()
    classes: tuple[Hashable, ...] | None = None
    held_out: Mapping[HeldOut, range] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def build(
        self,
        name: str,
        *,
        seed: int,
        recipe: str | None = None,
        n_train: int | None = None,
        flipped: float | None = None,
        dtype: torch.dtype | None = None,
    ) -> Task:
        """Draw the split, make targets wrong, and put the task together; see :func:`tasks.load`."""
        told = {"recipe": recipe, "flipped": flipped, "dtype": dtype}
        chosen = {**DEFAULTS, **self.defaults, **{what: value for what, value in told.items() if value is not None}}
        recipe, flipped, dtype = chosen["recipe"], chosen["flipped"], chosen["dtype"]
        if recipe not in self.recipes:
            raise ValueError(unknown_name("recipe", recipe, list(self.recipes)))
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        size = self.n_train if n_train is None else n_train
        if size < 1:
            raise ValueError(f"n_train must be at least 1, got {size}")
        x, y, *rest = self.dataset()
        domains = rest[0] if rest else None
        split, flip = (np.random.SeedSequence([seed, stream]) for stream in (1, 2))
        parts = self._parts(self._strata(y, domains), size, split)
        self._check_classes(y[parts[0]])
        if self.scaling is not None:
            x = standardise(x, parts[0], self.scaling)
        targets, wrong = self._targets(y, parts[0], flipped, flip)
        x_dtype, target_dtype = (dtype if array.dtype.kind == "f" else torch.int64 for array in (x, targets))
        train, validation, test = (
            Split(torch.from_numpy(x[part]).to(x_dtype), torch.from_numpy(targets[part]).to(target_dtype))
            for part in parts
        )
        return Task(
            name=name,
            recipe_name=recipe,
            seed=seed,
            train=train,
            validation=validation,
            test=test,
            n_classes=self.n_classes,
            flipped=wrong,
            recipe=self.recipes[recipe],
            architecture=self.architecture,
            learner=self.learner,
            dtype=None if x.dtype.kind == "f" else dtype,
            domains=None if domains is None else domains[parts[0]],
            rows=parts[0],
            spec=self,
        )

    def _parts(
        self, strata: NDArray[np.int64], n_train: int, seed: np.random.SeedSequence
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return which samples of the dataset are for training, for validation and for test."""
        given: dict[str, NDArray[np.int64]] = {part: np.array(samples) for part, samples in self.held_out.items()}
        rest = np.setdiff1d(np.arange(len(strata)), np.concatenate([np.arange(0), *given.values()]))
        sizes = {"train": n_train, "validation": self.n_validation, "test": self.n_test}
        drawn = [part for part in sizes if part not in given]
        if drawn == ["train"] and n_train == len(rest):
            chosen = [rest]
        else:
            chosen = [rest[of] for of in partition(strata[rest], [sizes[p] for p in drawn], seed, self.classes)]
        train, validation, test = ({**given, **dict(zip(drawn, chosen, strict=True))}[part] for part in sizes)
        return train, validation, test

    def _check_classes(self, labels: NDArray[Any]) -> None:
        """Refuse a training set without samples of one of the classes that have names."""
        missing = set(range(len(self.classes or ()))) - set(labels.ravel().tolist())
        if self.classes is not None and missing:
            raise ValueError(
                f"class {self.classes[min(missing)]!r} has no sample in the training set of {len(labels)} "
                f"({len(missing)} of {len(self.classes)} classes have none); draw more training samples, leave out "
                "rare classes, or hold out samples of your own choice"
            )

    def _strata(self, y: NDArray[Any], domains: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Return whatever each part of the split shall have in the same proportions, int64 [n]."""
        if domains is not None:
            return domains
        if self.n_classes is None or y.ndim > 1:
            return np.zeros(len(y), dtype=np.int64)
        return y.astype(np.int64)

    def _targets(
        self, y: NDArray[Any], train: NDArray[np.int64], fraction: float, seed: np.random.SeedSequence
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return the dataset's targets, a share of those of training samples made wrong, and which samples these are.

        Numbers are standardised with the statistics of the true targets.
        """
        targets: NDArray[Any]
        if self.n_classes is None:
            targets = standardise(y, train, "feature")
            targets[train], wrong = exchange_targets(targets[train], fraction, seed)
        else:
            targets = y.astype(np.int64)
            if targets.ndim == 1:
                targets[train], wrong = flip_labels(targets[train], self.n_classes, fraction, seed)
            else:  # another sequence is wrong, and yet in the language
                targets[train], wrong = exchange_targets(targets[train], fraction, seed)
        return targets, wrong
