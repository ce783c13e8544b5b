r"""Probes: the direction q such that the score of sample i is :math:`\langle g_i, q \rangle`.

Notation at one step: weights w, batch gradient :math:`g = \sum_i g_i`, update u, so that the next weights are
:math:`w - u(g)`; :math:`v(w)` and H are gradient and Hessian of the validation loss. The step game's utility,
:math:`U(S) = \ell(w - u(0)) - \ell(w - u(g_S))`, is positive where a sample helped; the formulas of the paper
(arXiv 2406.11011), whose utility is the change of the loss, have the opposite sign.

============  ==========================================================  =========================================
order         q                                                           error of the scores
============  ==========================================================  =========================================
first         :math:`D\,v(w)`, D = u' (learning rate)                     O(lr^2): the curvature of the loss
second        :math:`D\,v - \tfrac12 D H D\,g`                            O(lr^3); exact for a quadratic loss
integrated    :math:`D \int_0^1 v(w - u(0) - s\,(u(g) - u(0)))\,ds`       that of the diagonal (Aumann-Shapley)
                                                                          formula; scores add up to the drop
============  ==========================================================  =========================================

A probe that needs g is *late*: it is known only after the backward pass. A probe knows nothing of layers or rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from inrun_bench.attribution.updates import LinearUpdate
from inrun_bench.attribution.validation import ValidationLoss

__all__ = ["PROBES", "First", "Integrated", "Probe", "Second", "Step"]


@dataclass(frozen=True)
class Step:
    """What a probe may know of a step. Lists run over the trained parameters.

    Attributes
    ----------
    validation : ValidationLoss
        The validation loss as a function of the weights.
    update : LinearUpdate
        u, read off the optimiser.
    before : list of tensors
        Weights w.
    gradient : list of tensors, or None
        Batch gradient g; None before the backward pass.
    after : list of tensors, or None
        Weights w - u(g); None before the optimiser stepped.
    """

    validation: ValidationLoss
    update: LinearUpdate
    before: list[Tensor]
    gradient: list[Tensor] | None = None
    after: list[Tensor] | None = None

    @property
    def base(self) -> list[Tensor]:
        """The weights that an empty coalition leads to, w - u(0)."""
        if self.update.empty is None:
            return self.before
        return [w - u for w, u in zip(self.before, self.update.empty, strict=True)]


class Probe(Protocol):
    """One rule for the direction q."""

    @property
    def name(self) -> str:
        """Name in tables."""

    @property
    def late(self) -> bool:
        """Whether the direction needs the batch gradient."""

    def direction(self, step: Step) -> tuple[list[Tensor], float | None]:
        """Return q, one tensor a parameter, and the validation loss at w in nats where it came along, else None."""


@dataclass(frozen=True)
class First:
    """q = D v(w) (paper, section 4.1: In-Run Data Shapley of first order)."""

    name: str = "first"
    late: bool = False

    def direction(self, step: Step) -> tuple[list[Tensor], float | None]:
        """Return q; see :class:`Probe`."""
        loss, v = step.validation.gradient(step.before)
        return _scale(v, step.update.slope), loss


@dataclass(frozen=True)
class Second:
    """q = D v - D H D g / 2 (paper, section 4.2), with one Hessian-vector product of the validation loss."""

    name: str = "second"
    late: bool = True

    def direction(self, step: Step) -> tuple[list[Tensor], float | None]:
        """Return q; see :class:`Probe`."""
        assert step.gradient is not None
        moved = _scale(step.gradient, step.update.slope)
        loss, v, curvature = step.validation.gradient_and_hessian_product(moved, step.before)
        return _scale(torch._foreach_sub(v, curvature, alpha=0.5), step.update.slope), loss


@dataclass(frozen=True)
class Integrated:
    """q = D times the mean of v along the optimiser's step, by Gauss-Legendre quadrature with `points` points.

    It costs `points` validation gradients and no Hessian-vector product. With one point it is the midpoint rule.
    """

    points: int = 4
    name: str = "integrated"
    late: bool = True

    def __post_init__(self) -> None:
        if self.points < 1:
            raise ValueError(f"points must be at least 1, got {self.points}")

    def direction(self, step: Step) -> tuple[list[Tensor], float | None]:
        """Return q; see :class:`Probe`."""
        assert step.after is not None
        nodes, weights = np.polynomial.legendre.leggauss(self.points)
        base = step.base
        mean = [torch.zeros_like(w) for w in base]
        for position, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            _, v = step.validation.gradient(torch._foreach_lerp(base, step.after, float(position)))
            torch._foreach_add_(mean, v, alpha=float(weight))
        return _scale(mean, step.update.slope), None


PROBES: dict[str, Callable[[], Probe]] = {"first": First, "second": Second, "integrated": Integrated}


def _scale(tensors: Sequence[Tensor], factors: Sequence[float]) -> list[Tensor]:
    return [tensor * factor for tensor, factor in zip(tensors, factors, strict=True)]
