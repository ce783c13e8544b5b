"""Letting autograd keep a tensor for the backward pass, as if an operation had saved it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["save"]


def save(tensors: Sequence[Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """Hand `tensors` to autograd and return a function that gives them back, once.

    Whatever hooks autograd runs on saved tensors run on these: inside an activation checkpoint they are not kept at
    all but computed again.
    """
    holder = [_Keep.apply(torch.zeros((), requires_grad=True), *tensors)]  # type: ignore[no-untyped-call]

    def give_back() -> tuple[Tensor, ...]:
        kept: tuple[Tensor, ...] = holder.pop().grad_fn.saved_tensors
        return kept

    return give_back


class _Keep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, flag: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return flag.new_empty(())

    @staticmethod
    def backward(_ctx: Any, *_: Any) -> Any:
        raise AssertionError("nothing is ever differentiated here")
