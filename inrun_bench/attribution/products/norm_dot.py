"""Scores of scale and shift after a normalisation: ``layer_norm_dot`` and ``rms_norm_dot``, and their twin in torch.

A layer norm is y = weight * xhat + bias by element, xhat = (a - mean) * rstd over each row of a. Both probes together
give the derivative of y in their direction, and the score of a sample is its dot product with the gradient of y::

    score_i = sum_t <xhat_it * q_weight + q_bias, b_it>

An RMS norm is the same without mean and shift. In plain torch the derivative is a tensor of the size of a, written and
read again; the kernel of :mod:`inrun_bench.attribution.products.triton.norm` reads a and b once and writes one number a
row.
"""

from __future__ import annotations

import logging
import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from inrun_bench.attribution.products.backend import Backend, choose

__all__ = ["layer_norm_dot", "norm_dot_torch", "rms_norm_dot"]

WIDEST = 8192
"""Elements of a row that the kernel holds in registers; the twin serves wider ones."""

logger = logging.getLogger(__name__)


def layer_norm_dot(
    a: Tensor,
    b: Tensor,
    normalized_shape_dims: int,
    q_weight: Tensor | None,
    q_bias: Tensor | None,
    eps: float = 1e-5,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Return the dot products of each sample's gradients of scale and shift with their probes, summed.

    Parameters
    ----------
    a : Tensor [B, ..., *normalized]
        Inputs of ``nn.LayerNorm``.
    b : Tensor [B, ..., *normalized]
        Gradients of its outputs; of any dtype, as autocast may leave the two different.
    normalized_shape_dims : int
        How many of the last dimensions are normalised together: ``len(layer.normalized_shape)``.
    q_weight, q_bias : Tensor [*normalized] or None
        Probes of scale and shift; None for one that is not trained.
    eps : float
        The layer's.
    backend : {"auto", "triton", "torch"}
        See :func:`inrun_bench.attribution.products.backend.choose`.

    Returns
    -------
    Tensor [B]
        float32, which half precision is computed in; float64 where a or b is (in torch alone). The same bits from run
        to run.

    Raises
    ------
    ValueError
        If shapes do not fit, or there is no probe.

    Examples
    --------
    >>> a, b = torch.tensor([[0.0, 2.0], [8.0, 4.0]]), torch.tensor([[1.0, 1.0], [1.0, 2.0]])
    >>> layer_norm_dot(a, b, 1, torch.tensor([1.0, 10.0]), None, eps=0.0)
    tensor([  9., -19.])
    """
    return _norm_dot(a, b, normalized_shape_dims, q_weight, q_bias, eps, True, backend)


def rms_norm_dot(
    a: Tensor,
    b: Tensor,
    normalized_shape_dims: int,
    q_weight: Tensor,
    eps: float | None = None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Return the dot product of each sample's gradient of an RMS norm's scale with its probe.

    Parameters and outcome are those of :func:`layer_norm_dot`; `eps` None is ``nn.RMSNorm``'s, the distance from 1 to
    the next number of the precision computed in.
    """
    if eps is None:
        eps = torch.finfo(torch.promote_types(a.dtype, torch.float32)).eps
    return _norm_dot(a, b, normalized_shape_dims, q_weight, None, eps, False, backend)


def norm_dot_torch(
    a: Tensor, b: Tensor, q_weight: Tensor | None, q_bias: Tensor | None, eps: float, centred: bool
) -> Tensor:
    """Return the scores [B] of a and b [B, T, D] and probes [D]: the layer's output with the probes in their place."""
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    shape = a.shape[2:]
    weight = a.new_zeros(shape, dtype=dtype) if q_weight is None else q_weight.to(dtype)
    if centred:
        tangent = functional.layer_norm(a.to(dtype), shape, weight, None if q_bias is None else q_bias.to(dtype), eps)
    else:
        tangent = functional.rms_norm(a.to(dtype), shape, weight, eps)
    return tangent.mul_(b).flatten(1).sum(1)


def _norm_dot(
    a: Tensor,
    b: Tensor,
    dims: int,
    q_weight: Tensor | None,
    q_bias: Tensor | None,
    eps: float,
    centred: bool,
    backend: Backend,
) -> Tensor:
    _check(a, b, dims, q_weight, q_bias)
    width = math.prod(a.shape[-dims:])
    q_weight, q_bias = (None if q is None else q.reshape(width) for q in (q_weight, q_bias))
    positions = math.prod(a.shape[1:-dims])
    a, b = (x.reshape(len(x), positions, width) for x in (a, b))
    chosen = choose("norm_dot", backend, a, b, *(q for q in (q_weight, q_bias) if q is not None))
    if not a.numel():
        return a.new_zeros(len(a), dtype=torch.promote_types(a.dtype, torch.float32))
    if chosen == "triton" and width > WIDEST:
        _say_once(width)
        chosen = "torch"
    if chosen == "torch":
        return norm_dot_torch(a, b, q_weight, q_bias, eps, centred)
    from inrun_bench.attribution.products.triton.norm import norm_dot_triton

    return norm_dot_triton(a, b, q_weight, q_bias, eps, centred)


@cache
def _say_once(width: int) -> None:
    logger.debug("norm_dot: the torch twin runs, since rows of %d are wider than %d", width, WIDEST)


def _check(a: Tensor, b: Tensor, dims: int, q_weight: Tensor | None, q_bias: Tensor | None) -> None:
    if not 1 <= dims < a.dim():
        raise ValueError(
            f"normalized_shape_dims must be 1 to {a.dim() - 1}, for a has shape {list(a.shape)}, got {dims}"
        )
    if b.shape != a.shape:
        raise ValueError(f"b must be {list(a.shape)}, as a is, got {list(b.shape)}")
    if q_weight is None and q_bias is None:
        raise ValueError("q_weight or q_bias must be a tensor, got None for both")
    for name, q in (("q_weight", q_weight), ("q_bias", q_bias)):
        if q is not None and q.shape != a.shape[-dims:]:
            raise ValueError(f"{name} must be {list(a.shape[-dims:])}, as a's last dimensions, got {list(q.shape)}")
