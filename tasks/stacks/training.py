"""Train and judge a stack: every model on its own coalition, all on the same batches."""

from __future__ import annotations

from collections.abc import Sequence
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

__all__ = ["judge", "train"]


def train(
    program: Program,
    stack: Stack,
    recipe: Recipe,
    samples: Split,
    batches: Sequence[Tensor],
    present: Tensor,
    *,
    renormalised: bool,
) -> None:
    """Train the models in place.

    Parameters
    ----------
    program : Program
        Of the models.
    stack : Stack
        m models at their initial weights.
    recipe : Recipe
        Its optimiser is used, at the rate of each step; plain SGD, which has no state, is left to the program. Each
        model's gradient is clipped by its own norm.
    samples : Split
        n training samples.
    batches : sequence of int64 [B]
        Indices of the samples of every step.
    present : bool [m, n]
        Which samples each model sees.
    renormalised : bool
        Whether the mean of a batch is over the samples present (where there are none, the gradient is zero), rather
        than over all.
    """
    plain = recipe.optimizer == "sgd" and not (recipe.momentum or recipe.weight_decay or recipe.clip_norm)
    optimizer = None if plain else recipe.build_optimizer(stack.values())
    counted = present.to(next(iter(stack.values())).dtype)
    for step, index in enumerate(batches):
        rate = recipe.rate(step, len(batches))
        x, y, weights = samples.x[index], samples.y[index], counted[:, index]
        weights = weights / (weights.sum(1, keepdim=True).clamp(min=1) if renormalised else len(index))
        if optimizer is None:
            program.descend(stack, x, y, weights, rate)
        else:
            gradients = program.gradients(stack, x, y, weights)
            if recipe.clip_norm is not None:
                gradients = clipped(gradients, recipe.clip_norm)
            for name, gradient in gradients.items():
                stack[name].grad = gradient
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()


@torch.no_grad()
def judge(
    program: Program, stack: Stack, objective: Objective, split: Split, samples_at_a_time: int
) -> dict[str, Tensor]:
    """Return all utilities of the objective on `split`, by name, each float64 [m].

    A model that diverged, whose weights or utilities are not all finite, has no utility at all: NaN, whatever the name.
    """
    outputs = torch.cat([program.outputs(stack, x) for x in split.x.split(samples_at_a_time)], dim=-1)
    utilities = worth(objective, outputs, split.y)
    largest = [torch.linalg.vector_norm(p.reshape(len(p), -1), torch.inf, dim=1) for p in stack.values()]
    finite = torch.stack([*largest, *utilities.values()]).isfinite().all(0)
    return {name: torch.where(finite, utility, torch.nan) for name, utility in utilities.items()}
