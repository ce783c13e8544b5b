"""Letting autograd keep a tensor for the backward pass, as if an operation had saved it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["hold", "hooks_on_saved_tensors", "in_backward_pass", "save"]


FLAG = torch.zeros((), requires_grad=True)  # has autograd keep what it is handed with
NOTHING = torch.zeros(())


def save(tensors: Sequence[Tensor], user: str) -> Callable[[], tuple[Tensor, ...]]:
    """Hand `tensors` to autograd and return a function that gives them back, for a hook to call in a backward pass.

    Whatever hooks autograd runs on saved tensors run on these: inside an activation checkpoint they are not kept at
    all but computed again. Like autograd's own they are let go by the first backward pass that does
    not retain the graph. Errors name their `user`.
    """
    output = _Keep.apply(FLAG, *tensors)  # type: ignore[no-untyped-call]

    def read() -> tuple[Tensor, ...]:
        try:
            kept: tuple[Tensor, ...] = output.grad_fn.saved_tensors  # up to torch 2.11 a node lets go with its output
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            raise _changed(user) from error
        return kept

    return _once(read)


def hold(tensors: Sequence[Tensor], user: str) -> Callable[[], tuple[Tensor, ...]]:
    """Do the same without autograd, for what a checkpoint would not be seen to compute again."""
    held, versions = tuple(tensors), [tensor._version for tensor in tensors]

    def read() -> tuple[Tensor, ...]:
        if any(tensor._version != version for tensor, version in zip(held, versions, strict=True)):
            raise _changed(user)
        return held

    return _once(read)


def hooks_on_saved_tensors() -> Any:
    """Return what governs saved tensors now, an activation checkpoint for instance; None where nothing does."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return None if hooks is None else hooks[0]


def _once(read: Callable[[], tuple[Tensor, ...]]) -> Callable[[], tuple[Tensor, ...]]:
    """Let go of what is read once it was read in a backward pass that does not retain its graph."""
    reader = [read]

    def give_back() -> tuple[Tensor, ...]:
        if not reader:
            raise RuntimeError(
                "a layer's output was differentiated a second time; the first pass must retain its graph"
            )
        kept = reader[0]()
        if not torch._C._autograd._get_current_graph_task_keep_graph():
            reader.clear()
        return kept

    return give_back


def _changed(user: str) -> RuntimeError:
    return RuntimeError(
        f"an argument of {user} was changed in place after it was used, and scores need it as it was; write the change "
        "out of place (x = x + y and not x += y)"
    )


def in_backward_pass() -> bool:
    """Whether this runs in a backward pass: a hook, or what a checkpoint computes anew."""
    return torch._C._current_graph_task_id() != -1


class _Keep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _flag: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return NOTHING.clone()

    @staticmethod
    def backward(_ctx: Any, *_: Any) -> Any:
        raise AssertionError("nothing is ever differentiated here")
