"""A stack of models: the parameters of m models of one architecture, in one tensor for each name."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import nn

__all__ = ["Stack", "in_dim", "models_in", "stack_of"]

Stack: TypeAlias = dict[str, torch.Tensor]
"""Trained parameters of m models by name, each [m, *shape]."""


def stack_of(model: nn.Module, m: int) -> Stack:
    """Return m copies of the model's trained parameters; frozen ones stay where they are, with the model."""
    return {
        name: parameter.detach().expand(m, *parameter.shape).clone(memory_format=torch.contiguous_format)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def in_dim(data: torch.Tensor) -> tuple[torch.Tensor, int | None]:
    """Return data [m or 1, ...] as ``vmap`` takes it, and its axis of models; None where all models see the same."""
    return (data[0], None) if len(data) == 1 else (data, 0)


def models_in(stack: Stack) -> int:
    """Return the number m of models in a stack."""
    return len(next(iter(stack.values())))
