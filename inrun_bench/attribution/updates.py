"""What an optimiser makes of a gradient: the update u(g), with the next weights w - u(g), and its slope.

Probes need two things of it: the step that the optimiser takes with an empty coalition, u(0) (weight decay, momentum
carried over), and its slope, element by element: the secant ``(u(g) - u(0)) / g``, which for a linear update is u'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["LinearUpdate", "check_optimizer", "linear_update"]


@dataclass(frozen=True)
class LinearUpdate:
    """u(g) = empty + slope * g, the update of SGD, for every trained parameter.

    Attributes
    ----------
    slope : list of float
        The learning rate of each parameter's group.
    empty : list of tensors, or None
        u(0), shaped like the parameters; None where it is zero, so that nobody pays for it.
    """

    slope: list[float]
    empty: list[Tensor] | None


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimiser whose update is not the linear one of :class:`LinearUpdate`.

    Raises
    ------
    TypeError
        If it is not ``torch.optim.SGD``.
    ValueError
        If a parameter group has momentum, or maximises.
    """
    if type(optimizer) is not torch.optim.SGD:
        raise TypeError(f"optimizer must be torch.optim.SGD, got {type(optimizer).__name__}")
    for number, group in enumerate(optimizer.param_groups):
        for setting in ("momentum", "maximize"):
            if group[setting]:
                raise ValueError(
                    f"SGD must have {setting}={type(group[setting])()!r}, "
                    f"got {group[setting]!r} in parameter group {number}"
                )


def linear_update(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> LinearUpdate:
    """Read the update of the coming step off an SGD optimiser, at the present weights.

    Parameters
    ----------
    optimizer : torch.optim.SGD
        Over (at least) `parameters`; one that it does not hold is not moved, its slope is 0.
    parameters : mapping of str to tensor
        The trained parameters by name.
    """
    check_optimizer(optimizer)
    group_of: dict[Tensor, dict[str, Any]] = {p: group for group in optimizer.param_groups for p in group["params"]}
    groups = [group_of.get(p, {"lr": 0.0, "weight_decay": 0.0}) for p in parameters.values()]
    slope = [float(group["lr"]) for group in groups]
    decay = [float(group["lr"] * group["weight_decay"]) for group in groups]
    empty = None
    if any(decay):
        empty = [p.detach() * rate for p, rate in zip(parameters.values(), decay, strict=True)]
    return LinearUpdate(slope, empty)
