"""Scores out of the weight gradient's own products (the "weight-gradient" rule).

Training forms the weight gradient of a linear map or convolution as a sum over samples. Formed sample by sample
instead, each sample's part can be dotted with the probe on its way into the sum::

    G_i = b_i^T a_i,    score_i = <G_i, Q>,    weight gradient = sum_i G_i

The products are those that training needs anyway; what is added is one pass over Q a sample, while G_i is still in the
processor's cache. The layer's own backward pass is replaced, so that nothing is multiplied twice; the weight gradient
is summed in another order and may differ from the plain one in its last digits.

The rule needs the probe during the backward pass; a late one is served by the ghost rules of
:mod:`inrun_bench.attribution.rules`. Which of the two a call of a layer takes, :mod:`inrun_bench.attribution.costs`
says.

One file a layer family: a :class:`Map` says how the layer computes, how its input's gradient and how the samples'
weight gradients are formed, a few samples at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inrun_bench.attribution.kernels.backend import Backend, choose
from inrun_bench.attribution.kernels.wgrad_dot import wgrad_dot
from inrun_bench.attribution.rules.registry import by_type
from inrun_bench.attribution.weight_gradient.convolution import CONVOLUTION
from inrun_bench.attribution.weight_gradient.linear import CONV1D, LINEAR
from inrun_bench.attribution.weight_gradient.map import Map

__all__ = ["Map", "Scored", "find_map", "scored_call", "scored_gradients"]

MAPS: dict[type[nn.Module] | str, Map] = {
    nn.Linear: LINEAR,
    "transformers.pytorch_utils.Conv1D": CONV1D,
    nn.Conv1d: CONVOLUTION,
    nn.Conv2d: CONVOLUTION,
    nn.Conv3d: CONVOLUTION,
}


def find_map(layer: nn.Module) -> Map | None:
    """Return how the layer's weight gradient is formed sample by sample, or None where that is not known."""
    found = by_type(MAPS, layer)
    return found if found is not None and found.serves(layer) else None


@dataclass(frozen=True)
class Scored:
    """Where the scores of one call go.

    Attributes
    ----------
    layer, map : the layer and its :class:`Map`
    weight_key, bias_key : str or None
        The parameters' names among the model's; None for one that is absent or not trained.
    probes : sequence of mappings
        Of parameters' names to directions, one mapping a validation set.
    receive : callable
        Takes the scores, [probes, B], in the backward pass.
    backend : {"auto", "triton", "torch"}
        What forms a linear map's gradient, see :mod:`inrun_bench.attribution.kernels`.
    """

    layer: Any
    map: Map
    weight_key: str
    bias_key: str | None
    probes: Sequence[Mapping[str, Any]]
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
        return call.map.forward(call.layer, a, cast, None if bias is None else bias.to(kind))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, b: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        call: Scored = ctx.call
        a, weight = ctx.saved_tensors
        weight_kind, bias_kind = ctx.kinds
        for_a = call.map.input_gradient(call.layer, a, b, weight) if ctx.needs_input_grad[0] else None
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
    if (
        call.map.transposed is not None
        and len(call.probes) == 1
        and choose("wgrad_dot", call.backend, a, b) == "triton"
    ):
        return _by_kernel(call, a, b, with_bias=with_bias)
    directions = _rows([probe[call.weight_key] for probe in call.probes])
    scores = directions.new_empty(len(call.probes), len(b))
    total = torch.zeros(call.layer.weight.shape, dtype=b.dtype, device=b.device)
    for samples, gradients in call.map.sample_gradients(call.layer, a, b):
        flat = gradients.reshape(len(gradients), -1).to(directions.dtype)
        torch.mm(directions, flat.t(), out=scores[:, samples])
        total += gradients[0] if len(gradients) == 1 else gradients.sum(0)
    for_bias = None
    if with_bias:
        by_sample = call.map.sample_biases(call.layer, b)  # [B, d_out]
        for_bias = by_sample.sum(0)
        if call.bias_key is not None:
            directions = _rows([probe[call.bias_key] for probe in call.probes])
            scores += directions @ by_sample.to(directions.dtype).t()
    call.receive(scores)
    return total, for_bias


def _by_kernel(call: Scored, a: Tensor, b: Tensor, *, with_bias: bool) -> tuple[Tensor, Tensor | None]:
    """Do the same in one kernel, for one probe."""
    (probe,) = call.probes
    q = probe[call.weight_key]
    q = q.t() if call.map.transposed else q
    if not with_bias:
        total, scores = wgrad_dot(a, b, q, backend=call.backend)
        for_bias = None
    else:
        bias_q = q.new_zeros(len(q)) if call.bias_key is None else probe[call.bias_key]
        total, for_bias, scores = wgrad_dot(a, b, q, bias_probe=bias_q, backend=call.backend)
    call.receive(scores[None])
    return total.t() if call.map.transposed else total, for_bias


def _rows(directions: Sequence[Tensor]) -> Tensor:
    rows = [direction.reshape(1, -1) for direction in directions]
    return rows[0] if len(rows) == 1 else torch.cat(rows)
