r"""SGD: an affine update, with one slope a parameter.

With :math:`h = \pm g + \lambda w` (minus where it maximises; :math:`\lambda` the weight decay), momentum :math:`\mu`,
dampening :math:`\tau` and buffer b, ``torch.optim.SGD`` computes

.. math::
    b' = \mu b + \kappa h, \qquad
    u = \begin{cases} \eta\, h & \text{no momentum} \\ \eta\, b' & \text{heavy ball} \\
    \eta\, (h + \mu b') & \text{Nesterov} \end{cases}

with :math:`\kappa = 1 - \tau`, except at a parameter's first step, when there is no buffer yet and torch sets
:math:`b' = h`, undampened: :math:`\kappa = 1`. Hence :math:`u(g) = \pm\gamma g + u(0)`, where the gain
:math:`\gamma` is :math:`\eta`, :math:`\eta \kappa` or :math:`\eta (1 + \mu \kappa)`, and u(0) is decay,
:math:`\gamma \lambda w`, and the momentum carried over, :math:`\eta \mu b` or :math:`\eta \mu^2 b`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from inrun_bench.attribution.updates.settings import number

__all__ = ["sgd_updates"]


def sgd_updates(
    weights: Sequence[Tensor], states: Sequence[Mapping[str, Any]], group: Mapping[str, Any]
) -> list[tuple[float | Tensor, Tensor | None]]:
    """Return the slope, a number, and u(0), None where it is zero, of parameters of one group.

    Parameters
    ----------
    weights : sequence of tensor
        Of each parameter w; an affine update does not ask for gradients.
    states, group : mapping
        The optimiser's state of each parameter (empty before its first step) and the settings of the group.
    """
    settings = tuple(number(group[key]) for key in ("lr", "weight_decay", "momentum", "dampening"))
    return [_update(w, state, group, *settings) for w, state in zip(weights, states, strict=True)]


def _update(
    weights: Tensor,
    state: Mapping[str, Any],
    group: Mapping[str, Any],
    lr: Any,
    decay: Any,
    momentum: Any,
    damping: Any,
) -> tuple[float | Tensor, Tensor | None]:
    buffer = state.get("momentum_buffer") if momentum else None
    gain, carried = lr, lr * momentum
    if momentum:
        share = 1.0 if buffer is None else 1.0 - damping
        gain = lr * (1.0 + momentum * share) if group["nesterov"] else lr * share
        carried = lr * momentum * momentum if group["nesterov"] else lr * momentum
    empty = weights.detach() * (gain * decay) if decay else None
    if buffer is not None:
        empty = buffer * carried if empty is None else empty.add_(buffer * carried)
    return (-gain if group["maximize"] else gain), empty
