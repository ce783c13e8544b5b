"""A chain of known layers as one program of a few large products, for all models of a stack at once.

Autograd leads the gradient back through the layers of :mod:`tasks.stacks.layers`. Plain gradient descent needs no
weight gradients from it: that of an affine layer z = W a + b is the product (dl/dz) a^T, which is subtracted from the
weights within the product ("GEMM with accumulation"), so that it is never stored. Autograd is asked only for dl/dz.

Cost on two cores, digits-mlp (64-32-10, batch 20) for 512 models: 1.1 ms a step, half of it in the two products of the
first layer, at 140 GFLOP/s and more; ``vmap(grad(...))`` takes 2.7 ms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tasks.objective import Objective
from tasks.stacks.layers import OPERANDS, Forward, affine, find_forward
from tasks.stacks.objectives import output_gradient
from tasks.stacks.stack import Stack, models_in

__all__ = ["Chain", "chain"]


def chain(model: nn.Module, objective: Objective, x: Tensor) -> Chain | None:
    """Return the program of a model that is a chain of known layers for inputs like `x` [B, ...]; None of others.

    Layers may be nested in ``nn.Sequential``; each must have parameters of its own, all of them trained, and the last
    one must give one row of numbers a sample.
    """
    parameters = [parameter for _, parameter in model.named_parameters(remove_duplicate=False)]
    if len(parameters) > len(set(parameters)) or not all(parameter.requires_grad for parameter in parameters):
        return None
    links = []
    with torch.no_grad():
        for name, layer in model.named_modules(remove_duplicate=False):
            if type(layer) is nn.Sequential:
                continue  # its layers follow, in the order in which it applies them
            forward = find_forward(layer, x)
            if forward is None:
                return None
            links.append(_Link(name, layer, forward))
            x = layer(x)
    return Chain(tuple(links), objective) if x.ndim == 2 else None


@dataclass(frozen=True)
class _Link:
    """A layer of the chain, its name in the model, and its forward function."""

    name: str
    layer: nn.Module
    forward: Forward

    def own(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: parameters[f"{self.name}.{key}" if self.name else key] for key, _ in self.layer.named_parameters()}


@dataclass(frozen=True)
class Chain:
    """Program of a chain of layers; a :class:`tasks.stacks.program.Program`."""

    links: tuple[_Link, ...]
    objective: Objective

    def outputs(self, stack: Stack, x: Tensor) -> Tensor:
        """Return the models' outputs, [m, d, B]."""
        h = _samples_last(x)
        for link in self.links:
            h = link.forward(link.layer, link.own(stack), h)
        return h.expand(models_in(stack), -1, -1)

    def gradients(self, stack: Stack, x: Tensor, y: Tensor, weights: Tensor) -> Stack:
        """Return the gradient of each model's weighted sum of losses, by parameter."""
        leaves = {name: parameter.detach().requires_grad_() for name, parameter in stack.items()}
        outputs = self.outputs(leaves, x)
        slopes = output_gradient(self.objective, outputs.detach(), y, weights)
        found = torch.autograd.grad(outputs, list(leaves.values()), slopes)
        return dict(zip(leaves, found, strict=True))

    def descend(self, stack: Stack, x: Tensor, y: Tensor, weights: Tensor, rate: float) -> None:
        """Subtract `rate` times the gradient from the stack, in place."""
        h = _samples_last(x)
        products: list[tuple[dict[str, Tensor], Tensor]] = []  # parameters of an affine layer, and what they multiply
        outcomes: list[Tensor] = []  # and the result
        leaves: list[Tensor] = []  # parameters of all other layers
        for link in self.links:
            own = link.own(stack)
            if type(link.layer) in OPERANDS:
                operand = OPERANDS[type(link.layer)](link.layer, h)
                h = affine(own, operand).requires_grad_()
                products.append((own, operand.detach()))
                outcomes.append(h)
            else:
                own = {key: parameter.detach().requires_grad_() for key, parameter in own.items()}
                leaves += own.values()
                h = link.forward(link.layer, own, h)
        slopes = output_gradient(self.objective, h.detach(), y, weights)
        found = torch.autograd.grad(h, outcomes + leaves, slopes)
        with torch.no_grad():
            for (own, operand), gradient in zip(products, found, strict=False):
                _subtract_product(own, gradient.flatten(2), operand.flatten(2), rate)
            for leaf, gradient in zip(leaves, found[len(outcomes) :], strict=True):
                leaf.sub_(gradient, alpha=rate)


def _subtract_product(own: Mapping[str, Tensor], b: Tensor, a: Tensor, rate: float) -> None:
    """Descend along b a^T, for output gradients b [m, d_out, L] and operands a [m or 1, d_in, L]."""
    weight = own["weight"].flatten(2)  # a view, since stacks are contiguous
    if len(a) == 1:
        weight.flatten(0, 1).addmm_(b.flatten(0, 1), a[0].T, alpha=-rate)
    else:
        weight.baddbmm_(b, a.mT, alpha=-rate)
    if "bias" in own:
        own["bias"].sub_(b.sum(2), alpha=rate)


def _samples_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1)
