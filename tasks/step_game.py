"""Step games: what each sample of one batch contributes to one optimiser step.

Players are the samples of a batch. The utility of a coalition S is the drop of the validation loss when the optimiser
steps with the summed gradient contributions of S only::

    U(S) = l_val(w - u(0)) - l_val(w - u(g_S)),    g_S = sum_{i in S} g_i

The contributions are parts of what the optimiser receives. Where a recipe clips by norm, g_i is the sample's part of
the batch's mean gradient times the factor by which the whole batch's gradient is clipped: a number of the step, the
same for every coalition. That is the game which the engine scores
(:mod:`inrun_bench.attribution.gradient_scaling`). Training on the coalition alone, as in :mod:`tasks.trajectory_game`,
would clip by the norm of the coalition's own gradient instead.

Shapley values of this game are what one step of In-Run Data Shapley approximates (arXiv 2406.11011, section 4). Here
they are computed the plain way, from per-sample gradients and real optimiser steps, so that they can judge.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from tasks import stacks
from tasks.objective import Objective
from tasks.stacks import Stack
from tasks.task import Task

__all__ = ["StepGame"]


class StepGame:
    """The game of one optimiser step on the batch `index`, at the present weights and optimiser state.

    Parameters
    ----------
    task : Task
        Its training samples are the batch, its validation loss the judge.
    model : torch.nn.Module
        At the weights before the step; not changed.
    optimizer : torch.optim.Optimizer
        The recipe's, over the parameters of `model`, at the state before the step; not changed.
    index : int64 [batch]
        Training indices of the batch.

    Attributes
    ----------
    n_players : int
        Number of samples in the batch.
    """

    def __init__(self, task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, index: torch.Tensor) -> None:
        self.n_players = len(index)
        self._objective = task.objective
        self._program = stacks.program_of(model, task.objective, task.train.x[:1])
        self._validation = task.validation
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._weights = {name: p.detach().clone() for name, p in trained.items()}
        self._contributions = per_sample_contributions(model, task.objective, task.train.x[index], task.train.y[index])
        if task.recipe.clip_norm is not None:
            whole = {name: parts.sum(0, keepdim=True) for name, parts in self._contributions.items()}
            factor = stacks.clip_factors(whole, task.recipe.clip_norm)
            self._contributions = {name: parts * factor for name, parts in self._contributions.items()}
        self._build_optimizer = task.recipe.build_optimizer
        self._settings = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
        self._state = {
            name: {k: v.clone() if torch.is_tensor(v) else v for k, v in optimizer.state.get(p, {}).items()}
            for name, p in trained.items()
        }
        each = stacks.footprint(
            self._program,
            stacks.stack_of(model, 1),
            task.train.x[index],
            copies=stacks.optimizer_copies(task.recipe.build_optimizer),
            n_judged=len(task.validation),
        )
        self._stack_size = stacks.stack_size(each, task.train.x.device)
        self._empty_utility = float(self._stepped_utilities(torch.zeros(1, self.n_players))[0])

    def __call__(self, coalitions: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the drop of the validation loss in nats, float64 [m], of each coalition of bool [m, n_players]."""
        chunks = torch.split(torch.from_numpy(np.asarray(coalitions)), self._stack_size)
        return torch.cat([self._stepped_utilities(c) for c in chunks]).numpy() - self._empty_utility

    def _stepped_utilities(self, coalitions: torch.Tensor) -> torch.Tensor:
        stack: Stack = {k: w.expand(len(coalitions), *w.shape).clone() for k, w in self._weights.items()}
        for name, parameter in stack.items():
            contributions = self._contributions[name]
            parameter.grad = torch.tensordot(coalitions.to(contributions.dtype), contributions, dims=1)
        optimizer = self._build_optimizer(stack.values())
        optimizer.param_groups[0].update(self._settings)
        for name, parameter in stack.items():
            weight = self._weights[name]
            for key, value in self._state[name].items():
                stacked = torch.is_tensor(value) and value.shape == weight.shape
                optimizer.state[parameter][key] = value.expand_as(parameter).clone() if stacked else _copy(value)
        optimizer.step()
        return stacks.judge(self._program, stack, self._objective, self._validation, self.n_players)["loss"]


def per_sample_contributions(model: nn.Module, objective: Objective, x: torch.Tensor, y: torch.Tensor) -> Stack:
    """Return each sample's part g_i of the gradient of the batch's mean loss, by name, each [batch, *shape]."""

    def loss(parameters: Stack, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return objective.losses(functional_call(model, parameters, (x[None],)), y[None]).mean()

    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    with sdpa_kernel(SDPBackend.MATH):  # plain products: the fused kernels take one sample at a time
        gradients: Any = vmap(grad(loss), in_dims=(None, 0, 0))(weights, x, y)
    return {name: g / len(y) for name, g in gradients.items()}


def _copy(value: Any) -> Any:
    return value.clone() if torch.is_tensor(value) else value
