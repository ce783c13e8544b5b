"""Ghost rules of the layers that normalise, then scale and shift: y = weight * normalised(x) + bias.

They are linear in weight and bias, which act only after the normalisation: the derivative of the output in the
direction of both probes is the layer with the probes in their place, one fused pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from inrun_bench.attribution.families.registry import ghost_rule, gradients_of_samples
from inrun_bench.attribution.products.backend import Backend
from inrun_bench.attribution.products.norm_dot import layer_norm_dot, rms_norm_dot
from inrun_bench.attribution.products.sample_dot import sample_dot


@ghost_rule(nn.LayerNorm, "weight", "bias", takes_backend=True)
def layer_norm(layer: nn.LayerNorm, a: Tensor, b: Tensor, *q: Tensor | None, backend: Backend = "auto") -> Tensor:
    """Normalise over the last dimensions, and scale by the probes, shaped like those."""
    return layer_norm_dot(a, b, len(layer.normalized_shape), q[0], q[1], layer.eps, backend=backend)


@ghost_rule(nn.RMSNorm, "weight", takes_backend=True)
def rms_norm(layer: nn.RMSNorm, a: Tensor, b: Tensor, q: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Divide by the root mean square over the last dimensions, and scale by the probe, shaped like those."""
    return rms_norm_dot(a, b, len(layer.normalized_shape), q, layer.eps, backend=backend)


@ghost_rule(nn.GroupNorm, "weight", "bias")
def group_norm(layer: nn.GroupNorm, a: Tensor, b: Tensor, *q: Tensor | None) -> Tensor:
    """Normalise over groups of channels, and scale by the probes [C]."""
    return sample_dot(functional.group_norm(a.to(b.dtype), layer.num_groups, *_scale_and_shift(b, *q), layer.eps), b)


@gradients_of_samples(nn.LayerNorm)
def of_layer_norm(layer: nn.LayerNorm, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Sum the normalised input times b, and b, over positions."""
    dims = len(layer.normalized_shape)
    a, b = _in_single(a, b)
    return _of_scale_and_shift(functional.layer_norm(a, layer.normalized_shape, eps=layer.eps), b, 1, a.dim() - dims)


@gradients_of_samples(nn.RMSNorm)
def of_rms_norm(layer: nn.RMSNorm, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Sum the normalised input times b over positions."""
    dims = len(layer.normalized_shape)
    eps = torch.finfo(torch.promote_types(a.dtype, torch.float32)).eps if layer.eps is None else layer.eps
    a, b = _in_single(a, b)
    normalised = functional.rms_norm(a, layer.normalized_shape, eps=eps)
    return {"weight": _of_scale_and_shift(normalised, b, 1, a.dim() - dims)["weight"]}


@gradients_of_samples(nn.GroupNorm)
def of_group_norm(layer: nn.GroupNorm, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Sum the normalised input times b, and b, over what lies behind the channels."""
    a, b = _in_single(a, b)
    return _of_scale_and_shift(functional.group_norm(a, layer.num_groups, eps=layer.eps), b, 2, a.dim())


def _in_single(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    kind = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return a.to(kind), b.to(kind)


def _of_scale_and_shift(normalised: Tensor, b: Tensor, start: int, end: int) -> dict[str, Tensor]:
    """Return gradients of weight and bias, summed over the axes from `start` to `end`."""
    axes = tuple(range(start, end))
    product = normalised.mul_(b)
    return {"weight": product.sum(axes) if axes else product, "bias": b.sum(axes) if axes else b}


@ghost_rule(nn.InstanceNorm1d, "weight", "bias")
@ghost_rule(nn.InstanceNorm2d, "weight", "bias")
@ghost_rule(nn.InstanceNorm3d, "weight", "bias")
def instance_norm(
    layer: nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d, a: Tensor, b: Tensor, *q: Tensor | None
) -> Tensor:
    """Normalise every channel by its own statistics, or by the running ones in eval mode; scale by the probes [C]."""
    if layer.training or layer.running_mean is None:
        # without the running statistics, which it would update once more
        return sample_dot(
            functional.instance_norm(a.to(b.dtype), None, None, *_scale_and_shift(b, *q), eps=layer.eps), b
        )
    return batch_norm(layer, a, b, *q)


@ghost_rule(nn.BatchNorm1d, "weight", "bias")
@ghost_rule(nn.BatchNorm2d, "weight", "bias")
@ghost_rule(nn.BatchNorm3d, "weight", "bias")
@ghost_rule(nn.SyncBatchNorm, "weight", "bias")
def batch_norm(layer: Any, a: Tensor, b: Tensor, *q: Tensor | None) -> Tensor:
    """Normalise by the running statistics, as in eval mode, and scale by the probes [C].

    Raises
    ------
    ValueError
        If the layer normalises by the batch's statistics, which couple its samples.
    """
    if layer.training or layer.running_mean is None:
        raise ValueError(
            f"{layer} normalises by the statistics of the batch, which couple its samples; put it in eval mode with "
            "track_running_stats=True, or replace it by nn.GroupNorm"
        )
    mean, variance = layer.running_mean, layer.running_var
    affine = _scale_and_shift(mean, *q)  # as precise as the statistics
    return sample_dot(functional.batch_norm(a.to(b.dtype), mean, variance, *affine, eps=layer.eps), b)


def _scale_and_shift(like: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return both probes in the dtype of `like`; zeros for a None, which torch would read as a weight of ones."""
    trained = bias if weight is None else weight
    assert trained is not None
    weight, bias = (torch.zeros_like(trained) if q is None else q for q in (weight, bias))
    return weight.to(like.dtype), bias.to(like.dtype)
