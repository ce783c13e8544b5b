"""Objectives: the loss of one sample, and what a trained model is worth on many.

An objective is all that tells classification from regression: models, recipes, games and methods ask it and nothing
else. Whatever cannot be computed from an output (a diverged model's NaN) stays NaN: a model that predicts nothing has
no accuracy either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

__all__ = ["CLASSIFICATION", "REGRESSION", "Objective", "check_output"]


@dataclass(frozen=True)
class Objective:
    """What training minimises and validation measures.

    Attributes
    ----------
    name : str
        For messages.
    losses : callable
        From outputs [B, ...] and targets [B, ...] to the loss of each sample, [B].
    utilities : mapping of str to callable
        From outputs and targets of many samples to one number, higher is better; ``"loss"`` is minus the mean loss.
    """

    name: str
    losses: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    utilities: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]


def check_output(output: torch.Tensor, targets: torch.Tensor, n_classes: int | None) -> None:
    """Refuse a model's output [B, ...] for samples with `targets` [B, ...] that the objective cannot judge."""
    if n_classes is None:
        fits, wanted = output.numel() == targets.numel(), "one number a sample"
    else:
        fits, wanted = output.shape == (*targets.shape, n_classes), f"a number for each of {n_classes} classes"
    if not fits:
        raise ValueError(
            f"the model must return {wanted} of x [{len(targets)}, ...], got shape {list(output.shape)}; give its last "
            "layer that many outputs"
        )


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return each sample's cross-entropy in nats, [B]; that of a sequence is the mean over its positions."""
    losses = nn.functional.cross_entropy(logits.movedim(-1, 1), labels, reduction="none")
    return losses if losses.ndim == 1 else losses.flatten(1).mean(1)


def _accuracy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    right = (logits.argmax(dim=-1) == labels).double().mean()
    return torch.where(torch.isfinite(logits).all(), right, torch.nan)


def _squared_error(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (output.reshape(targets.shape) - targets).square()  # [B, 1] or [B]; a subtraction alone would broadcast


CLASSIFICATION = Objective(
    "classification",
    _cross_entropy,
    {"loss": lambda logits, labels: -_cross_entropy(logits, labels).mean(), "accuracy": _accuracy},
)

REGRESSION = Objective(
    "regression",
    _squared_error,  # R squared would be an affine function of it on a fixed set, and so adds no second utility
    {"loss": lambda output, targets: -_squared_error(output, targets).mean()},
)
