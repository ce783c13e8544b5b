"""Layers on a whole stack of models: the models first, the samples last.

A hidden activation of m models on B samples is held as ``[m, *features, B]``; where all models see the same one (the
data, and whatever is made of it before the first trained layer) it is held once, as ``[1, *features, B]``. In this
layout a linear layer is one product ``W h`` of the stacked weights as ``torch.nn`` stores them, without a transpose::

    [m, d_out, d_in] x [m, d_in, B]  ->  [m, d_out, B]      m products
    [m d_out, d_in] x [d_in, B]      ->  [m d_out, B]       a single one where the input is shared

and whatever runs along a few classes, channels or window positions (softmax, norms, pooling) runs over long contiguous
rows of samples. A convolution is a linear layer on the windows of its input ("im2col").

A :class:`Layer` is a forward function, and a test whether it can serve a given layer on a given input; autograd does
the backward. To support another layer, register its function here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["OPERANDS", "Forward", "affine", "find_forward", "stacked"]

Parameters: TypeAlias = Mapping[str, Tensor]
"""Parameters of one layer by their name on it, each [m, *shape]."""

Forward: TypeAlias = Callable[[Any, Parameters, Tensor], Tensor]
"""``forward(layer, parameters, h [m or 1, *features, B]) -> [m or 1, *features, B]``."""

_Pair: TypeAlias = tuple[int, ...]  # vertical, horizontal

Condition: TypeAlias = Callable[[Any, Tensor], bool]
"""``condition(layer, x)``: whether the layer is served on an input like x [B, *features], as one model sees it."""


@dataclass(frozen=True)
class Layer:
    """What is known of one type of layer."""

    forward: Forward
    condition: Condition


_LAYERS: dict[type[nn.Module], Layer] = {}


def find_forward(layer: nn.Module, x: Tensor) -> Forward | None:
    """Return the stacked forward function of `layer` for inputs like `x` [B, *features]; None where there is none."""
    known = _LAYERS.get(type(layer))
    return known.forward if known is not None and known.condition(layer, x) else None


def stacked(
    layer_type: type[nn.Module], condition: Condition = lambda _layer, _x: True
) -> Callable[[Forward], Forward]:
    """Register the decorated function for a layer type, not for its subclasses."""

    def register(forward: Forward) -> Forward:
        _LAYERS[layer_type] = Layer(forward, condition)
        return forward

    return register


def affine(parameters: Parameters, operand: Tensor) -> Tensor:
    """Return W a + b for weights [m, d_out, ...] and an operand a [m or 1, d_in, *positions, B]."""
    weight, a = parameters["weight"].flatten(2), operand.flatten(2)  # [m, d_out, d_in], [m or 1, d_in, L]
    shared = len(a) == 1
    product = (weight.flatten(0, 1) @ a[0]).view(*weight.shape[:2], -1) if shared else torch.bmm(weight, a)
    if "bias" in parameters:
        product += parameters["bias"][:, :, None]
    return product.view(*weight.shape[:2], *operand.shape[2:])


def _linear_operand(_layer: nn.Linear, h: Tensor) -> Tensor:
    return h


def _convolution_operand(layer: nn.Conv2d, h: Tensor) -> Tensor:
    assert not isinstance(layer.padding, str)  # see _plain_convolution
    vertical, horizontal = layer.padding
    padded = functional.pad(h, (0, 0, horizontal, horizontal, vertical, vertical))
    return _windows(padded, layer.kernel_size, layer.stride, layer.dilation).flatten(1, 2)


OPERANDS: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    nn.Linear: _linear_operand,
    nn.Conv2d: _convolution_operand,
}
"""Layers that are an :func:`affine` map of their weights, and what they multiply: ``operand(layer, h)``."""


def _plain_convolution(layer: nn.Conv2d, x: Tensor) -> bool:
    return x.ndim == 4 and layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


@stacked(nn.Linear, lambda _layer, x: x.ndim == 2)
@stacked(nn.Conv2d, _plain_convolution)
def _affine(layer: nn.Linear | nn.Conv2d, parameters: Parameters, h: Tensor) -> Tensor:
    return affine(parameters, OPERANDS[type(layer)](layer, h))


@stacked(nn.Identity)
def _identity(_layer: nn.Identity, _parameters: Parameters, h: Tensor) -> Tensor:
    return h


@stacked(nn.Flatten, lambda layer, _x: layer.start_dim == 1 and layer.end_dim == -1)
def _flatten(_layer: nn.Flatten, _parameters: Parameters, h: Tensor) -> Tensor:
    return h.flatten(1, -2)


@stacked(nn.ReLU)
def _relu(_layer: nn.ReLU, _parameters: Parameters, h: Tensor) -> Tensor:
    return torch.relu(h)  # never in place, whatever the layer says: h may be a leaf of autograd


@stacked(nn.Tanh)
@stacked(nn.Sigmoid)
@stacked(nn.GELU)
def _element_wise(layer: nn.Module, _parameters: Parameters, h: Tensor) -> Tensor:
    activated: Tensor = layer(h)
    return activated


@stacked(nn.AdaptiveAvgPool2d, lambda layer, x: x.ndim == 4 and layer.output_size in (1, (1, 1)))
def _global_average(_layer: nn.AdaptiveAvgPool2d, _parameters: Parameters, h: Tensor) -> Tensor:
    return h.mean((2, 3), keepdim=True)


def _plain_pooling(layer: nn.AvgPool2d | nn.MaxPool2d, x: Tensor) -> bool:
    return x.ndim == 4 and layer.padding in (0, (0, 0)) and not layer.ceil_mode


@stacked(nn.AvgPool2d, lambda layer, x: _plain_pooling(layer, x) and layer.divisor_override is None)
def _average_pooling(layer: nn.AvgPool2d, _parameters: Parameters, h: Tensor) -> Tensor:
    return _windows(h, _pair(layer.kernel_size), _pair(layer.stride)).mean(2)


@stacked(nn.MaxPool2d, lambda layer, x: _plain_pooling(layer, x) and not layer.return_indices)
def _max_pooling(layer: nn.MaxPool2d, _parameters: Parameters, h: Tensor) -> Tensor:
    windows = _windows(h, _pair(layer.kernel_size), _pair(layer.stride), _pair(layer.dilation))
    return windows.max(2).values  # of equal numbers one has the gradient, as in torch.nn; amax would share it out


@stacked(nn.LayerNorm, lambda layer, x: x.ndim == 1 + len(layer.normalized_shape))
def _layer_norm(layer: nn.LayerNorm, parameters: Parameters, h: Tensor) -> Tensor:
    return _scaled(_standardised(h, layer.eps), parameters)


@stacked(nn.GroupNorm)
def _group_norm(layer: nn.GroupNorm, parameters: Parameters, h: Tensor) -> Tensor:
    groups = h.unflatten(1, (layer.num_groups, -1)).flatten(0, 1)  # [m groups, channels / groups, ..., B]
    return _scaled(_standardised(groups, layer.eps).reshape(h.shape), parameters)


def _standardised(h: Tensor, eps: float) -> Tensor:
    """Return h [m, *features, B] with mean zero and variance one over the features of each sample."""
    features = h.flatten(1, -2)
    centred = features - features.mean(1, keepdim=True)
    return (centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + eps)).reshape(h.shape)


def _scaled(h: Tensor, parameters: Parameters) -> Tensor:
    """Return h [m or 1, *features, B] times weight plus bias, where there are any, each [m, *leading features]."""
    for name, operation in (("weight", torch.mul), ("bias", torch.add)):
        if name in parameters:
            parameter = parameters[name]
            h = operation(h, parameter.view(*parameter.shape, *(1,) * (h.ndim - parameter.ndim)))
    return h


def _windows(h: Tensor, size: _Pair, stride: _Pair, dilation: _Pair = (1, 1)) -> Tensor:
    """Return the windows of images [m, C, height, width, B]: [m, C, size, rows, columns, B], a window along axis 2."""
    height, width = h.shape[2:4]
    rows = (height - dilation[0] * (size[0] - 1) - 1) // stride[0] + 1
    gathered = h.flatten(2, 3).index_select(2, _positions(height, width, size, stride, dilation, h.device))
    windows: Tensor = gathered.unflatten(2, (size[0] * size[1], rows, -1))
    return windows


@cache
def _positions(height: int, width: int, size: _Pair, stride: _Pair, dilation: _Pair, device: torch.device) -> Tensor:
    """Return where the numbers of all windows lie in an image, int64 [size x rows x columns]."""
    image = torch.arange(height * width, dtype=torch.float64, device=device).view(1, 1, height, width)
    return functional.unfold(image, size, dilation, 0, stride).long().flatten()


def _pair(value: int | tuple[int, ...]) -> _Pair:
    return (value, value) if isinstance(value, int) else value
