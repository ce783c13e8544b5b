"""Trajectory games: what a model trained on a coalition is worth, for many coalitions at a time.

Players are training samples. The utility of a coalition S is that of the model trained by the task's recipe from the
task's initial weights, in the task's batch order, where samples outside S contribute a zero gradient and the
denominator of a batch's mean stays that of the full batch::

    w_{t+1} = w_t - u_t( (1 / |B_t|) sum_{i in B_t and S} grad l_i(w_t) )

where u_t is what the recipe makes of a gradient: clipping, by the norm of this model's own gradient, and the optimiser
at the learning rate of step t.

This is the retraining game that In-Run Data Shapley approximates step by step (arXiv 2406.11011); the empty coalition
learns nothing and is worth what the initial weights are worth, up to weight decay.

Renormalised, the mean is that of the samples present, ``1 / |B_t and S|``: what training on the dataset S alone would
do, had each batch lost its absent samples. A batch of which no sample is present still makes a step, with a zero
gradient, so that all coalitions make the same number of steps, with the same decay and momentum.

All models of a chunk of coalitions are trained as one batched tensor program (:mod:`tasks.stacks`). Plain SGD is part
of that program; since the recipe's other optimisers are element-wise, one ``torch.optim`` optimiser over the stacked
parameters is the optimiser of every model in the stack; clipping is done before it, model by model.

Cost on two cores, in float32: digits-mlp (64-32-10, 50 steps of 20 samples, 300 validation samples) 7000 trainings a
second, some 60 times as many as in a Python loop.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from baselines.game import described
from tasks import stacks
from tasks.data import HeldOut, Split
from tasks.fixed_attributes import FixedAttributes
from tasks.layer_settings import layer_settings
from tasks.objective import check_output
from tasks.trainable import Trainable

__all__ = ["DivergedError", "TrajectoryGame", "retrain"]

_TRIED = 4  # samples, together and alone
_ROUNDING = 1e-3  # of outputs in batches of other sizes


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


class TrajectoryGame(FixedAttributes):
    """The retraining game of a task (see the module's docstring), evaluated in batches.

    Parameters
    ----------
    task : Task (or another :class:`tasks.trainable.Trainable`)
        Data, model and recipe.
    utility : str
        Which of the objective's utilities: ``"loss"``, minus the mean loss (of classification in nats), or
        ``"accuracy"``, the share of samples classified correctly. Higher is better.
    split : {"validation", "test"}
        Samples on which the trained model is judged.
    renormalised : bool
        Whether a batch's mean is over the samples present, rather than over the full batch.
    memory_bytes : int, optional
        What the models that are trained at the same time may take. Default: half of what is free.
    device : torch.device or str, optional
        Where to train. Default: where the training samples are.

    Attributes
    ----------
    n_players : int
        Number of training samples.
    measures : tuple of str
        Names of the columns of :meth:`measure`: all utilities of the task's objective, in the objective's order.

    Samples are the task's own tensors and not copied. A game whose samples torch has changed in place since it was made
    is refused; changes by NumPy, of an array that a tensor shares, are not seen.

    Examples
    --------
    >>> import numpy as np, tasks
    >>> game = tasks.load("digits-mlp", seed=0).trajectory_game()
    >>> empty_and_full = np.stack([np.zeros(game.n_players, bool), np.ones(game.n_players, bool)])
    >>> bool(np.diff(game(empty_and_full)) > 0)
    True
    >>> game.measures
    ('loss', 'accuracy')
    """

    fixed = ("measures", "n_players", "renormalised", "split", "task", "utility")

    def __init__(
        self,
        task: Trainable,
        utility: str = "loss",
        split: HeldOut = "validation",
        *,
        renormalised: bool = False,
        memory_bytes: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        _check_measure(task, utility, split)
        self.task = task
        self.utility = utility
        self.split: HeldOut = split
        self.renormalised = renormalised
        self.memory_bytes = memory_bytes
        self.device = device
        self.n_players = task.n_train
        self.measures = tuple(task.objective.utilities)
        self._versions = self._versions_of_samples()

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
        return retrain(
            self.task,
            coalitions,
            [(utility, self.split) for utility in self.measures],
            renormalised=self.renormalised,
            memory_bytes=self.memory_bytes,
            device=self.device,
        )

    def identity(self) -> str:
        """Return a SHA-256 of all that defines :meth:`measure`, as 64 hexadecimal digits: a key for stored utilities.

        It covers the bits of the training samples and of the split that judges, the architecture and its initial
        weights, the code of layers that are not torch's own and of functions that layers hold, which parameters are
        trained, the batch order, the recipe, the objective, and `renormalised`. Not covered is what changes utilities
        by no more than rounding: chunks, device, versions of torch; nor `utility`, which only picks a column.

        Raises
        ------
        CodeIdentityError
            A ValueError, if the code of a layer cannot be seen: classes belong at the head of a file's module, not in a
            notebook's cell or a function.
        """
        self._check_samples()
        judge: Split = getattr(self.task, self.split)
        model = self.task.model()
        entries = [
            ("train x", self.task.train.x),
            ("train y", self.task.train.y),
            ("judge x", judge.x),
            ("judge y", judge.y),
            *layer_settings(model),
            *(state := model.state_dict()).items(),
            *((name, buffer) for name, buffer in model.named_buffers() if name not in state),
            *(("batch", index) for index in self.task.batches()),
            ("recipe", self.task.recipe),
            ("objective", self.task.objective.name),
            ("renormalised", self.renormalised),
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


def retrain(
    task: Trainable,
    coalitions: NDArray[np.bool_],
    measures: Sequence[tuple[str, HeldOut]],
    *,
    renormalised: bool = False,
    memory_bytes: int | None = None,
    device: torch.device | str | None = None,
) -> NDArray[np.float64]:
    """Train on each coalition once and judge the models by several measures.

    Parameters
    ----------
    task : Task (or another :class:`tasks.trainable.Trainable`)
        Data, model and recipe.
    coalitions : bool [m, n_train]
        Which training samples each model sees.
    measures : sequence of (utility, split)
        For instance ``[("loss", "test"), ("accuracy", "test")]``.
    renormalised, memory_bytes, device
        As in :class:`TrajectoryGame`.

    Returns
    -------
    float64 [m, len(measures)]
        Utilities; ``"loss"`` is minus the loss, so that higher is better. NaN, whatever the utility, where a model's
        weights or one of its utilities on the split are not finite.

    Raises
    ------
    ValueError
        If `coalitions` is not bool [m, n_train], a measure is unknown, or `memory_bytes` is too small for one model.
    """
    coalitions = np.asarray(coalitions)
    if coalitions.ndim != 2 or coalitions.shape[1] != task.n_train or coalitions.dtype != np.bool_:
        raise ValueError(
            f"coalitions must be a bool array of shape [m, {task.n_train}], "
            f"got {coalitions.dtype} of shape {list(coalitions.shape)}"
        )
    for measure in measures:
        _check_measure(task, *measure)
    where = task.train.x.device if device is None else torch.device(device)
    train, model, recipe = _moved(task.train, where), task.model().to(where), task.recipe
    parts = {part: _moved(getattr(task, part), where) for _, part in measures}
    batches = [index.to(where) for index in task.batches()]
    program = stacks.program_of(model, task.objective, train.x[:1])
    _check_outputs(model, task, train)
    each = stacks.footprint(
        program,
        stacks.stack_of(model, 1),
        train.x[: recipe.batch_size],
        copies=stacks.optimizer_copies(recipe.build_optimizer),
        n_judged=max(map(len, parts.values()), default=0),
    )
    size = stacks.stack_size(each, where, memory_bytes)
    out = np.empty((len(coalitions), len(measures)))
    for start in range(0, len(coalitions), size):
        chunk = slice(start, start + size)
        present = torch.from_numpy(coalitions[chunk]).to(where)
        stack = stacks.stack_of(model, len(present))
        stacks.train(program, stack, recipe, train, batches, present, renormalised=renormalised)
        judged = {
            part: stacks.judge(program, stack, task.objective, split, recipe.batch_size)
            for part, split in parts.items()
        }
        for column, (utility, part) in enumerate(measures):
            out[chunk, column] = judged[part][utility].cpu().numpy()
    return out


def _check_measure(task: Trainable, utility: str, split: str) -> None:
    for name, value, allowed in (("utility", utility, task.objective.utilities), ("split", split, get_args(HeldOut))):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def _check_outputs(model: nn.Module, task: Trainable, train: Split) -> None:
    """Refuse a model whose outputs are not those that the objective judges, or not of their samples alone."""
    x, model = train.x[:_TRIED], deepcopy(model)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        together = model(x)
        alone = torch.cat([model(x[i : i + 1]) for i in range(len(x))])
    check_output(together, train.y[: len(x)], getattr(task, "n_classes", None))
    largest = together.abs().nan_to_num().max()
    if not torch.allclose(together, alone, rtol=0.0, atol=_ROUNDING * float(largest), equal_nan=True):
        raise ValueError(
            "the model returns something else of a sample alone than of the same in a batch: it mixes the samples of a "
            "batch, or draws random numbers, so that an absent sample would still count; take out what does "
            "(a mean over the batch, batch norm, dropout)"
        )


def _moved(split: Split, device: torch.device) -> Split:
    return Split(split.x.to(device), split.y.to(device))


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
