"""An optimiser's settings and counters, which torch allows to be tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["number"]


def number(value: Any) -> Any:
    """Return a setting or a step counter as a number; one on a GPU stays there, as reading it would wait for it."""
    if isinstance(value, Tensor) and value.device.type != "cpu":
        return value.detach().double().squeeze()
    return float(value)
