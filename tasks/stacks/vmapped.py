"""Any model as a program on a stack, by ``torch.func``: residual networks, transformers, tied or frozen weights.

Attention is computed by plain products, which ``vmap`` batches; the fused kernels would be called for one model after
the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from tasks.objective import Objective
from tasks.stacks.stack import Stack, in_dim

__all__ = ["Vmapped"]


@dataclass(frozen=True)
class Vmapped:
    """Program of any model; a :class:`tasks.stacks.program.Program`. It calls the model under ``vmap``."""

    model: nn.Module
    objective: Objective

    def outputs(self, stack: Stack, x: Tensor) -> Tensor:
        """Return the models' outputs, [m, *out, B]."""
        x, axis = in_dim(x)
        with sdpa_kernel(SDPBackend.MATH):
            outputs: Tensor = vmap(self._output, in_dims=(0, axis))(stack, x)
        return outputs.movedim(1, -1)

    def gradients(self, stack: Stack, x: Tensor, y: Tensor, weights: Tensor) -> Stack:
        """Return the gradient of each model's weighted sum of losses, by parameter."""

        def weighted(parameters: Stack, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
            return (self.objective.losses(self._output(parameters, x), y) * weights).sum()

        (x, x_axis), (y, y_axis) = in_dim(x), in_dim(y)
        gradient: Any = vmap(grad(weighted), in_dims=(0, x_axis, y_axis, 0))
        with sdpa_kernel(SDPBackend.MATH):
            gradients: Stack = gradient(stack, x, y, weights)
        return gradients

    def descend(self, stack: Stack, x: Tensor, y: Tensor, weights: Tensor, rate: float) -> None:
        """Subtract `rate` times the gradient from the stack, in place."""
        gradients = self.gradients(stack, x, y, weights)
        for name, parameter in stack.items():
            parameter.sub_(gradients[name], alpha=rate)

    def _output(self, parameters: Stack, x: Tensor) -> Tensor:
        output: Tensor = functional_call(self.model, parameters, (x,))
        return output
