"""Clipping by norm, model by model: the formula of ``torch.nn.utils.clip_grad_norm_``, differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

from tasks.stacks.stack import Stack

__all__ = ["clip_factors", "clipped"]

EPS = 1e-6  # torch's own, which it adds to the norm


def clipped(gradients: Stack, clip_norm: float) -> Stack:
    """Return each model's gradient, scaled where its norm over all parameters is above `clip_norm`."""
    factors = clip_factors(gradients, clip_norm)
    return {name: g * factors.view(-1, *[1] * (g.ndim - 1)) for name, g in gradients.items()}


def clip_factors(gradients: Stack, clip_norm: float) -> Tensor:
    """Return what each model's gradient is multiplied with, [m]: 1 where its norm is not above `clip_norm`."""
    norms = torch.stack([torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1) for g in gradients.values()])
    factors: Tensor = clip_norm / (torch.linalg.vector_norm(norms, dim=0) + EPS)
    return factors.clamp(max=1.0)
