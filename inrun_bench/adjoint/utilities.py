"""Utilities that can be differentiated: minus the loss, a smooth stand-in for accuracy, or any function of the outputs.

Accuracy is a step function of the outputs: its derivative is zero wherever it has one. ``"expected-accuracy"`` stands
in for it, and is named as what it is: the accuracy to be expected of a classifier that draws its label from the
softmax of its outputs, which is the mean probability of the right label.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.func import vmap

from tasks.objective import Objective

__all__ = ["Utility", "utility_of_stacks"]

Utility: TypeAlias = str | Callable[[Tensor, Tensor], Tensor]
"""A name, or a function from outputs [n, ...] and targets [n, ...] of one model to a number, higher is better."""

EXPECTED_ACCURACY = "expected-accuracy"


def utility_of_stacks(utility: Utility, objective: Objective) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the utility as a function from the outputs of m models, [m, *out, n], and targets to worths, [m].

    Raises
    ------
    ValueError
        If the name is unknown, or names a utility that cannot be differentiated.
    """
    single = _named(utility, objective) if isinstance(utility, str) else utility
    batched = vmap(single, in_dims=(0, None))
    return lambda outputs, y: batched(outputs.movedim(-1, 1), y)


def _named(name: str, objective: Objective) -> Callable[[Tensor, Tensor], Tensor]:
    smooth = {"loss": objective.utilities["loss"]}
    if "accuracy" in objective.utilities:
        smooth[EXPECTED_ACCURACY] = _expected_accuracy
    if name in smooth:
        return smooth[name]
    allowed = f"utility must be one of {', '.join(map(repr, smooth))}, or a differentiable function, got {name!r}"
    if name in objective.utilities:
        raise ValueError(f"{allowed}, whose derivative is zero wherever it has one")
    raise ValueError(allowed)


def _expected_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.softmax(logits, -1).gather(-1, labels[..., None]).mean()
