"""Samples' weight gradients of ``nn.Linear`` and of Hugging Face's ``Conv1D``, whose weight is transposed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from inrun_bench.attribution.costs import CHUNK_BYTES, LINEAR_PRICE
from inrun_bench.attribution.weight_gradient.map import Map

__all__ = ["CONV1D", "LINEAR"]


def _forward(_layer: Any, a: Tensor, weight: Tensor, bias: Tensor | None, *, transposed: bool) -> Tensor:
    return F.linear(a, weight.t() if transposed else weight, bias)


def _input_gradient(_layer: Any, _a: Tensor, b: Tensor, weight: Tensor, *, transposed: bool) -> Tensor:
    return b @ (weight.t() if transposed else weight)


def _sample_gradients(_layer: Any, a: Tensor, b: Tensor, *, transposed: bool) -> Iterator[tuple[slice, Tensor]]:
    """Multiply b_i^T a_i [d_out, d_in], or its transpose; as many samples together as the cache holds."""
    a, b = (x.reshape(len(x), -1, x.shape[-1]) for x in (a, b))  # [B, T, d]
    left, right = (a, b) if transposed else (b, a)
    left = left.transpose(1, 2)
    size = left.shape[1] * right.shape[2] * a.element_size()
    together = max(1, CHUNK_BYTES.get(a.device.type, CHUNK_BYTES["cpu"]) // size)
    buffer = a.new_empty(min(together, len(a)), left.shape[1], right.shape[2])
    for start in range(0, len(a), together):
        samples = slice(start, min(start + together, len(a)))
        out = buffer[: samples.stop - start]
        if len(out) == 1:
            torch.mm(left[start], right[start], out=out[0])
        else:
            torch.bmm(left[samples], right[samples], out=out)
        yield samples, out


def _sample_biases(_layer: Any, b: Tensor) -> Tensor:
    return b if b.dim() == 2 else b.reshape(len(b), -1, b.shape[-1]).sum(1)


def _size(layer: Any, a: Tensor, *, transposed: bool) -> tuple[int, int, int]:
    d_in, d_out = layer.weight.shape if transposed else reversed(layer.weight.shape)
    return math.prod(a.shape[1:-1]), d_in, d_out


LINEAR, CONV1D = (
    Map(
        serves=lambda _layer: True,
        forward=partial(_forward, transposed=transposed),
        input_gradient=partial(_input_gradient, transposed=transposed),
        sample_gradients=partial(_sample_gradients, transposed=transposed),
        sample_biases=_sample_biases,
        size=partial(_size, transposed=transposed),
        price=LINEAR_PRICE,
        transposed=transposed,
    )
    for transposed in (False, True)
)
