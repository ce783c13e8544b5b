"""Watching a layer inside of a compiled graph.

``torch.compile`` cannot trace Python hooks on tensors. There, the layer's output passes through an operation that
changes nothing and whose backward is opaque to the compiler: it hands the layer's input and output gradient to the
receiver named by a number, and gives the gradient on. A linear map that is scored by its weight gradient gets that
gradient from an opaque operation as well. The graph stays whole (``fullgraph=True``).
"""

from __future__ import annotations

import itertools
import sys
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

__all__ = ["announce", "expect", "graphs_made", "pass_through", "refuse", "scored_linear"]

_OWNERS: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


def announce(owner: Any) -> int:
    """Return a number under which the owner is called, as long as it lives.

    It has a method ``receive_compiled(slot, axis, a, b)``, or ``score_compiled(slot, a, b, with_bias)``, which returns
    the gradients of weight and bias, and methods that :func:`expect` calls.
    """
    number = next(_NUMBERS)
    _OWNERS[number] = owner
    return number


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def expect(owner: int, what: str, *arguments: Any) -> None:
    """Have the owner refuse a graph while it is made: what is raised in traced code is lost in a graph break."""
    asked = _OWNERS.get(owner)
    if asked is not None:
        getattr(asked, what)(*arguments)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def refuse(kind: type[Exception], message: str) -> None:
    """Refuse a graph while it is made; see :func:`expect`."""
    raise kind(message)


def graphs_made() -> int:
    """Return how many graphs have been made of whatever code."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return 0 if dynamo is None else int(dynamo.counters["stats"]["unique_graphs"])


def pass_through(output: Tensor, a: Tensor, owner: int, slot: int, axis: int) -> Tensor:
    """Return `output`; its gradient b and `a`, whose samples lie along `axis`, go to the owner in the backward pass."""
    passed: Tensor = _PassThrough.apply(output, a, owner, slot, axis)  # type: ignore[no-untyped-call]
    return passed


def scored_linear(a: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, owner: int, slot: int) -> Tensor:
    """Return a linear map of `a`; the owner forms the gradients of weight and bias in the backward pass."""
    output: Tensor = _ScoredLinear.apply(a, weight, bias, transposed, owner, slot)  # type: ignore[no-untyped-call]
    return output


class _PassThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, a: Tensor, owner: int, slot: int, axis: int) -> Tensor:
        ctx.save_for_backward(a)
        ctx.owner, ctx.slot, ctx.axis = owner, slot, axis
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, b: Tensor) -> tuple[Tensor, None, None, None, None]:
        (a,) = ctx.saved_tensors
        return _hand_over(a, b, ctx.owner, ctx.slot, ctx.axis), None, None, None, None


class _ScoredLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, a: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, owner: int, slot: int
    ) -> Tensor:
        ctx.save_for_backward(a, weight)
        ctx.has_bias = bias is not None
        ctx.transposed, ctx.owner, ctx.slot = transposed, owner, slot
        return F.linear(a, weight.t() if transposed else weight, bias)  # autocast casts

    @staticmethod
    def backward(ctx: Any, b: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None, None]:
        a, weight = ctx.saved_tensors
        for_a = b @ (weight.t() if ctx.transposed else weight).to(b.dtype)
        for_weight, for_bias = _score(a.to(b.dtype), b, weight, ctx.owner, ctx.slot, ctx.has_bias)
        return for_a.to(a.dtype), for_weight, for_bias if ctx.has_bias else None, None, None, None


@torch.library.custom_op("inrun_bench::hand_over", mutates_args=())
def _hand_over(a: Tensor, b: Tensor, owner: int, slot: int, axis: int) -> Tensor:
    watcher = _OWNERS.get(owner)
    if watcher is not None:
        watcher.receive_compiled(slot, axis, a, b)
    return b.clone()


@_hand_over.register_fake
def _(_a: Tensor, b: Tensor, _owner: int, _slot: int, _axis: int) -> Tensor:
    return torch.empty_like(b)


@torch.library.custom_op("inrun_bench::score", mutates_args=())
def _score(a: Tensor, b: Tensor, weight: Tensor, owner: int, slot: int, with_bias: bool) -> tuple[Tensor, Tensor]:
    scorer = _OWNERS.get(owner)
    if scorer is None:
        raise RuntimeError("a graph that was compiled for an engine outlived it; compile the model anew")
    for_weight, for_bias = scorer.score_compiled(slot, a, b, with_bias)
    given = b.new_empty(0) if for_bias is None else for_bias
    return for_weight.to(weight.dtype), given.to(weight.dtype)


@_score.register_fake
def _(_a: Tensor, b: Tensor, weight: Tensor, _owner: int, _slot: int, with_bias: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(weight), weight.new_empty(b.shape[-1] if with_bias else 0)
