"""Samples' weight gradients of convolutions in one, two and three dimensions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from inrun_bench.attribution.costs import CONVOLUTION_PRICE
from inrun_bench.attribution.weight_gradient.map import Map

__all__ = ["CONVOLUTION"]


def _serves(layer: Any) -> bool:
    """Padding that is not the convolution's own is left to the ghost rule."""
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _forward(layer: Any, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    output: Tensor = torch.convolution(
        a, weight, bias, layer.stride, layer.padding, layer.dilation, False, layer.output_padding, layer.groups
    )
    return output


def _backward(layer: Any, a: Tensor, b: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        b,
        a,
        weight,
        None,
        layer.stride,
        layer.padding,
        layer.dilation,
        False,
        layer.output_padding,
        layer.groups,
        wanted,
    )
    return found


def _input_gradient(layer: Any, a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    return _backward(layer, a, b, weight, [True, False, False])[0]


def _sample_gradients(layer: Any, a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Run the convolution's own weight-gradient product on each sample alone."""
    weight = layer.weight.detach().to(a.dtype)
    for sample in range(len(a)):
        one = slice(sample, sample + 1)
        yield one, _backward(layer, a[one], b[one], weight, [False, True, False])[1][None]


def _sample_biases(_layer: Any, b: Tensor) -> Tensor:
    return b.flatten(2).sum(2)


def _size(layer: Any, a: Tensor) -> tuple[int, int, int]:
    spans = zip(a.shape[2:], layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)
    positions = (((n + 2 * pad - gap * (k - 1) - 1) // step) + 1 for n, k, step, pad, gap in spans)
    return math.prod(positions), math.prod(layer.weight.shape[1:]), layer.out_channels


CONVOLUTION = Map(
    _serves,
    _forward,
    _input_gradient,
    _sample_gradients,
    _sample_biases,
    _size,
    price=CONVOLUTION_PRICE,
    transposed=None,
)
