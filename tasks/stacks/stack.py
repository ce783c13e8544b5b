"""A stack of models: the parameters of m models of one architecture, in one tensor for each name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

__all__ = ["Stack", "grouped_by_untrained", "in_dim", "models_in", "stack_of", "stack_of_models"]

Stack: TypeAlias = dict[str, Tensor]
"""Trained parameters of m models by name, each [m, *shape]."""


def stack_of(model: nn.Module, m: int) -> Stack:
    """Return m copies of the model's trained parameters; frozen ones stay where they are, with the model."""
    return {
        name: parameter.detach().expand(m, *parameter.shape).clone(memory_format=torch.contiguous_format)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def stack_of_models(models: Sequence[nn.Module]) -> Stack:
    """Return the trained parameters of models of one architecture; what is not trained must be the same in all."""
    each = [stack_of(model, 1) for model in models]
    return {name: torch.cat([stack[name] for stack in each]) for name in each[0]}


def grouped_by_untrained(models: Sequence[nn.Module]) -> list[list[int]]:
    """Return the numbers of models of one architecture in groups that share frozen parameters and buffers.

    A program holds these once for all models of a stack.
    """
    groups: list[list[int]] = []
    for number, model in enumerate(models):
        group = next((group for group in groups if _share_untrained(models[group[0]], model)), None)
        if group is None:
            groups.append([number])
        else:
            group.append(number)
    return groups


def in_dim(data: Tensor) -> tuple[Tensor, int | None]:
    """Return data [m or 1, ...] as ``vmap`` takes it, and its axis of models; None where all models see the same."""
    return (data[0], None) if len(data) == 1 else (data, 0)


def models_in(stack: Stack) -> int:
    """Return the number m of models in a stack."""
    return len(next(iter(stack.values())))


def _share_untrained(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(_untrained(one), _untrained(other), strict=True))


def _untrained(model: nn.Module) -> list[Tensor]:
    return [*(p for p in model.parameters() if not p.requires_grad), *model.buffers()]
