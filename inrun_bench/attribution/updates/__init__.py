r"""What an optimiser makes of a gradient: the update u(g), element by element.

The next weights are :math:`w - u(g)`. Probes ask two things of the optimiser. What would it do with no gradient at all?
That is :math:`u(0)`: weight decay, momentum carried over. And how much does it move for what it was given? That is the
*secant*, element by element,

.. math:: D = \frac{u(g) - u(0)}{g}, \qquad D = u'(0) \text{ where } g = 0,

so that :math:`u(g) = u(0) + D g` holds exactly, whatever the optimiser. The diagonal (Aumann-Shapley) share of sample i
in the move of one weight is :math:`\int_0^1 u'(s g)\, g_i\, ds = D\, g_i`: the integral of the slope along the ray from
0 to g *is* the secant, which is why no derivative of the optimiser is ever needed.

All this supposes that an element of u depends on the same element of g alone. Optimisers that mix elements are refused
by :func:`check_optimizer`; the others are read, as they are just before ``optimizer.step()``, in one of three ways:

==============  =========================================================  ===========================================
module          optimisers                                                 how
==============  =========================================================  ===========================================
:mod:`.sgd`     SGD in all its settings                                    affine in g: the slope is a number
:mod:`.adam`    Adam, AdamW (unless ``amsgrad`` or ``maximize``)           closed form without cancellation
:mod:`.probed`  every other element-wise one, known or unknown             two steps of a copy, in float64
==============  =========================================================  ===========================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from inrun_bench.attribution.products.backend import Backend
from inrun_bench.attribution.updates.adam import adam_expected_slopes, adam_updates
from inrun_bench.attribution.updates.elementwise import check_optimizer
from inrun_bench.attribution.updates.expected import ExpectedSlope, sampled
from inrun_bench.attribution.updates.probed import probed_updates
from inrun_bench.attribution.updates.sgd import sgd_updates

__all__ = [
    "Update",
    "check_optimizer",
    "expected_slopes",
    "is_in_closed_form",
    "is_linear",
    "read_update",
    "sampled_slopes",
]

Read = tuple[float | Tensor, Tensor | None]
"""The slope of a parameter's update, and u(0)."""


@dataclass(frozen=True)
class Update:
    """u(g) = u(0) + D g for every trained parameter; lists run over the parameters.

    Attributes
    ----------
    slope : list of float or tensor
        The secant D: a number, a scalar on the device where the learning rate is one, or shaped like the parameter
        (float32 at least, since it may be as large as lr / eps).
    empty : list of tensors, or None
        u(0), shaped and typed like the parameters; None where it is zero for all, so that nobody pays for it.
    """

    slope: list[float | Tensor]
    empty: list[Tensor] | None


def is_linear(optimizer: Optimizer) -> bool:
    """Whether u is affine in g, its slope being known before the backward pass: true of SGD in all its settings."""
    return type(optimizer) is SGD


@torch.no_grad()
def read_update(
    optimizer: Optimizer,
    parameters: Mapping[str, Tensor],
    gradients: Sequence[Tensor | None] | None = None,
    *,
    backend: Backend = "auto",
) -> Update:
    """Read the update of the coming step off an element-wise optimiser, and change nothing.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        One that :func:`check_optimizer` lets pass, as it is just before its ``step()``.
    parameters : mapping of str to tensor
        The trained parameters by name, at the weights w. One that the optimiser does not hold is not moved.
    gradients : sequence of tensor or None, optional
        What the optimiser is about to take, one entry a parameter; unscaled where its fused step undoes a
        ``torch.amp.GradScaler`` itself. None for a parameter whose ``grad`` is None:
        optimisers pass over it, without decay or momentum, which is not the same as a gradient of zeros. Only a linear
        optimiser (:func:`is_linear`) can be read without `gradients`; every parameter is then taken to have one.
    backend : {"auto", "triton", "torch"}
        What runs closed forms that have a kernel, see :mod:`inrun_bench.attribution.products`.

    Returns
    -------
    Update
        Slope 0 and u(0) = 0 for a parameter that is not moved.

    Raises
    ------
    ValueError
        If `gradients` is missing and the optimiser is not linear.
    """
    weights = list(parameters.values())
    if gradients is None and not is_linear(optimizer):
        raise ValueError(
            f"gradients must be given: the slope of {type(optimizer).__name__} depends on them "
            "(only SGD can be read before the backward pass)"
        )
    given = weights if gradients is None else gradients
    slot_of = {id(w): slot for slot, (w, g) in enumerate(zip(weights, given, strict=True)) if g is not None}
    slope: list[float | Tensor] = [0.0] * len(weights)
    empty: list[Tensor | None] = [None] * len(weights)
    probed: list[int] = []
    for group in optimizer.param_groups:
        by_device: dict[torch.device, list[int]] = {}
        for slot in (slot_of[id(p)] for p in group["params"] if id(p) in slot_of):
            by_device.setdefault(weights[slot].device, []).append(slot)
        for slots in by_device.values():
            updates = _in_closed_form(optimizer, group, weights, given, slots, backend)
            if updates is None:
                probed += slots
            for slot, update in zip(slots, updates or (), strict=False):
                slope[slot], empty[slot] = update
    if probed:
        probed.sort()
        moved = [(weights[slot], g) for slot in probed if (g := given[slot]) is not None]
        updates = probed_updates(optimizer, *(list(column) for column in zip(*moved, strict=True)))
        for slot, update in zip(probed, updates, strict=True):
            slope[slot], empty[slot] = update
    if all(rest is None for rest in empty):
        return Update(slope, None)
    return Update(slope, [torch.zeros_like(w) if u is None else u for w, u in zip(weights, empty, strict=True)])


