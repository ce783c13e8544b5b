"""How many models to stack: as many as memory allows, and on a processor no more than its caches like.

What one model of a stack takes, beyond the data, is estimated from what can be counted::

    bytes a model = c P + 2 a B + 4 o n + d

P : its parameters; c : copies of them that a step holds (the stack, gradients, optimiser state, what the optimiser
makes in between). a : what the forward pass of one sample saves for the backward pass, which holds gradients of as many
numbers; B : samples in the largest batch. o : the output of one sample; n : samples of the largest judged set, whose
outputs are held at once, with what the objective makes of them. d : data of its own, if it has any. Sets are judged B
samples at a time, so that judging takes no more activations than training did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.free_memory import free_bytes
from tasks.stacks.program import Program
from tasks.stacks.stack import Stack

__all__ = ["Footprint", "footprint", "optimizer_copies", "stack_size"]

MODELS_AT_A_TIME = 1024
LARGEST_TENSOR = (
    3 * 2**20
)  # bytes; larger ones leave the caches, and allocators fetch fresh pages for them at each step
SHARE_OF_FREE_MEMORY = 0.5  # others may want some, and this is an estimate

GRADIENT_COPIES = 2  # the stack and its gradients


@dataclass(frozen=True)
class Footprint:
    """Memory that a stack takes for each of its models, in bytes: all of it, and that of its largest tensor."""

    total: int
    largest: int


def footprint(
    program: Program, model: Stack, batch: Tensor, *, copies: int, n_judged: int, own_data: int = 0
) -> Footprint:
    """Estimate what each model of a stack takes (see the module's docstring).

    Parameters
    ----------
    program : Program
        That trains and judges.
    model : Stack
        A stack of one model.
    batch : [B, ...]
        Inputs of the largest batch.
    copies : int
        Copies of the parameters that a training step holds.
    n_judged : int
        Samples of the largest set on which models are judged.
    own_data : int
        Bytes of data that each model has for itself; what all of them share does not count.
    """
    saved: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    leaves = {name: parameter.detach().requires_grad_() for name, parameter in model.items()}
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        outputs = program.outputs(leaves, batch[None])
    for shared in (batch, *leaves.values()):
        saved.pop(shared.untyped_storage().data_ptr(), None)
    parameters = [parameter.nbytes for parameter in leaves.values()]
    judged = 4 * outputs.nbytes * n_judged // len(batch)
    return Footprint(
        total=copies * sum(parameters) + 2 * (sum(saved.values()) + outputs.nbytes) + judged + own_data,
        largest=max(*parameters, *saved.values(), outputs.nbytes),
    )


def optimizer_copies(build: Callable[[Iterable[Tensor]], torch.optim.Optimizer]) -> int:
    """Return how many copies of the parameters a step of this optimiser holds, by counting its state after one."""
    parameter = torch.zeros(2, dtype=torch.float64)  # in which any learning rate is a number
    parameter.grad = torch.zeros_like(parameter)
    optimizer = build([parameter])
    optimizer.step()
    state = sum(torch.is_tensor(v) and v.shape == parameter.shape for v in optimizer.state[parameter].values())
    return GRADIENT_COPIES + 2 + state  # two intermediate results: Adam's root of the second moment, and the quotient


def stack_size(each: Footprint, device: torch.device, memory_bytes: int | None = None) -> int:
    """Return how many models to stack on `device`.

    Parameters
    ----------
    each : Footprint
        Of one model.
    device : torch.device
        Where the stack lives.
    memory_bytes : int, optional
        What the stack may take at most. Default: half of what is free now.

    Raises
    ------
    ValueError
        If not even one model fits into `memory_bytes`.
    """
    if memory_bytes is None:
        fitting = max(1, int(SHARE_OF_FREE_MEMORY * free_bytes(device)) // each.total)
    elif memory_bytes < each.total:
        raise ValueError(
            f"memory_bytes must be at least {each.total}, what training one model is estimated to take, "
            f"got {memory_bytes}"
        )
    else:
        fitting = memory_bytes // each.total
    if device.type != "cpu":
        return fitting
    return min(fitting, MODELS_AT_A_TIME, max(1, LARGEST_TENSOR // each.largest))
