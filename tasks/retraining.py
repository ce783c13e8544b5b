"""Retraining on coalitions: what is made ready once for all stacks of models, and how these are judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tasks import stacks
from tasks.data import HeldOut, Split
from tasks.objective import Objective, check_output
from tasks.recipe import Recipe
from tasks.trainable import Trainable

__all__ = ["Retraining", "check_measure", "checked_coalitions", "retraining"]

_TRIED = 4  # samples, together and alone
_ROUNDING = 1e-3  # of outputs in batches of other sizes
_COPIES_OF_A_BATCH = 2  # as it is gathered, and as a layer lays it out
_BYTES_OF_AN_ORDER = 4 * 8  # of each sample: its place in this epoch's order, and what is made of that


@dataclass(frozen=True, eq=False)
class Retraining:
    """What all stacks of a call have in common.

    Attributes
    ----------
    program : stacks.Program
        That trains and judges.
    objective : Objective
        What models are judged by.
    recipe : Recipe
        By which they are trained.
    train : Split
        Training samples, where models are trained.
    judges : mapping of str to Split
        Samples that judge, by the name of the split.
    measures : sequence of (utility, split)
        Columns of :meth:`judged`.
    stack_size : int
        How many models to train at a time.
    """

    program: stacks.Program
    objective: Objective
    recipe: Recipe
    train: Split
    judges: Mapping[HeldOut, Split]
    measures: Sequence[tuple[str, HeldOut]]
    stack_size: int

    def judged(self, stack: stacks.Stack) -> NDArray[np.float64]:
        """Return what each model of a stack is worth by each measure, [m, len(measures)]; NaN where it diverged."""
        judged = {
            part: stacks.judge(self.program, stack, self.objective, split, self.recipe.batch_size)
            for part, split in self.judges.items()
        }
        out = np.empty((len(next(iter(stack.values()))), len(self.measures)))
        for column, (utility, part) in enumerate(self.measures):
            out[:, column] = judged[part][utility].cpu().numpy()
        return out


def retraining(
    task: Trainable,
    model: nn.Module,
    measures: Sequence[tuple[str, HeldOut]],
    *,
    own_batches: bool,
    memory_bytes: int | None,
) -> Retraining:
    """Make ready to retrain a task's model, on the device where `model` is.

    Parameters
    ----------
    task : Trainable
        Data and recipe.
    model : nn.Module
        One of the models, with its initial weights, for its architecture and all that is not trained.
    measures : sequence of (utility, split)
        Of trained models.
    own_batches : bool
        Whether models have batches of their own, which take memory.
    memory_bytes : int, optional
        What the models that are trained at the same time may take. Default: half of what is free.

    Raises
    ------
    ValueError
        If the model's outputs are not those that the objective judges, or not of their samples alone, a measure is
        unknown, or `memory_bytes` is too small for one model.
    """
    for measure in measures:
        check_measure(task, *measure)
    where = next(model.parameters()).device
    train, recipe = _moved(task.train, where), task.recipe
    judges = {part: _moved(getattr(task, part), where) for _, part in measures}
    program = stacks.program_of(model, task.objective, train.x[:1])
    _check_outputs(model, task, train)
    batch = train.x[: recipe.batch_size]
    each = stacks.footprint(
        program,
        stacks.stack_of(model, 1),
        batch,
        copies=stacks.optimizer_copies(recipe.build_optimizer),
        n_judged=max(map(len, judges.values()), default=0),
        own_data=_COPIES_OF_A_BATCH * batch.nbytes + _BYTES_OF_AN_ORDER * len(train) if own_batches else 0,
    )
    size = stacks.stack_size(each, where, memory_bytes)
    return Retraining(program, task.objective, recipe, train, judges, measures, size)


def checked_coalitions(coalitions: NDArray[np.bool_], n: int) -> NDArray[np.bool_]:
    """Return the coalitions as an array, having checked that it is bool [m, n]."""
    coalitions = np.asarray(coalitions)
    if coalitions.ndim != 2 or coalitions.shape[1] != n or coalitions.dtype != np.bool_:
        raise ValueError(
            f"coalitions must be a bool array of shape [m, {n}], "
            f"got {coalitions.dtype} of shape {list(coalitions.shape)}"
        )
    return coalitions


def check_measure(task: Trainable, utility: str, split: str) -> None:
    """Refuse a utility that the task does not have, or another part of the data than those that judge."""
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
