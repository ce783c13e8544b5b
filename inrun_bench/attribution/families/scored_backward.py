"""What a backward pass that scores its samples must know of a layer family.

Training forms the weight gradient of a linear map or convolution as a sum over samples. Formed sample by sample
instead, each sample's part can be dotted with the probe on its way into the sum (the "weight-gradient" rule)::

    G_i = b_i^T a_i,    score_i = <G_i, Q>,    weight gradient = sum_i G_i

The products are those that training needs anyway; what is added is one pass over Q a sample, while G_i is still in the
processor's cache. The weight gradient is summed in another order and may differ from the plain one in its last digits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from inrun_bench.attribution.families.costs import Price
from inrun_bench.attribution.products.backend import Backend

__all__ = ["ScoredBackward", "ScoredGradients", "WeightGradient"]


class ScoredGradients(Protocol):
    """Gradients of weight and bias, and the samples' scores, of one call of a layer."""

    def __call__(
        self, layer: Any, a: Tensor, b: Tensor, q: Tensor, q_bias: Tensor | None, backend: Backend, /
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return the gradient of the weight, that of the bias (None where `q_bias` is), and scores [V, B].

        Parameters
        ----------
        layer : torch.nn.Module
            For its settings.
        a, b : Tensor [B, ...]
            Its input and the gradient of its output, of one dtype.
        q : Tensor [V, *weight]
            The weight's probes.
        q_bias : Tensor [V, d_out] or None
            The bias's.
        backend : {"auto", "triton", "torch"}
            What runs the product, where it has a kernel.
        """


class WeightGradient(Protocol):
    """Gradients of weight and bias of one call of a layer, of the batch as a whole."""

    def __call__(self, layer: Any, a: Tensor, b: Tensor, *, with_bias: bool) -> tuple[Tensor, Tensor | None]:
        """Return the gradient of the weight and that of the bias, None unless it is asked for; as training would."""


@dataclass(frozen=True)
class ScoredBackward:
    """A layer that is linear in its input and in its weight, with a backward pass that scores.

    Attributes
    ----------
    forward : callable
        ``(layer, a, weight, bias) -> output``.
    input_gradient : callable
        ``(layer, a, b, weight)``: gradient with respect to a.
    gradients : ScoredGradients
        Gradients of weight and bias, with scores.
    weight_gradient : WeightGradient
        The same without scores.
    size : callable
        ``(layer, a) -> (positions, d_in, d_out)``: T and the sides of the weight as a matrix.
    price : Price
        See :mod:`inrun_bench.attribution.families.costs`.
    transposed : bool or None
        For a linear map, whether its weight is [d_in, d_out] and not [d_out, d_in]; None for another.
    serves : callable
        ``(layer)``: whether the layer's settings are served.
    """

    forward: Callable[[Any, Tensor, Tensor, Tensor | None], Tensor]
    input_gradient: Callable[[Any, Tensor, Tensor, Tensor], Tensor]
    gradients: ScoredGradients
    weight_gradient: WeightGradient
    size: Callable[[Any, Tensor], tuple[int, int, int]]
    price: Price
    transposed: bool | None
    serves: Callable[[Any], bool] = lambda _layer: True
