"""Slopes that are expected of a step, before its gradient is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["ExpectedSlope", "sampled"]

SAMPLED = 2**13
"""Elements of each parameter, at most, by which slopes are certified."""


@dataclass(frozen=True)
class ExpectedSlope:
    """What one parameter's slope is expected to be: ``scale / divisor``, element by element.

    Attributes
    ----------
    scale : float or Tensor
        A number, or shaped like the parameter.
    divisor : Tensor, or None
        Shaped like the parameter; 1 where None.
    moves : tuple of (number, Tensor, divisor)
        What is expected of u(0): the sum of number times tensor over divisor.
    """

    scale: Any
    divisor: Tensor | None = None
    moves: tuple[tuple[Any, Tensor, Tensor | None], ...] = ()

    def times(self, v: Tensor, *, scaled: bool = True) -> Tensor:
        """Return ``v * scale / divisor``, or without the scale."""
        q = v if self.divisor is None else v / self.divisor
        return q * self.scale if scaled else q

    def sample(self, like: Tensor) -> Tensor:
        """Return the slope of those elements of a parameter that :func:`sampled` takes."""
        scale = sampled(self.scale) if isinstance(self.scale, Tensor) and self.scale.dim() else self.scale
        if self.divisor is not None:
            return scale / sampled(self.divisor)
        return torch.ones_like(sampled(like)) * scale


def sampled(x: Tensor) -> Tensor:
    """Return some elements of a tensor, at even distances; all where they are few."""
    step = -(-x.numel() // SAMPLED) | 1  # odd, lest it fall on one column of a matrix alone
    return x.detach().reshape(-1)[::step]
