"""What games of retraining share: players are training samples, and a trained model's utility is their worth.

A game says how it trains on coalitions, and what that follows from; see :mod:`tasks.trajectory_game` and
:mod:`tasks.conventional_game`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baselines.game import described
from tasks.data import HeldOut, Split
from tasks.fixed_attributes import FixedAttributes
from tasks.layer_settings import layer_settings
from tasks.retraining import check_measure
from tasks.trainable import Trainable

__all__ = ["DivergedError", "RetrainingGame", "entries_of_run"]


class DivergedError(ValueError):
    """Some models diverged: their weights or their losses are not finite, and they have no utility.

    Attributes
    ----------
    coalitions : bool [m, n_players]
        All that were asked for.
    utilities : float64 [m]
        Those of all models, NaN where a model diverged.
    """

    def __init__(self, coalitions: NDArray[np.bool_], utilities: NDArray[np.float64]) -> None:
        super().__init__(coalitions, utilities)
        self.coalitions = coalitions
        self.utilities = utilities

    def __str__(self) -> str:
        diverged = np.isnan(self.utilities)
        return (
            f"{np.count_nonzero(diverged)} of {len(diverged)} models diverged (weights or losses are not finite), "
            f"the first one with {described(self.coalitions[np.argmax(diverged)])}; "
            "a smaller learning rate may help, and the other utilities are kept in this error's 'utilities'"
        )


class RetrainingGame(FixedAttributes, ABC):
    """A game of retraining, evaluated in batches: what is the same of all.

    Parameters and attributes are those of :class:`tasks.trajectory_game.TrajectoryGame`, but for what a game has of its
    own.
    """

    fixed: ClassVar[tuple[str, ...]] = ("measures", "n_players", "split", "task", "utility")

    def __init__(
        self,
        task: Trainable,
        utility: str,
        split: HeldOut,
        *,
        memory_bytes: int | None,
        device: torch.device | str | None,
    ) -> None:
        check_measure(task, utility, split)
        self.task = task
        self.utility = utility
        self.split: HeldOut = split
        self.memory_bytes = memory_bytes
        self.device = device
        self.n_players = task.n_train
        self.measures = tuple(task.objective.utilities)
        self._versions = self._versions_of_samples()

    @abstractmethod
    def _retrained(self, coalitions: NDArray[np.bool_], measures: Sequence[tuple[str, HeldOut]]) -> NDArray[np.float64]:
        """Return what models trained on coalitions [m, n_players] are worth by each of the measures, in columns."""

    @abstractmethod
    def _rules(self) -> Iterable[tuple[str, object]]:
        """Yield, named, what utilities follow from besides the samples."""

    def __call__(self, coalitions: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the utility, float64 [m], of each coalition of bool [m, n_players].

        Raises
        ------
        DivergedError
            If some models diverged; the error has the utilities of the others.
        """
        utilities = self.measure(coalitions)[:, self.measures.index(self.utility)]
        if np.isnan(utilities).any():
            raise DivergedError(coalitions, utilities)
        return utilities

    def measure(self, coalitions: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return all utilities of each coalition from one training.

        Parameters
        ----------
        coalitions : bool [m, n_players]
            Which training samples each model sees.

        Returns
        -------
        float64 [m, len(measures)]
            One column for each of `measures`; a row of NaN where the model diverged.
        """
        self._check_samples()
        return self._retrained(coalitions, [(utility, self.split) for utility in self.measures])

    def identity(self) -> str:
        """Return a SHA-256 of all that defines :meth:`measure`, as 64 hexadecimal digits: a key for stored utilities.

        It covers the bits of the training samples and of the split that judges, the architecture and its initial
        weights, the code of layers that are not torch's own and of functions that layers hold, which parameters are
        trained, the batch order, the recipe, the objective, and the rules of the game. Not covered is what changes
        utilities by no more than rounding: chunks, device, versions of torch; nor `utility`, which only picks a column.

        Raises
        ------
        CodeIdentityError
            A ValueError, if the code of a layer cannot be seen: classes belong at the head of a file's module, not in a
            notebook's cell or a function.
        """
        self._check_samples()
        judge: Split = getattr(self.task, self.split)
        entries = [
            ("train x", self.task.train.x),
            ("train y", self.task.train.y),
            ("judge x", judge.x),
            ("judge y", judge.y),
            *self._rules(),
        ]
        return _digest(entries)

    def __getstate__(self) -> dict[str, object]:
        self._check_samples()
        return {name: value for name, value in vars(self).items() if name != "_versions"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._versions = self._versions_of_samples()  # copies count anew

    def _versions_of_samples(self) -> dict[str, int]:
        """Return how often torch has changed each tensor of samples in place, by name."""
        return {
            f"{part}.{name}": getattr(getattr(self.task, part), name)._version
            for part in ("train", self.split)
            for name in ("x", "y")
            if not getattr(getattr(self.task, part), name).is_inference()
        }

    def _check_samples(self) -> None:
        then, now = self._versions, self._versions_of_samples()
        changed = [name for name in then if now.get(name) != then[name]]
        if changed:
            raise ValueError(
                f"{' and '.join(changed)} of the task was changed in place since this game was made, so "
                "that utilities of two games would pass for those of one; make the game anew, of a task with copies"
            )


def entries_of_run(task: Trainable) -> Iterator[tuple[str, object]]:
    """Yield, named, what a run follows from besides its samples: model, initial weights, batches, recipe, objective."""
    model = task.model()
    yield from layer_settings(model)
    yield from (state := model.state_dict()).items()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name not in state)
    yield from (("batch", index) for index in task.batches())
    yield "recipe", task.recipe
    yield "objective", task.objective.name


def _digest(entries: Iterable[tuple[str, object]]) -> str:
    """Return the SHA-256 of named entries: of tensors the dtype, the shape and the bits, of others the repr."""
    digest = hashlib.sha256()
    for name, value in entries:
        if isinstance(value, Tensor):
            array = value.detach().cpu().contiguous()
            digest.update(f"{name}: {array.dtype} {list(array.shape)}\n".encode())
            digest.update(array.flatten().view(torch.uint8).numpy().data)
        else:
            digest.update(f"{name}: {value!r}\n".encode())
    return digest.hexdigest()
