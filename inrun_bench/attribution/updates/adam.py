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

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from inrun_bench.attribution.products.adam_secant import AdamNumbers, Decay, adam_secant
from inrun_bench.attribution.products.backend import Backend
from inrun_bench.attribution.updates.settings import number

__all__ = ["adam_updates"]

PADDED = 8  # numbers of a parameter in a row of its own, which begins where a kernel reads fastest


def adam_updates(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    states: Sequence[Mapping[str, Any]],
    group: Mapping[str, Any],
    backend: Backend = "auto",
) -> list[tuple[Tensor, Tensor | None]]:
    """Return the secant D and u(0), None where it is zero, of parameters of one group.

    Parameters
    ----------
    weights, gradients : sequence of tensor
        Of each parameter w and its gradient g.
    states, group : mapping
        The optimiser's state of each parameter (empty before its first step) and the settings of the group, without
        ``amsgrad`` or ``maximize``.
    backend : {"auto", "triton", "torch"}
        What runs :func:`~inrun_bench.attribution.products.adam_secant.adam_secant`.
    """
    eps, decayed = float(group["eps"]), number(group["weight_decay"])
    decay: Decay = "none" if not decayed else "decoupled" if group["decoupled_weight_decay"] else "coupled"
    updates: list[tuple[Tensor, Tensor | None]] = []
    numbers_of = _numbers(weights, states, group)
    for w, g, state, numbers in zip(weights, gradients, states, numbers_of, strict=True):
        moments = (state["exp_avg"], state["exp_avg_sq"]) if state else None
        slope, empty = adam_secant(w.detach(), g, moments, numbers, eps=eps, decay=decay, backend=backend)
        updates.append((slope, empty if state or decay != "none" else None))
    return updates


def _numbers(
    weights: Sequence[Tensor], states: Sequence[Mapping[str, Any]], group: Mapping[str, Any]
) -> list[AdamNumbers]:
    """Return k, gain, carried, kept and the decay of each parameter, where its weights are.

    On a GPU they are a row of one table: an operation, or a copy, costs as much for one number as for all of them.
    """
    lr, decay = number(group["lr"]), number(group["weight_decay"])
    beta1, beta2 = (number(beta) for beta in group["betas"])
    counters = [number(state.get("step", 0)) for state in states]
    on_device = [x for x in (*counters, lr, beta1, beta2) if isinstance(x, Tensor)]
    devices = {w.device for w in weights}
    if not on_device:
        rows = [_of_step(counter + 1, lr, beta1, beta2, decay, group) for counter in counters]
        if len(devices) > 1 or not weights or not weights[0].is_cuda:
            return list(rows)
        padded = torch.tensor([row + [0.0] * (PADDED - len(row)) for row in rows], dtype=torch.float64, pin_memory=True)
        return list(padded.to(weights[0].device, non_blocking=True).unbind())
    like = on_device[0]
    t = torch.stack([x.to(like.device) if isinstance(x, Tensor) else like.new_full((), x) for x in counters]) + 1
    columns = [x if isinstance(x, Tensor) else t.new_full((), x) for x in _of_step(t, lr, beta1, beta2, decay, group)]
    table = torch.stack([column.expand(t.shape) for column in columns], 1)
    rows_of = torch.nn.functional.pad(table, (0, PADDED - len(columns))).unbind()
    return [row.to(w.device) for row, w in zip(rows_of, weights, strict=True)]


def _of_step(t: Any, lr: Any, beta1: Any, beta2: Any, decay: Any, group: Mapping[str, Any]) -> list[Any]:
    kept = 1 - beta2**t
    lr_t = lr / (1 - beta1**t)
    decayed = lr * decay if group["decoupled_weight_decay"] else decay
    return [((1 - beta2) / kept) ** 0.5, (1 - beta1) * lr_t, beta1 * lr_t, beta2 / kept, decayed]
