"""What a step does to the validation loss to first order, <v, x>: of an empty coalition, and on the way to sums."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inrun_bench.attribution.step import StepBegun, StepReceived
from inrun_bench.attribution.transfer import gathered

__all__ = ["dots_of_each", "first_order_empty", "validation_gradients"]


def validation_gradients(begun: StepBegun) -> list[Tensor]:
    """Return v at the weights of a step, [validation sets, *parameter] by parameter."""
    if begun.queries is not None:
        return list(begun.queries.gradients().tensors.values())
    of_sets = [loss.gradient(begun.weights)[1] for loss in begun.losses.values()]
    return [v[0][None] if len(v) == 1 else torch.stack(v) for v in zip(*of_sets, strict=True)]


def first_order_empty(begun: StepBegun, received: StepReceived, gradients: Sequence[Tensor] | None = None) -> Tensor:
    """Return what the step does with an empty coalition, <v, u(0)>, in nats, float64 [validation sets].

    `gradients` are v, as :func:`validation_gradients` returns them, where they are at hand.
    """
    moves = received.update.empty
    if moves is None:
        return torch.zeros(len(begun.losses), dtype=torch.float64, device=begun.device)
    pairs = zip(validation_gradients(begun) if gradients is None else gradients, moves, strict=True)
    return gathered([dots_of_each(v, u) for v, u in pairs]).sum(0).to(begun.device)


def dots_of_each(x: Tensor, y: Tensor) -> Tensor:
    """Return the dot products, float64 [sets], of x [sets, *parameter] and y, shaped like the parameter."""
    return torch.mv(x.reshape(len(x), -1), y.to(x.dtype).reshape(-1)).double()
