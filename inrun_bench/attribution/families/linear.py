"""``nn.Linear``, y = x W^T + c, Hugging Face's ``Conv1D``, y = x W + c, and ``nn.Bilinear``.

The weight gradient of sample i is ``sum_t b_it a_it^T``; its dot product with Q is ``sum_t b_it^T Q a_it``: project the
output gradients on the probe, then dot them with the inputs, or the other way round (the "project" rule). It costs one
product of the size of the forward pass, ``2 B T d_in d_out``, and B T times the smaller side in transient numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from inrun_bench.attribution.families.costs import LINEAR_PRICE
from inrun_bench.attribution.families.registry import ghost_rule, scores_backward
from inrun_bench.attribution.families.scored_backward import ScoredBackward
from inrun_bench.attribution.products.backend import Backend
from inrun_bench.attribution.products.project_dot import project_dot
from inrun_bench.attribution.products.sample_dot import sample_dot
from inrun_bench.attribution.products.wgrad_dot import wgrad_dot

_CONV1D = "transformers.pytorch_utils.Conv1D"  # by name, since transformers need not be installed


@ghost_rule(nn.Linear, "weight", takes_backend=True)
@ghost_rule(NonDynamicallyQuantizableLinear, "weight", takes_backend=True)
def linear_weight(layer: nn.Linear, a: Tensor, b: Tensor, q: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Project on the weight's probe [d_out, d_in]."""
    return project_dot(a, b, q, backend=backend)


@ghost_rule(_CONV1D, "weight", takes_backend=True)
def conv1d_weight(layer: nn.Module, a: Tensor, b: Tensor, q: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Project on the weight's probe [d_in, d_out]."""
    return project_dot(a, b, q.T, backend=backend)


@ghost_rule(nn.Bilinear, "weight", inputs="all")
def bilinear_weight(layer: nn.Bilinear, a: Mapping[str, Tensor], b: Tensor, q: Tensor) -> Tensor:
    """Dot the output gradients with the bilinear form of the weight's probe [d_out, d_in1, d_in2]."""
    return sample_dot(functional.bilinear(a["input1"].to(b.dtype), a["input2"].to(b.dtype), q.to(b.dtype)), b)


@ghost_rule(nn.Linear, "bias")
@ghost_rule(NonDynamicallyQuantizableLinear, "bias")
@ghost_rule(_CONV1D, "bias")
@ghost_rule(nn.Bilinear, "bias")
def linear_bias(layer: nn.Module, a: Tensor, b: Tensor, q: Tensor) -> Tensor:
    """Dot the output gradients, summed over positions, with the bias's probe [d_out]."""
    kind = torch.promote_types(b.dtype, torch.float32)
    summed = b.to(kind) if b.dim() == 2 else b.flatten(1, -2).sum(1, dtype=kind)
    return summed @ q.to(kind)


def _forward(_layer: Any, a: Tensor, weight: Tensor, bias: Tensor | None, *, transposed: bool) -> Tensor:
    return functional.linear(a, weight.t() if transposed else weight, bias)


def _input_gradient(_layer: Any, _a: Tensor, b: Tensor, weight: Tensor, *, transposed: bool) -> Tensor:
    return b @ (weight.t() if transposed else weight)


def _gradients(
    _layer: Any, a: Tensor, b: Tensor, q: Tensor, q_bias: Tensor | None, backend: Backend, *, transposed: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    gradient, *bias_gradient, scores = wgrad_dot(
        a, b, q.transpose(1, 2) if transposed else q, bias_probe=q_bias, backend=backend
    )
    return gradient.t() if transposed else gradient, next(iter(bias_gradient), None), scores


def _weight_gradient(
    _layer: Any, a: Tensor, b: Tensor, *, with_bias: bool, transposed: bool
) -> tuple[Tensor, Tensor | None]:
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    return a.t() @ b if transposed else b.t() @ a, b.sum(0) if with_bias else None


def _size(layer: Any, a: Tensor, *, transposed: bool) -> tuple[int, int, int]:
    d_in, d_out = layer.weight.shape if transposed else reversed(layer.weight.shape)
    return math.prod(a.shape[1:-1]), d_in, d_out


for layer_type in (nn.Linear, _CONV1D):
    transposed = layer_type is _CONV1D
    scores_backward(
        layer_type,
        ScoredBackward(
            forward=partial(_forward, transposed=transposed),
            input_gradient=partial(_input_gradient, transposed=transposed),
            gradients=partial(_gradients, transposed=transposed),
            weight_gradient=partial(_weight_gradient, transposed=transposed),
            size=partial(_size, transposed=transposed),
            price=LINEAR_PRICE,
            transposed=transposed,
        ),
    )