@torch.no_grad()
def expected_slopes(
    optimizer: Optimizer, parameters: Mapping[str, Tensor], last: Sequence[float | Tensor] | None
) -> list[ExpectedSlope] | None:
    """Return the slopes to be expected of the coming step, before its gradient is known.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        As for :func:`read_update`.
    parameters : mapping of str to tensor
        The trained parameters by name.
    last : sequence of float or Tensor, or None
        Slopes of the last step that was read in full, which stand for those of the coming one where nothing better is
        known.

    Returns
    -------
    list of ExpectedSlope, or None
        By parameter; None where nothing is known yet.
    """
    slot_of = {id(w): slot for slot, w in enumerate(parameters.values())}
    slopes: list[ExpectedSlope | None] = [None if last is None else ExpectedSlope(slope) for slope in last or slot_of]
    for group in optimizer.param_groups:
        own = [p for p in group["params"] if id(p) in slot_of]
        if _is_plain_adam(optimizer, group):
            states = [optimizer.state.get(p, {}) for p in own]
            for p, slope in zip(own, adam_expected_slopes(own, states, group), strict=True):
                if slope is not None:
                    slopes[slot_of[id(p)]] = slope
    held = {slot_of[id(p)] for group in optimizer.param_groups for p in group["params"] if id(p) in slot_of}
    if any(slopes[slot] is None for slot in held):
        return None
    return [ExpectedSlope(0.0) if slope is None else slope for slope in slopes]


@torch.no_grad()
def sampled_slopes(
    optimizer: Optimizer, parameters: Mapping[str, Tensor], gradients: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Return the slopes of the elements that :func:`.expected.sampled` takes.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        One of closed form (:func:`is_in_closed_form`).
    parameters, gradients
        As for :func:`read_update`.

    Returns
    -------
    list of Tensor or None
        By parameter; None for one that is not moved.
    """
    slot_of = {id(w): slot for slot, w in enumerate(parameters.values())}
    slopes: list[Tensor | None] = [None] * len(slot_of)
    for group in optimizer.param_groups:
        for p in group["params"]:
            slot = slot_of.get(id(p))
            g = None if slot is None else gradients[slot]
            if slot is None or g is None:
                continue
            whole = optimizer.state.get(p, {})
            state = {name: sampled(x) if name.startswith("exp_avg") else x for name, x in whole.items()}
            slopes[slot] = adam_updates([sampled(p)], [sampled(g)], [state], group, "torch")[0][0]
    return slopes


def is_in_closed_form(optimizer: Optimizer) -> bool:
    """Whether the slope of one element can be read without those of others, and foreseen: true of Adam and AdamW."""
    return all(_is_plain_adam(optimizer, group) for group in optimizer.param_groups)


def _is_plain_adam(optimizer: Optimizer, group: Mapping[str, Any]) -> bool:
    """Whether there is a closed form of the steps of a group."""
    return type(optimizer) in (Adam, AdamW) and not group["amsgrad"] and not group["maximize"]


def _in_closed_form(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    slots: Sequence[int],
    backend: Backend,
) -> Sequence[Read] | None:
    """Return the updates of some parameters of a group, all on one device; None where there is no closed form."""
    moved = [weights[slot] for slot in slots]
    states = [optimizer.state.get(w, {}) for w in moved]
    if type(optimizer) is SGD:
        return sgd_updates(moved, states, group)
    if _is_plain_adam(optimizer, group):
        received = [g for slot in slots if (g := gradients[slot]) is not None]
        return adam_updates(moved, received, states, group, backend)
    return None
