"""Watching a layer inside of a compiled graph.

``torch.compile`` cannot trace Python hooks on tensors. There, the layer's output passes through an operation that
changes nothing and whose backward is opaque to the compiler: it hands the layer's input and output gradient to the
receiver named by a number, and gives the gradient on. The graph stays whole (``fullgraph=True``).
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["announce", "pass_through"]

_RECEIVERS: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


def announce(owner: Any) -> int:
    """Return a number under which ``owner.receive_compiled(slot, a, b)`` is called, as long as the owner lives."""
    number = next(_NUMBERS)
    _RECEIVERS[number] = owner
    return number


def pass_through(output: Tensor, a: Tensor, owner: int, slot: int) -> Tensor:
    """Return `output`; its gradient b and `a` go to the owner's receiver in the backward pass."""
    passed: Tensor = _PassThrough.apply(output, a, owner, slot)  # type: ignore[no-untyped-call]
    return passed


class _PassThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, a: Tensor, owner: int, slot: int) -> Tensor:
        ctx.save_for_backward(a)
        ctx.owner, ctx.slot = owner, slot
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, b: Tensor) -> tuple[Tensor, None, None, None]:
        (a,) = ctx.saved_tensors
        return _hand_over(a, b, ctx.owner, ctx.slot), None, None, None


@torch.library.custom_op("inrun_bench::hand_over", mutates_args=())
def _hand_over(a: Tensor, b: Tensor, owner: int, slot: int) -> Tensor:
    receiver: Callable[[int, Tensor, Tensor], None] | None = getattr(_RECEIVERS.get(owner), "receive_compiled", None)
    if receiver is not None:
        receiver(slot, a, b)
    return b.clone()


@_hand_over.register_fake
def _(_a: Tensor, b: Tensor, _owner: int, _slot: int) -> Tensor:
    return torch.empty_like(b)
