"""Train and judge a stack: every model on its own coalition."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tasks.data import Split
from tasks.objective import Objective
from tasks.stacks.clipping import clipped
from tasks.stacks.objectives import worth
from tasks.stacks.program import Program
from tasks.stacks.stack import Stack

if TYPE_CHECKING:
    from tasks.recipe import Recipe

__all__ = ["Descent", "judge", "train"]


class Descent:
    """The steps of a run, taken by all models of a stack at once.

    Parameters
    ----------
    program : Program
        Of the models.
    stack : Stack
        m models at their initial weights, which are trained in place.
    recipe : Recipe
        Its optimiser is used, at the rate of each step; plain SGD, which has no state, is left to the program. Each
        model's gradient is clipped by its own norm.
    n_steps : int
        Of the whole run, over which the learning rate follows its schedule.
    """

    def __init__(self, program: Program, stack: Stack, recipe: Recipe, n_steps: int) -> None:
        self._program, self._stack, self._recipe, self._n_steps = program, stack, recipe, n_steps
        plain = recipe.optimizer == "sgd" and not (recipe.momentum or recipe.weight_decay or recipe.clip_norm)
        self._optimizer = None if plain else recipe.build_optimizer(stack.values())
        self._step = 0

    def step(self, x: Tensor, y: Tensor, weights: Tensor) -> None:
        """Take the next step on samples x [m or 1, B, ...] with targets y [m or 1, B, ...], weighted by [m, B]."""
        rate = self._recipe.rate(self._step, self._n_steps)
        self._step += 1
        if self._optimizer is None:
            self._program.descend(self._stack, x, y, weights, rate)
            return
        gradients = self._program.gradients(self._stack, x, y, weights)
        if self._recipe.clip_norm is not None:
            gradients = clipped(gradients, self._recipe.clip_norm)
        for name, gradient in gradients.items():
            self._stack[name].grad = gradient
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.step()


def train(
    program: Program,
    stack: Stack,
    recipe: Recipe,
    samples: Split,
    batches: Iterable[tuple[Tensor, Tensor]],
    n_steps: int,
) -> None:
    """Train the models in place.

    Parameters
    ----------
    program, stack, recipe, n_steps
        As in :class:`Descent`.
    samples : Split
        n training samples.
    batches : iterable of (int64 [m or 1, B], [m, B])
        Samples of every step and their weights, see :mod:`tasks.stacks.batches`.
    """
    descent = Descent(program, stack, recipe, n_steps)
    for index, weights in batches:
        descent.step(samples.x[index], samples.y[index], weights)


@torch.no_grad()
def judge(
    program: Program, stack: Stack, objective: Objective, split: Split, samples_at_a_time: int
) -> dict[str, Tensor]:
    """Return all utilities of the objective on `split`, by name, each float64 [m].

    A model that diverged, whose weights or utilities are not all finite, has no utility at all: NaN, whatever the name.
    """
    outputs = torch.cat([program.outputs(stack, x[None]) for x in split.x.split(samples_at_a_time)], dim=-1)
    utilities = worth(objective, outputs, split.y)
    largest = [torch.linalg.vector_norm(p.reshape(len(p), -1), torch.inf, dim=1) for p in stack.values()]
    finite = torch.stack([*largest, *utilities.values()]).isfinite().all(0)
    return {name: torch.where(finite, utility, torch.nan) for name, utility in utilities.items()}
