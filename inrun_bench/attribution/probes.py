r"""Probes: the direction q such that the score of sample i is :math:`\langle g_i, q \rangle`.

Notation at one step: weights w, batch gradient :math:`g = \sum_i g_i`, update u, so that the next weights are
:math:`w - u(g)`; :math:`v(w)` and H are gradient and Hessian of the validation loss. The step game's utility,
:math:`U(S) = \ell(w - u(0)) - \ell(w - u(g_S))`, is positive where a sample helped; the formulas of the paper
(arXiv 2406.11011), whose utility is the change of the loss, have the opposite sign. D is the slope of the update, the
secant :math:`(u(g) - u(0)) / g` element by element (:mod:`~inrun_bench.attribution.updates`); for SGD, the learning
rate.

============  ==============================================================  =====================================
order         q                                                               error of the scores
============  ==============================================================  =====================================
first         :math:`D\,v(w)`                                                 O(lr^2): the curvature of the loss
second        :math:`D\,(v(w) - H\,(u(0) + \tfrac12 D g))`                    O(lr^3); exact for a quadratic loss
integrated    :math:`D \int_0^1 v(w - u(0) - s\,(u(g) - u(0)))\,ds`,          that of the diagonal (Aumann-Shapley)
              by Gauss-Legendre quadrature with 4 points                      formula; scores add up to the drop
midpoint      the same with one point                                         O(lr^3)
trapezoid     the same by v at both ends; the one after the step is that      O(lr^3)
              before the next
============  ==============================================================  =====================================

For plain SGD, u(0) = 0 and ``second`` is the paper's :math:`\eta v - \tfrac{\eta^2}{2} H g` (section 4.2); with weight
decay or momentum the step starts from w - u(0), and the term :math:`H u(0)` says so at no further cost.

The integral is the Aumann-Shapley value of the step game along the diagonal: U depends on the samples' weights x
through
:math:`\sum_i x_i g_i`, and :math:`\int_0^1 \partial_i U(s, \ldots, s)\,ds = \langle g_i, \int u'(s g)\,v(w - u(s
g))\,ds \rangle`. The slope is taken out of the integral as a secant and the path straightened, exact for updates that
are linear in g.

A probe that needs g is *late*: it is known only after the backward pass. A probe knows nothing of layers or rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from inrun_bench.attribution.updates import Update
from inrun_bench.attribution.validation import Loss

__all__ = ["PROBES", "First", "Integrated", "Probe", "Second", "Step", "Trapezoid", "scaled"]

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """What a probe may know of a step. Lists run over the trained parameters.

    Attributes
    ----------
    validation : Loss
        The validation loss as a function of the weights.
    update : Update
        u, read off the optimiser.
    before : list of tensors
        Weights w.
    gradient : list of tensors, or None
        Batch gradient g, as the optimiser receives it; None before the backward pass.
    after : list of tensors, or None
        Weights w - u(g); None before the optimiser stepped.
    """

    validation: Loss
    update: Update
    before: list[Tensor]
    gradient: list[Tensor] | None = None
    after: list[Tensor] | None = None

    @property
    def base(self) -> list[Tensor]:
        """The weights that an empty coalition leads to, w - u(0)."""
        if self.update.empty is None:
            return self.before
        return list(torch._foreach_sub(self.before, self.update.empty))


class Probe(Protocol):
    """One rule for the direction q.

    `direction` returns q without the slope D, which the engine applies: that is the same for all probes, and includes
    what was done to the gradient between the backward pass and the optimiser.
    """

    @property
    def name(self) -> str:
        """Name in tables."""

    @property
    def late(self) -> bool:
        """Whether the direction needs the batch gradient even where the slope does not."""

    def direction(self, step: Step) -> list[Tensor]:
        """Return q / D, one tensor a parameter."""


@dataclass(frozen=True)
class First:
    """q = D v(w) (paper, section 4.1: In-Run Data Shapley of first order)."""

    name: str = "first"
    late: bool = False

    def direction(self, step: Step) -> list[Tensor]:
        """Return v(w)."""
        return step.validation.gradient(step.before)[1]


@dataclass(frozen=True)
class Second:
    """q = D (v(w) - H (u(0) + D g / 2)) (paper, section 4.2), with one Hessian-vector product."""

    name: str = "second"
    late: bool = True

    def direction(self, step: Step) -> list[Tensor]:
        """Return v(w) - H (u(0) + D g / 2)."""
        assert step.gradient is not None
        path = scaled(step.gradient, [0.5 * slope for slope in step.update.slope])
        if step.update.empty is not None:
            torch._foreach_add_(path, step.update.empty)
        _, v, curvature = step.validation.gradient_and_hessian_product(path, step.before)
        return list(torch._foreach_sub(v, curvature))


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

    def direction(self, step: Step) -> list[Tensor]:
        """Return the mean of v."""
        assert step.after is not None
        nodes, weights = np.polynomial.legendre.leggauss(self.points)
        base = step.base
        mean = [torch.zeros_like(w) for w in base]
        for position, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            _, v = step.validation.gradient(list(torch._foreach_lerp(base, step.after, float(position))))
            torch._foreach_add_(mean, v, alpha=float(weight))
        return mean


@dataclass(frozen=True)
class Trapezoid:
    """q = D (v(w - u(0)) + v(w - u(g))) / 2: the integral from its two ends.

    Where u(0) = 0 (SGD without momentum and weight decay) and the validation loss is given to the engine, v at the end
    of a step is v at the beginning of the next, and a step costs one validation gradient.
    """

    name: str = "trapezoid"
    late: bool = True

    def direction(self, step: Step) -> list[Tensor]:
        """Return the mean of v at the two ends."""
        assert step.after is not None
        start, end = (step.validation.gradient(weights, keep=True)[1] for weights in (step.base, step.after))
        return list(torch._foreach_lerp(start, end, 0.5))


PROBES: dict[str, Callable[[], Probe]] = {
    "first": First,
    "second": Second,
    "integrated": Integrated,
    "midpoint": lambda: Integrated(points=1, name="midpoint"),
    "trapezoid": Trapezoid,
}


def scaled(tensors: Sequence[T], factors: Sequence[float | Tensor]) -> list[T]:
    """Return each tensor times its factor."""
    if all(isinstance(x, Tensor) for x in tensors) and len({type(factor) for factor in factors}) == 1:
        return list(torch._foreach_mul(list(tensors), list(factors)))  # type: ignore[arg-type]
    pairs: Any = zip(tensors, factors, strict=True)
    return [tensor * factor for tensor, factor in pairs]
