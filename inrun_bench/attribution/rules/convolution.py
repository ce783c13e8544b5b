"""Ghost rules of convolutions and transposed convolutions, in one, two and three dimensions.

A convolution is linear in its kernel, so the derivative of its output in the direction Q is the convolution of the
input with Q; its dot product with the output's gradient is the score. Stride, padding and its mode, dilation and groups
are the layer's own. It costs one forward pass, and the transient numbers of one output.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from inrun_bench.attribution.rules.registry import ghost_rule
from inrun_bench.attribution.rules.samples import dot


@ghost_rule(nn.Conv1d, "weight")
@ghost_rule(nn.Conv2d, "weight")
@ghost_rule(nn.Conv3d, "weight")
def convolution_weight(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, a: Tensor, b: Tensor, q: Tensor) -> Tensor:
    """Convolve the input with the kernel's probe [d_out, d_in / groups, *kernel]."""
    return dot(layer._conv_forward(a.to(b.dtype), q.to(b.dtype), None), b)


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
    return dot(torch.convolution(a, q, None, stride, padding, dilation, True, output_padding, layer.groups), b)


@ghost_rule(nn.Conv1d, "bias")
@ghost_rule(nn.Conv2d, "bias")
@ghost_rule(nn.Conv3d, "bias")
@ghost_rule(nn.ConvTranspose1d, "bias")
@ghost_rule(nn.ConvTranspose2d, "bias")
@ghost_rule(nn.ConvTranspose3d, "bias")
def channel_bias(layer: nn.Module, a: Tensor, b: Tensor, q: Tensor) -> Tensor:
    """Dot the output gradients with the bias's probe [d_out], at every position."""
    return dot(b.flatten(2), q[:, None])
