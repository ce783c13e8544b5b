"""Convolutions and transposed convolutions, in one, two and three dimensions.

A convolution is linear in its kernel, so the derivative of its output in the direction Q is the convolution of the
input with Q; its dot product with the output's gradient is the score. Stride, padding and its mode, dilation and groups
are the layer's own. It costs one forward pass, and the transient numbers of one output.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from inrun_bench.attribution.families.costs import CONVOLUTION_PRICE
from inrun_bench.attribution.families.registry import ghost_rule, scores_backward
from inrun_bench.attribution.families.scored_backward import ScoredBackward
from inrun_bench.attribution.products.backend import Backend
from inrun_bench.attribution.products.sample_dot import sample_dot


@ghost_rule(nn.Conv1d, "weight")
@ghost_rule(nn.Conv2d, "weight")
@ghost_rule(nn.Conv3d, "weight")
def convolution_weight(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, a: Tensor, b: Tensor, q: Tensor) -> Tensor:
    """Convolve the input with the kernel's probe [d_out, d_in / groups, *kernel]."""
    return sample_dot(layer._conv_forward(a.to(b.dtype), q.to(b.dtype), None), b)


@ghost_rule(nn.ConvTranspose1d, "weight")
@ghost_rule(nn.ConvTranspose2d, "weight")
@ghost_rule(nn.ConvTranspose3d, "weight")
def transposed_weight(
    layer: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d, a: Tensor, b: Tensor, q: Tensor
) -> Tensor:
    """Convolve, transposed, the input with the kernel's probe [d_in, d_out / groups, *kernel].

    The output's size tells its padding, whether that came from the layer or from ``output_size`` in the call.
    """
    stride, padding, dilation = layer.stride, [int(p) for p in layer.padding], layer.dilation
    output_padding = [
        b.shape[2 + d] - (stride[d] * (a.shape[2 + d] - 1) - 2 * padding[d] + dilation[d] * (size - 1) + 1)
        for d, size in enumerate(layer.kernel_size)
    ]
    a, q = a.to(b.dtype), q.to(b.dtype)
    return sample_dot(torch.convolution(a, q, None, stride, padding, dilation, True, output_padding, layer.groups), b)


@ghost_rule(nn.Conv1d, "bias")
@ghost_rule(nn.Conv2d, "bias")
@ghost_rule(nn.Conv3d, "bias")
@ghost_rule(nn.ConvTranspose1d, "bias")
@ghost_rule(nn.ConvTranspose2d, "bias")
@ghost_rule(nn.ConvTranspose3d, "bias")
def channel_bias(layer: nn.Module, a: Tensor, b: Tensor, q: Tensor) -> Tensor:
    """Dot the output gradients with the bias's probe [d_out], at every position."""
    return sample_dot(b.flatten(2), q[:, None])


def _forward(layer: Any, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    output: Tensor = torch.convolution(
        a, weight, bias, layer.stride, layer.padding, layer.dilation, False, layer.output_padding, layer.groups
    )
    return output


def _backward(layer: Any, a: Tensor, b: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        b,
        a,
        weight,
        [layer.out_channels],
        layer.stride,
        layer.padding,
        layer.dilation,
        False,
        layer.output_padding,
        layer.groups,
        wanted,
    )
    return gradients


def _input_gradient(layer: Any, a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    return _backward(layer, a, b, weight, [True, False, False])[0]


def _gradients(
    layer: Any, a: Tensor, b: Tensor, q: Tensor, q_bias: Tensor | None, _backend: Backend
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Run the convolution's own weight-gradient product on each sample alone."""
    exact = torch.promote_types(b.dtype, torch.float32)
    directions = q.flatten(1).to(exact)
    weight = layer.weight.detach().to(a.dtype)
    gradient = torch.zeros(weight.shape, dtype=exact, device=b.device)
    scores = directions.new_empty(len(q), len(b))
    for sample in range(len(b)):
        one = slice(sample, sample + 1)
        of_sample = _backward(layer, a[one], b[one], weight, [False, True, False])[1].to(exact)
        scores[:, sample] = directions @ of_sample.flatten()
        gradient += of_sample
    if q_bias is None:
        return gradient, None, scores
    biases = b.flatten(2).sum(2, dtype=exact)  # [B, d_out]
    scores += q_bias.to(exact) @ biases.t()
    return gradient, biases.sum(0), scores


def _weight_gradient(layer: Any, a: Tensor, b: Tensor, *, with_bias: bool) -> tuple[Tensor, Tensor | None]:
    weight = layer.weight.detach().to(a.dtype)
    _, gradient, of_bias = _backward(layer, a, b, weight, [False, True, with_bias])
    return gradient, of_bias if with_bias else None


def _size(layer: Any, a: Tensor) -> tuple[int, int, int]:
    spans = zip(a.shape[2:], layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)
    positions = (((n + 2 * pad - gap * (k - 1) - 1) // step) + 1 for n, k, step, pad, gap in spans)
    return math.prod(positions), math.prod(layer.weight.shape[1:]), layer.out_channels


def _pads_itself(layer: Any) -> bool:
    """Whether padding is the convolution's own; another is left to the ghost rule."""
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


for layer_type in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
    scores_backward(
        layer_type,
        ScoredBackward(
            _forward,
            _input_gradient,
            _gradients,
            _weight_gradient,
            _size,
            CONVOLUTION_PRICE,
            None,
            serves=_pads_itself,
        ),
    )
