r"""Adam and AdamW: the secant in closed form, without cancellation.

With :math:`h_0 = \lambda w` where weight decay is coupled (Adam) and 0 where it is decoupled (AdamW), torch computes,
at step t,

.. math::
    u(g) = \eta_t \frac{n(h)}{d(h)} + [\eta \lambda w]_{\text{AdamW}}, \quad h = g + h_0, \quad
    n(h) = \beta_1 m + (1 - \beta_1) h, \quad d(h) = r(h) + \epsilon, \quad
    r(h)^2 = \frac{\beta_2 v + (1 - \beta_2) h^2}{1 - \beta_2^t},

with :math:`\eta_t = \eta / (1 - \beta_1^t)`. The numerator is linear in g, and the change of the denominator is a
difference of square roots, :math:`r(h) - r(h_0) = k^2 g\,(h + h_0) / (r(h) + r(h_0))` with
:math:`k^2 = (1 - \beta_2) / (1 - \beta_2^t)`. So g divides out, and nothing is left to cancel as it goes to 0:

.. math::
    D = \frac{u(g) - u(0)}{g} = \frac{1}{d(h)} \left[ (1 - \beta_1)\, \eta_t
        - \eta_t \frac{n(h_0)}{d(h_0)} \cdot k^2 \frac{h + h_0}{r(h) + r(h_0)} \right].

The first factor after the minus sign is u(0) without decoupled decay, which is wanted anyway. The second is at most k,
for :math:`r(h) \ge k |h|`; it is 0 where both roots are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from inrun_bench.attribution.updates.settings import number

__all__ = ["adam_update"]


def adam_update(
    weights: Tensor, gradient: Tensor, state: Mapping[str, Any], group: Mapping[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """Return the secant D and u(0), None where it is zero.

    Parameters
    ----------
    weights, gradient : tensor
        One parameter w and its gradient g.
    state, group : mapping
        The optimiser's state of this parameter (empty before its first step) and the settings of its group, without
        ``amsgrad`` or ``maximize``.

    Notes
    -----
    Element-wise passes in place over at most five temporaries of the parameter's size. Half precision is computed in
    float32. Square roots of sums of squares are ``hypot``, so that no gradient is too small to be squared.
    """
    dtype = torch.promote_types(weights.dtype, torch.float32)
    w, g = weights.detach().to(dtype), gradient.to(dtype)
    lr, eps, decay = (number(group[key]) for key in ("lr", "eps", "weight_decay"))
    beta1, beta2 = (number(beta) for beta in group["betas"])
    t = number(state.get("step", 0)) + 1
    lr_t = lr / (1 - beta1**t)
    k = ((1 - beta2) / (1 - beta2**t)) ** 0.5
    coupled = w * decay if decay and not group["decoupled_weight_decay"] else None  # h0

    if state:
        past = (state["exp_avg_sq"].to(dtype) * (beta2 / (1 - beta2**t))).sqrt_()  # r(0)
        rest = state["exp_avg"].to(dtype) * (beta1 * lr_t)  # on its way to u(0)
    else:
        past, rest = torch.zeros_like(w), torch.zeros_like(w)

    if coupled is None:
        root, root_0, both = (g * k).hypot_(past), past, g  # r(h), r(h0), h + h0
    else:
        h = g + coupled
        root, root_0, both = (h * k).hypot_(past), (coupled * k).hypot_(past), h.add_(coupled)
        rest += coupled.mul_((1 - beta1) * lr_t)

    slope = (root + root_0).clamp_min_(torch.finfo(dtype).tiny)
    torch.div(both, slope, out=slope)
    rest /= root_0.add_(eps)
    slope *= rest
    slope *= -(k * k)
    slope += (1 - beta1) * lr_t
    slope /= root.add_(eps)

    if decay and group["decoupled_weight_decay"]:
        rest += torch.mul(w, lr * decay, out=root)
    return slope, rest.to(weights.dtype) if state or decay else None
