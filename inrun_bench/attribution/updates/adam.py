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
from inrun_bench.attribution.updates.expected import ExpectedSlope, sampled
from inrun_bench.attribution.updates.settings import number

__all__ = ["adam_expected_slopes", "adam_updates"]

UNTOUCHED = 1e-4  # of the root mean square of gradients: what an element that had none stays below


def adam_updates(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    states: Sequence[Mapping[str, Any]],
    group: Mapping[str, Any],
    backend: Backend = "auto",
) -> list[tuple[Tensor, Tensor | None]]:
    """Return the secant D and u(0), None where it is zero, of parameters of one group and on one device.

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
    moments = [(state["exp_avg"], state["exp_avg_sq"]) if state else None for state in states]
    read = adam_secant(
        [w.detach() for w in weights],
        gradients,
        moments,
        _numbers(weights, states, group),
        eps=eps,
        decay=decay,
        backend=backend,
    )
    return [
        (slope, empty if of_w is not None or decay != "none" else None)
        for (slope, empty), of_w in zip(read, moments, strict=True)
    ]


def adam_expected_slopes(
    weights: Sequence[Tensor], states: Sequence[Mapping[str, Any]], group: Mapping[str, Any]
) -> list[ExpectedSlope | None]:
    r"""Return the slope that the state lets expect of the coming step, None for a parameter before its first one.

    It is that of a gradient whose square is the running mean,
    :math:`(1 - \beta_1)\,\eta_t / (\sqrt{\hat v} + \epsilon)`. Elements that have had next to no gradient so far
    (embeddings of words that have not occurred) are taken to get one of the size that others have, for the first time.
    """
    lr, beta1, beta2, decay = (number(x) for x in (group["lr"], *group["betas"], group["weight_decay"]))
    expected: list[ExpectedSlope | None] = []
    for w, state in zip(weights, states, strict=True):
        if "exp_avg_sq" not in state:
            expected.append(None)
            continue
        t = number(state["step"])
        whole, kept = 1 - beta2**t, 1 - beta2 ** (t + 1)
        root = state["exp_avg_sq"].to(torch.promote_types(w.dtype, torch.float32)).sqrt()  # of whole times what counts
        usual = sampled(root).square().mean().sqrt()
        root.masked_fill_(root < UNTOUCHED * usual, usual * ((1 - beta2) / kept) ** 0.5)
        root.add_(group["eps"] * whole**0.5)
        lr_t = lr / (1 - beta1 ** (t + 1))
        carried = beta1 * lr_t * (kept / beta2) ** 0.5  # over the root of what is kept of the mean
        moves = [(carried, state["exp_avg"], root)]
        if decay:
            if group["decoupled_weight_decay"]:
                moves.append((lr * decay, w.detach(), None))
            else:
                moves.append(((1 - beta1) * lr_t * decay * whole**0.5, w.detach(), root))
        expected.append(ExpectedSlope((1 - beta1) * lr_t * whole**0.5, root, tuple(moves)))
    return expected


def _numbers(weights: Sequence[Tensor], states: Sequence[Mapping[str, Any]], group: Mapping[str, Any]) -> AdamNumbers:
    """Return k, gain, carried, kept and the decay of each parameter, where its weights are.

    On a GPU they are one table: an operation, or a copy, costs as much for one number as for all of them.
    """
    device = weights[0].device
    settings = [number(x) for x in (group["lr"], *group["betas"], group["weight_decay"])]
    counters = [state.get("step", 0) for state in states]
    if not any(isinstance(x, Tensor) and x.device.type != "cpu" for x in (*settings, *counters)):
        rows = [_of_step(group, number(counter) + 1, *settings) for counter in counters]
        if device.type != "cuda":
            return rows
        return torch.tensor(rows, dtype=torch.float64).pin_memory().to(device, non_blocking=True)

    def placed(x: Any) -> Tensor:
        there: Tensor = x.detach() if isinstance(x, Tensor) else torch.full((), float(x), device=device)
        return there.to(device).reshape(())

    t = torch.stack([placed(counter) for counter in counters]).double() + 1
    columns = _of_step(group, t, *(placed(x) if isinstance(x, Tensor) else x for x in settings))
    columns = [x if isinstance(x, Tensor) else torch.full((), x, dtype=t.dtype, device=device) for x in columns]
    return torch.stack([column.expand(t.shape) for column in columns], 1)


def _of_step(group: Mapping[str, Any], t: Any, lr: Any, beta1: Any, beta2: Any, decay: Any) -> list[Any]:
    kept = 1 - beta2**t
    lr_t = lr / (1 - beta1**t)
    decayed = lr * decay if group["decoupled_weight_decay"] else decay
    return [((1 - beta2) / kept) ** 0.5, (1 - beta1) * lr_t, beta1 * lr_t, beta2 / kept, decayed]
