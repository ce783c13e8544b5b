r"""Any element-wise optimiser: let a double of it take the step.

An optimiser is a program, and whatever it computes can be seen by running it on a copy of all that it reads: weights,
state, settings. Two such steps give the update without a gradient and with one,

.. math:: u(0) = w - w'_0, \qquad D = \frac{u(\tilde g) - u(0)}{\tilde g},

where :math:`\tilde g = g`, except that a small value takes the place of elements that are too small to divide by:
:math:`|\tilde g| \ge 10^{-5}` times the root mean square of the parameter's gradient. The copies are in float64, so
:math:`u = w - w'` is off by :math:`10^{-16} |w|`. Where :math:`|u|` is :math:`10^{-3} |w|` (a large step) to
:math:`10^{-6} |w|` (a small one), the secant of an element at the threshold then keeps 8 to 5 digits; and the value put
in place of a smaller one shifts the secant of a smooth update by some :math:`10^{-5}` of itself. A larger threshold
would add to the second error, a smaller one to the first. It also bounds the slope of updates with a jump at g = 0
(sign descent), whose secant has no bound.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from inrun_bench.attribution.transfer import gathered, to_host

__all__ = ["double", "probed_updates", "take_step"]

SMALLEST = 1e-5  # of |g|, relative to its root mean square; see above
LEFT_ALONE = {"step", "param_groups", "defaults"}  # fused kernels read these in float32
NOT_DOUBLED = {"step", "grad_scale", "found_inf"}


def probed_updates(
    optimizer: Optimizer, weights: Sequence[Tensor], gradients: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor | None]]:
    """Return the secant D and u(0), None where it is zero for all, of each parameter.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Left as it is, with its state, its parameters and the global random state.
    weights, gradients : sequence of tensor
        Some of its parameters, and the gradient of each; all others are taken to have none.

    Notes
    -----
    Two steps of the optimiser, in float64, and copies of all its parameters and state, one set at a time. On a GPU the
    host waits for them, to learn whether any u(0) is not zero: where none is, nobody pays for its validation loss.
    """
    gradients = [_divisible(_copy(g.to_dense() if g.is_sparse else g)) for g in gradients]
    rests = _moves(optimizer, weights, [torch.zeros_like(g) for g in gradients])
    moves = _moves(optimizer, weights, gradients)
    moving = to_host(gathered([rest.any() for rest in rests]).any())()
    updates = []
    for w, g, rest, move in zip(weights, gradients, rests, moves, strict=True):
        slope = move.sub_(rest).div_(g).to(torch.promote_types(w.dtype, torch.float32))
        updates.append((slope, rest.to(w.dtype) if moving else None))
    return updates


def double(optimizer: Optimizer) -> tuple[Optimizer, dict[Tensor, Tensor]]:
    """Return an optimiser that works like `optimizer` on float64 copies, and the copy of each parameter.

    Everything that the optimiser holds is copied, another optimiser that it wraps included, so that a step of the
    double is seen by nobody. It has no hooks, no instance attribute ``step`` (a learning-rate scheduler puts a function
    there that is bound to the original), and nothing of a ``GradScaler``: its gradients are unscaled ones.
    """
    known = {id(tensor): _copy(tensor) for tensor in _working_tensors(vars(optimizer))}  # deepcopy takes these
    copies = {w: _copy(w) for group in optimizer.param_groups for w in group["params"]}
    known |= {id(w): twin.requires_grad_(w.requires_grad and w.is_leaf) for w, twin in copies.items()}
    held = {k: type(v)() if k.endswith("_hooks") else v for k, v in vars(optimizer).items() if k not in NOT_DOUBLED}
    other: Optimizer = object.__new__(type(optimizer))
    vars(other).update(copy.deepcopy(held, known))
    return other, copies


def take_step(optimizer: Optimizer) -> None:
    """Let a double take its step: the step of its class, without the hooks that torch adds for all optimisers."""
    step: Any = type(optimizer).step
    devices = {w.device for group in optimizer.param_groups for w in group["params"] if w.device.type == "cuda"}
    with torch.random.fork_rng(devices):
        (step.__wrapped__ if getattr(step, "hooked", False) else step)(optimizer)


def _moves(optimizer: Optimizer, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return u of each gradient, float64."""
    other, copies = double(optimizer)
    for w, g in zip(weights, gradients, strict=True):
        copies[w].grad = g.clone()  # optimisers may write on it
    take_step(other)
    return [_copy(w).sub_(copies[w].detach()) for w in weights]


def _divisible(gradient: Tensor) -> Tensor:
    scale = gradient.square().mean().sqrt()
    least = SMALLEST * torch.where(scale > 0, scale, torch.ones_like(scale))
    return torch.where(gradient.abs() < least, least.copysign(gradient), gradient)


def _working_tensors(held: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors of an optimiser's state, wherever it keeps them."""
    if isinstance(held, Optimizer):
        held = vars(held)
    if isinstance(held, Tensor):
        if held.is_floating_point():
            yield held
    elif isinstance(held, Mapping):
        for name, value in held.items():
            if not (isinstance(name, str) and name in LEFT_ALONE):
                yield from _working_tensors(value)
    elif isinstance(held, (list, tuple)):
        for value in held:
            yield from _working_tensors(value)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float64, copy=True)
