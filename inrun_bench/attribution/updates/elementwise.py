"""Whether an optimiser is element-wise: the update of one weight depends on the gradient of that weight alone.

Of torch's own we know. Any other is asked: a double of it takes three steps on made-up weights and gradients, and three
again, from the same start, with the gradients of half the elements changed. If an element whose own gradients are
unchanged ends elsewhere, even by one bit, the optimiser mixes elements. The made-up weights have the shapes of the
model's, for what counts is what the optimiser does to those: a preconditioner of matrices does no harm to vectors, and
one of large matrices none to small ones.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import (
    ASGD,
    LBFGS,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Muon,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    Rprop,
    SparseAdam,
)

from inrun_bench.attribution.updates.probed import double, take_step

__all__ = ["check_optimizer"]

KNOWN = {SGD, Adam, AdamW, RMSprop, Adagrad, Adadelta, Adamax, NAdam, RAdam, Rprop, ASGD}
REFUSED = {
    LBFGS: "it builds a search direction from the whole gradient and evaluates a closure along it",
    Muon: "it orthogonalises the momentum of each weight matrix as a whole",
    Adafactor: "it factors the second moments of each weight matrix into those of its rows and columns",
    SparseAdam: "it moves the elements that its sparse gradients name and no others, so that whether a weight "
    "moves depends on which rows the batch touched, and not on the value of its gradient",
}
STEPS = 3


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse an optimiser that is not element-wise.

    One that is not among torch's own is tried out, which takes six steps of a copy in float64, about what reading it
    three times will take. Neither it nor the global random state is changed.

    Raises
    ------
    TypeError
        If it is no ``torch.optim.Optimizer``; if one weight's update depends on the gradients of others, as in LBFGS,
        Muon, Adafactor, LARS, LAMB or Shampoo; if trying it out failed; if it holds complex parameters; or if it is
        adaptive and holds float16 ones.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    name = type(optimizer).__name__
    for kind, reason in REFUSED.items():
        if isinstance(optimizer, kind):
            raise TypeError(f"{name} is not element-wise: {reason}; use SGD, AdamW or another element-wise optimiser")
    if any(w.is_complex() for group in optimizer.param_groups for w in group["params"]):
        raise TypeError(
            f"{name} holds complex parameters, whose real and imaginary parts move apart; train them as two parameters"
        )
    held = (w for group in optimizer.param_groups for w in group["params"])
    if type(optimizer) is not SGD and any(w.dtype == torch.float16 for w in held):
        raise TypeError(
            f"{name} holds float16 parameters: squares of their gradients vanish in its state, so that its step is not "
            "what it is in any other precision, and cannot be read; train float32 parameters under torch.autocast, or "
            "bfloat16 ones"
        )
    if type(optimizer) in KNOWN:
        return
    try:
        unmixed = _keeps_elements_apart(optimizer)
    except Exception as error:
        raise TypeError(
            f"{name} cannot be read: step(), tried out on made-up weights and gradients, failed with "
            f"{type(error).__name__}: {error}"
        ) from error
    if not unmixed:
        raise TypeError(
            f"{name} is not element-wise: the update of one weight depends on the gradients of others (seen in a trial "
            "on made-up weights), so that a sample has no share of its own in a weight's move; use SGD, AdamW or "
            "another element-wise optimiser"
        )


@torch.no_grad()
def _keeps_elements_apart(optimizer: Optimizer) -> bool:
    before, after = _trial(optimizer, changed=False), _trial(optimizer, changed=True)
    return all(
        torch.allclose(one[kept], two[kept], rtol=0.0, atol=0.0, equal_nan=True)
        for number, (one, two) in enumerate(zip(before, after, strict=True))
        for kept in [~_chosen(one, number)]
    )


def _trial(optimizer: Optimizer, changed: bool) -> list[Tensor]:
    """Return the weights after some steps, with the gradients of the chosen elements changed or not."""
    other, copies = double(optimizer)
    for number, weights in enumerate(copies.values()):
        weights.copy_(_normal(weights, number))
    for step in range(1, STEPS + 1):
        for number, (original, weights) in enumerate(copies.items()):
            if original.requires_grad:
                weights.grad = _normal(weights, number + step * len(copies))
                if changed:
                    weights.grad[_chosen(weights, number)] *= -100.0
        take_step(other)
    return [weights.detach() for weights in copies.values()]


def _chosen(weights: Tensor, number: int) -> Tensor:
    """Return a chequerboard, so that every row and column of every matrix has elements of both kinds."""
    chosen = torch.tensor(number % 2 == 1, device=weights.device)
    for length in weights.shape:
        chosen = chosen[..., None] ^ (torch.arange(length, device=weights.device) % 2 == 1)
    return chosen


def _normal(like: Tensor, seed: int) -> Tensor:
    draw = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(like.shape, generator=draw, dtype=like.dtype, device=like.device)
