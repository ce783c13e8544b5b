r"""The secant of Adam's step, element by element: ``adam_secant``, its choice and its twin in torch.

:mod:`inrun_bench.attribution.updates.adam` says what it is and why nothing cancels in it. In the words used here, for
one parameter at one step,

.. math::
    r(h)^2 = (k h)^2 + \text{kept}\, v, \qquad
    u(0) = \frac{\text{carried}\, m + \text{gain}\, h_0}{r(h_0) + \epsilon}, \qquad
    D = \frac{1}{r(h) + \epsilon} \left[ \text{gain} - k^2\, u(0)\, \frac{h + h_0}{r(h) + r(h_0)} \right].

In plain torch these are twenty passes over memory a parameter; the kernel of
:mod:`inrun_bench.attribution.products.triton.adam` serves all parameters at once, and reads w, g, m and v once and
writes D and u(0) once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from inrun_bench.attribution.products.backend import Backend, choose

__all__ = ["AdamNumbers", "Decay", "Moments", "adam_secant", "adam_secant_torch"]

Decay: TypeAlias = Literal["none", "coupled", "decoupled"]

Moments: TypeAlias = tuple[Tensor, Tensor]
"""The running means m of the gradient and v of its square."""

AdamNumbers: TypeAlias = Tensor | Sequence[Sequence[float]]
"""A row a parameter: k, gain, carried, kept, and the weight decay, for a decoupled one times the learning rate."""


def adam_secant(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    moments: Sequence[Moments | None],
    numbers: AdamNumbers,
    *,
    eps: float,
    decay: Decay = "none",
    backend: Backend = "auto",
) -> list[tuple[Tensor, Tensor]]:
    """Return the secant D of each parameter's step and u(0), what the step would be without a gradient.

    Parameters
    ----------
    weights, gradients : sequence of Tensor
        w and g of each parameter, of one shape.
    moments : sequence of pairs of Tensor, or None
        m and v of each, shaped like it; None before its first step.
    numbers : float64 Tensor [parameters, 5], or sequence of 5 numbers each
        k, gain, carried, kept and decay; a tensor lies on the device of the weights, and nobody need read it.
    eps : float
        What is added to roots.
    decay : {"none", "coupled", "decoupled"}
        What the weight decay, the last of `numbers`, is added to: nothing, the gradient, or the step.
    backend : {"auto", "triton", "torch"}
        See :func:`inrun_bench.attribution.products.backend.choose`.

    Returns
    -------
    list of (slope, empty), each shaped like its parameter
        D, in float32; in float64 where the weights are (in torch alone). And u(0), in the weights' dtype.

    Raises
    ------
    ValueError
        If shapes do not fit, or `decay` is unknown.

    Examples
    --------
    >>> w, g = torch.tensor([1.0]), torch.tensor([3.0])  # k = gain = 1, without state: the step is g / (|g| + eps)
    >>> adam_secant([w], [g], [None], [[1.0, 1.0, 0.0, 0.0, 0.0]], eps=1.0)
    [(tensor([0.2500]), tensor([0.]))]
    """
    if decay not in get_args(Decay):
        raise ValueError(f"decay must be one of {', '.join(map(repr, get_args(Decay)))}, got {decay!r}")
    for w, g, of_w in zip(weights, gradients, moments, strict=True):
        if any(x.shape != w.shape for x in (g, *(of_w or ()))):
            got = ", ".join(str(list(x.shape)) for x in (g, *(of_w or ())))
            raise ValueError(f"gradient and moments must be shaped like the weights, {list(w.shape)}, got {got}")
    if not weights:
        return []
    given = [*weights, *gradients, *(x for of_w in moments for x in of_w or ())]
    if choose("adam_secant", backend, *given) == "torch":
        each = zip(weights, gradients, moments, numbers, strict=True)
        return [adam_secant_torch(*of_parameter, eps, decay) for of_parameter in each]
    from inrun_bench.attribution.products.triton.adam import adam_secant_triton

    return adam_secant_triton(weights, gradients, moments, numbers, eps, decay)


def adam_secant_torch(
    weights: Tensor,
    gradient: Tensor,
    moments: Moments | None,
    numbers: Tensor | Sequence[float],
    eps: float,
    decay: Decay,
) -> tuple[Tensor, Tensor]:
    """Return D and u(0) of one parameter by element-wise passes in place, over at most five temporaries of its size.

    Half precision is computed in float32. Square roots of sums of squares are ``hypot``, so that no gradient is too
    small to be squared.
    """
    k, gain, carried, kept, decayed = numbers
    dtype = torch.promote_types(weights.dtype, torch.float32)
    w, g = weights.to(dtype), gradient.to(dtype)
    if moments is None:
        past, rest = torch.zeros_like(w), torch.zeros_like(w)
    else:
        rest = moments[0].to(dtype) * carried  # on its way to u(0)
        past = (moments[1].to(dtype) * kept).sqrt_()  # r(0)

    if decay != "coupled":
        root, root_0, both = (g * k).hypot_(past), past, g  # r(h), r(h0), h + h0
    else:
        coupled = w * decayed  # h0
        h = g + coupled
        root, root_0, both = (h * k).hypot_(past), (coupled * k).hypot_(past), h.add_(coupled)
        rest += coupled.mul_(gain)

    slope = (root + root_0).clamp_min_(torch.finfo(dtype).tiny)
    torch.div(both, slope, out=slope)
    rest /= root_0.add_(eps)
    slope *= rest
    slope *= -(k * k)
    slope += gain
    slope /= root.add_(eps)

    if decay == "decoupled":
        rest += torch.mul(w, decayed, out=root)
    return slope, rest.to(weights.dtype)
