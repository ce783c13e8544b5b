"""What the weight-gradient rule must know of a layer family."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from inrun_bench.attribution.costs import Price

__all__ = ["Map"]


@dataclass(frozen=True)
class Map:
    """A layer that is linear in its input and in its weight.

    Attributes
    ----------
    serves : callable
        ``(layer)``: whether the layer's settings are served.
    forward : callable
        ``(layer, a, weight, bias) -> output``.
    input_gradient : callable
        ``(layer, a, b, weight)``: gradient with respect to a.
    sample_gradients : callable
        ``(layer, a, b)`` yields slices of the batch and the weight gradients of their samples, ``[samples, *weight]``,
        in order; what it has yielded is not used once the next is asked for.
    sample_biases : callable
        ``(layer, b)``: each sample's bias gradient, [B, d_out].
    size : callable
        ``(layer, a) -> (positions, d_in, d_out)``: T and the sides of the weight as a matrix.
    price : Price
        See :mod:`inrun_bench.attribution.costs`.
    transposed : bool or None
        For a linear map, whether its weight is [d_in, d_out] and not [d_out, d_in]; None for another.
    """

    serves: Callable[[Any], bool]
    forward: Callable[[Any, Tensor, Tensor, Tensor | None], Tensor]
    input_gradient: Callable[[Any, Tensor, Tensor, Tensor], Tensor]
    sample_gradients: Callable[[Any, Tensor, Tensor], Iterator[tuple[slice, Tensor]]]
    sample_biases: Callable[[Any, Tensor], Tensor]
    size: Callable[[Any, Tensor], tuple[int, int, int]]
    price: Price
    transposed: bool | None
