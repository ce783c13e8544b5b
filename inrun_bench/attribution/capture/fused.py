"""Linear maps and convolutions that are run with a backward pass of ours, which scores their samples.

The layer's own backward pass is replaced, so that nothing is multiplied twice; how a family's gradients are formed is
told by its :class:`~inrun_bench.attribution.families.scored_backward.ScoredBackward`. The rule needs the probe during
the backward pass; a late one is served by the ghost rules of :mod:`inrun_bench.attribution.families`. Which of the two
a call of a layer takes, :mod:`inrun_bench.attribution.families.costs` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inrun_bench.attribution.directions import Direction, multiplied_out
from inrun_bench.attribution.families.scored_backward import ScoredBackward
from inrun_bench.attribution.products.backend import Backend

__all__ = ["Scored", "scored_call", "scored_gradients"]


@dataclass(frozen=True)
class Scored:
    """Where the scores of one call go.

    Attributes
    ----------
    layer, how : the layer and its :class:`ScoredBackward`
    weight_key, bias_key : str or None
        The parameters' names among the model's; None for one that is absent or not trained.
    probes : sequence of mappings
        Of parameters' names to directions, one mapping a validation set.
    receive : callable
        Takes the scores, [probes, B], in the backward pass.
    backend : {"auto", "triton", "torch"}
        What forms a linear map's gradient, see :mod:`inrun_bench.attribution.products.backend`.
    """

    layer: Any
    how: ScoredBackward
    weight_key: str
    bias_key: str | None
    probes: Sequence[Direction]
    receive: Callable[[Tensor], None]
    backend: Backend = "auto"


def scored_call(call: Scored, a: Tensor) -> Tensor:
    """Return the layer's output for the input `a`; its backward pass brings gradients and scores together."""
    output: Tensor = _WithScores.apply(a, call.layer.weight, call.layer.bias, call)  # type: ignore[no-untyped-call]
    return output


class _WithScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, weight: Tensor, bias: Tensor | None, call: Scored) -> Tensor:
        device = a.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else a.dtype
        a, cast = a.to(kind), weight.to(kind)
        ctx.call = call
        ctx.save_for_backward(a, cast)
        ctx.kinds = (weight.dtype, None if bias is None else bias.dtype)
        return call.how.forward(call.layer, a, cast, None if bias is None else bias.to(kind))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, b: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        call: Scored = ctx.call
        a, weight = ctx.saved_tensors
        weight_kind, bias_kind = ctx.kinds
        for_a = call.how.input_gradient(call.layer, a, b, weight) if ctx.needs_input_grad[0] else None
        for_weight, for_bias = scored_gradients(call, a, b, with_bias=ctx.needs_input_grad[2])
        return for_a, for_weight.to(weight_kind), None if for_bias is None else for_bias.to(bias_kind), None


def scored_gradients(call: Scored, a: Tensor, b: Tensor, *, with_bias: bool) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of weight and bias, and hand the scores that come along to the call's receiver.

    Parameters
    ----------
    call : Scored
        The layer, its probes and the receiver.
    a, b : Tensor
        The layer's input and the gradient of its output, of one dtype.
    with_bias : bool
        Whether the bias's gradient is asked for; its scores are added where its key is given.
    """
    q = _stacked(call.probes, call.weight_key)
    q_bias = None
    if with_bias:
        key = call.bias_key
        q_bias = q.new_zeros(len(q), len(call.layer.bias)) if key is None else _stacked(call.probes, key)
    gradient, bias_gradient, scores = call.how.gradients(call.layer, a, b, q, q_bias, call.backend)
    call.receive(scores)
    return gradient, bias_gradient


def _stacked(probes: Sequence[Direction], key: str) -> Tensor:
    tensors = [multiplied_out(probe[key]) for probe in probes]
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)
