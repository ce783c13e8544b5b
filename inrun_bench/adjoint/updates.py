r"""A recipe's optimiser as a function: state and gradient in, next state out, differentiable in both.

``torch.optim`` updates in place and outside autograd; a run that is to be differentiated needs the same arithmetic as
a function :math:`z_{t+1} = F_t(z_t, g_t)` of the state :math:`z = (w, \dots)`, weights first. With the step's learning
rate :math:`\eta`, weight decay :math:`\lambda`, momentum :math:`\mu` and t counted from 1:

.. math::
    \text{SGD:}\quad & h = g + \lambda w, \quad b' = \mu b + h, \quad w' = w - \eta b', \\
    & w' = w - \eta (h + \mu b') \text{ where it is Nesterov's}; \\
    \text{AdamW:}\quad & m' = \beta_1 m + (1 - \beta_1) g, \quad v' = \beta_2 v + (1 - \beta_2) g^2, \\
    & w' = (1 - \eta\lambda) w
    - \frac{\eta}{1 - \beta_1^t} \frac{m'}{\sqrt{v' / (1 - \beta_2^t)} + \epsilon}; \\
    \text{Adam:}\quad & \text{AdamW without decay, of } h \text{ in place of } g.

Decay is coupled in SGD and Adam (part of the gradient), decoupled in AdamW (Loshchilov, Hutter: *Decoupled Weight Decay
Regularization*, ICLR 2019, arXiv 1711.05101). Where :math:`v'` is zero no gradient has reached a weight yet; there
:math:`m'` is zero too, the factor of the root's derivative vanishes, and the derivative of the update by the gradient
is that of the quotient alone, :math:`1 / \epsilon` times the rest.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tasks import Recipe

__all__ = ["State", "first_state", "updated"]

State: TypeAlias = tuple[Tensor, ...]
"""All weights of a stack of models as one row [L], then the optimiser's averages, each [L]."""


def first_state(recipe: Recipe, weights: Tensor) -> State:
    """Return the state before the first step: `weights` [L] and averages of zero; plain SGD has none."""
    averages = 2 if recipe.optimizer != "sgd" else 1 if recipe.momentum else 0
    return weights, *(torch.zeros_like(weights) for _ in range(averages))


def updated(recipe: Recipe, step: int, n_steps: int, state: State, gradient: Tensor) -> State:
    """Return the state after a step.

    Parameters
    ----------
    recipe : Recipe
        Its optimiser is followed, with the settings that the recipe builds it with.
    step : int
        Number of the step, the first one being 0.
    n_steps : int
        Of the whole run, over which the learning rate follows its schedule.
    state : tuple of [L]
        As :func:`first_state` lays it out.
    gradient : [L]
        What the optimiser receives.

    Returns
    -------
    tuple of [L]
    """
    rule = {"sgd": _sgd, "adam": _adam, "adamw": _adamw}[recipe.optimizer]
    return rule(_settings(recipe), recipe.rate(step, n_steps), step, state, gradient)


@cache
def _settings(recipe: Recipe) -> dict[str, Any]:
    """Return what ``torch.optim`` makes of the recipe, its own defaults included."""
    return recipe.build_optimizer([torch.zeros(1)]).defaults


def _sgd(settings: dict[str, Any], rate: float, _step: int, state: State, gradient: Tensor) -> State:
    weights, *buffers = state
    direction = _with_decay(settings, weights, gradient)
    if not buffers:
        return (weights.add(direction, alpha=-rate),)
    velocity = buffers[0] * settings["momentum"] + direction
    direction = direction.add(velocity, alpha=settings["momentum"]) if settings["nesterov"] else velocity
    return weights.add(direction, alpha=-rate), velocity


def _adam(settings: dict[str, Any], rate: float, step: int, state: State, gradient: Tensor) -> State:
    return _moved(settings, rate, step, state, _with_decay(settings, state[0], gradient))


def _adamw(settings: dict[str, Any], rate: float, step: int, state: State, gradient: Tensor) -> State:
    weights, *averages = state
    return _moved(settings, rate, step, (weights * (1 - rate * settings["weight_decay"]), *averages), gradient)


def _with_decay(settings: dict[str, Any], weights: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient with coupled decay."""
    return gradient.add(weights, alpha=settings["weight_decay"]) if settings["weight_decay"] else gradient


def _moved(settings: dict[str, Any], rate: float, step: int, state: State, gradient: Tensor) -> State:
    """Move by Adam's quotient of averages, whatever has been done about decay."""
    weights, first, second = state
    beta1, beta2 = settings["betas"]
    first = first.lerp(gradient, 1 - beta1)
    second = (second * beta2).addcmul(gradient, gradient, value=1 - beta2)
    reached = second > 0
    root = torch.where(reached, torch.where(reached, second, 1.0).sqrt(), 0.0)  # its derivative at zero is none: 0
    denominator = root / (1 - beta2 ** (step + 1)) ** 0.5 + settings["eps"]
    return weights.addcdiv(first, denominator, value=-rate / (1 - beta1 ** (step + 1))), first, second
