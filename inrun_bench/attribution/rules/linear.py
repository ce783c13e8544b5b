"""Ghost rules of ``nn.Linear``, y = x W^T + c, of Hugging Face's ``Conv1D``, y = x W + c, and of ``nn.Bilinear``.

The weight gradient of sample i is ``sum_t b_it a_it^T``; its dot product with Q is ``sum_t b_it^T Q a_it``: project the
output gradients on the probe, then dot them with the inputs, or the other way round (the "project" rule). It costs one
product of the size of the forward pass, ``2 B T d_in d_out``, and B T times the smaller side in transient numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from inrun_bench.attribution.kernels.backend import choose
from inrun_bench.attribution.kernels.project_dot import project_dot
from inrun_bench.attribution.rules.registry import ghost_rule
from inrun_bench.attribution.rules.samples import dot

_CONV1D = "transformers.pytorch_utils.Conv1D"  # by name, since transformers need not be installed


@ghost_rule(nn.Linear, "weight")
@ghost_rule(NonDynamicallyQuantizableLinear, "weight")
def linear_weight(layer: nn.Linear, a: Tensor, b: Tensor, q: Tensor) -> Tensor:
    """Project on the weight's probe [d_out, d_in]."""
    return _projected(a, b, q)


@ghost_rule(_CONV1D, "weight")
def conv1d_weight(layer: nn.Module, a: Tensor, b: Tensor, q: Tensor) -> Tensor:
    """Project on the weight's probe [d_in, d_out]."""
    return _projected(a, b, q.T)


@ghost_rule(nn.Bilinear, "weight", inputs="all")
def bilinear_weight(layer: nn.Bilinear, a: Mapping[str, Tensor], b: Tensor, q: Tensor) -> Tensor:
    """Dot the output gradients with the bilinear form of the weight's probe [d_out, d_in1, d_in2]."""
    return dot(functional.bilinear(a["input1"].to(b.dtype), a["input2"].to(b.dtype), q.to(b.dtype)), b)


@ghost_rule(nn.Linear, "bias")
@ghost_rule(NonDynamicallyQuantizableLinear, "bias")
@ghost_rule(_CONV1D, "bias")
@ghost_rule(nn.Bilinear, "bias")
def linear_bias(layer: nn.Module, a: Tensor, b: Tensor, q: Tensor) -> Tensor:
    """Dot the output gradients with the bias's probe [d_out], at every position."""
    return dot(b, q)


def _projected(a: Tensor, b: Tensor, q: Tensor) -> Tensor:
    if choose("project_dot", "auto", a, b, q) == "triton":
        return project_dot(a, b, q, backend="triton")
    q = q.to(b.dtype)
    return dot(b @ q, a) if q.shape[1] <= q.shape[0] else dot(a.to(b.dtype) @ q.T, b)
