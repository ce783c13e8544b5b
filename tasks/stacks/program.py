"""The program that computes with a stack of models, and which one serves a model."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from tasks.objective import Objective
from tasks.stacks.sequential import chain
from tasks.stacks.stack import Stack
from tasks.stacks.vmapped import Vmapped

__all__ = ["Program", "program_of"]


class Program(Protocol):
    """What a stack of m models computes on B samples: x [m, B, ...] of its own for each, or [1, B, ...] for all."""

    def outputs(self, stack: Stack, x: Tensor) -> Tensor:
        """Return the outputs, [m, *out, B], for x [m or 1, B, ...]."""

    def gradients(self, stack: Stack, x: Tensor, y: Tensor, weights: Tensor) -> Stack:
        """Return, by parameter, the gradient of ``sum_i weights[:, i] loss_i`` of each model, for weights [m, B]."""

    def descend(self, stack: Stack, x: Tensor, y: Tensor, weights: Tensor, rate: float) -> None:
        """Subtract `rate` times that gradient from the stack, in place."""


def program_of(model: nn.Module, objective: Objective, x: Tensor) -> Program:
    """Return the fastest program that serves `model` on inputs like `x` [B, ...]."""
    return chain(model, objective, x) or Vmapped(model, objective)
