"""Scores by projecting one side of a linear map on the probe: ``project_dot``, its choice and its twin in torch.

The weight gradient of sample i is ``sum_t b_it a_it^T``, and its dot product with Q [d_out, d_in] is a row-wise one::

    score_i = sum_t <Q^T b_it, a_it> = sum_t <Q a_it, b_it>

One product of the size of the forward pass, ``2 B T d_in d_out`` operations: for T = 1, where no rule does less, and
for a probe that is known only after the backward pass. In plain torch the product is stored, B T times the smaller
side; the kernel of :mod:`inrun_bench.attribution.products.triton.project` reduces it where it is formed, in registers.
Both contract over the larger side, which leaves fewer numbers to reduce.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inrun_bench.attribution.products.backend import Backend, choose
from inrun_bench.attribution.products.shapes import InputPrecision, by_position, check_precision, check_sides

__all__ = ["project_dot", "project_dot_torch"]


def project_dot(
    a: Tensor,
    b: Tensor,
    probe: Tensor,
    *,
    lengths: Tensor | None = None,
    input_precision: InputPrecision = "ieee",
    backend: Backend = "auto",
) -> Tensor:
    """Return the dot product of each sample's weight gradient with the probe, or with each of several probes.

    Parameters
    ----------
    a : Tensor [B, T, d_in] or [B, d_in]
        Inputs of the linear map; any strides.
    b : Tensor [B, T, d_out] or [B, d_out]
        Gradients of its outputs.
    probe : Tensor [d_out, d_in] or [V, d_out, d_in]
        Rounded to the dtype of the side that it is multiplied with; scaled to the range of float16, where that is it.
    lengths : integer Tensor [B], optional
        Positions t >= lengths[i] of sample i are padding and are not read into the scores, whatever they hold.
    input_precision : {"ieee", "tf32", "tf32x3"}
        How the kernel multiplies float32 numbers; the twin follows torch's own setting.
    backend : {"auto", "triton", "torch"}
        See :func:`inrun_bench.attribution.products.backend.choose`.

    Returns
    -------
    Tensor [B] or [V, B]
        float32; float64 where a and b are (in torch alone). The same bits from run to run.

    Raises
    ------
    ValueError
        If shapes do not fit, or `input_precision` is unknown.

    Examples
    --------
    >>> a, b = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0], [-1.0]])
    >>> project_dot(a, b, torch.tensor([[10.0, 1.0]]))
    tensor([ 12., -34.])
    """
    _check(a, b, probe, lengths, input_precision)
    several = probe.dim() == 3
    a, b = by_position(a), by_position(b)
    probe = probe if several else probe[None]
    # x [B, T, depth] is multiplied, y [B, T, width] dotted, probe [V, depth, width]
    x, y, probe = (b, a, probe) if b.shape[-1] >= a.shape[-1] else (a, b, probe.transpose(1, 2))
    probe, scale = _fitted(probe, x.dtype)
    tensors = (x, y, probe) if lengths is None else (x, y, probe, lengths)
    empty = not (x.numel() and y.numel() and probe.numel())
    if choose("project_dot", backend, *tensors) == "torch" or empty:
        scores = project_dot_torch(x, y, probe, lengths)
    else:
        from inrun_bench.attribution.products.triton.project import project_dot_triton

        scores = project_dot_triton(x, y, probe, lengths, input_precision)
    scores = scores if scale is None else scores * scale
    return scores if several else scores[0]


def project_dot_torch(x: Tensor, y: Tensor, probe: Tensor, lengths: Tensor | None) -> Tensor:
    """Return the scores [V, B] of x [B, T, depth], y [B, T, width] and probe [V, depth, width], one probe at a time."""
    exact = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    scores = probe.new_empty(probe.shape[0], x.shape[0], dtype=exact)
    padding = None if lengths is None else torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
    for number, direction in enumerate(probe.unbind()):
        products = (x @ direction).to(exact) * y
        of_probe = products.sum((1, 2)) if padding is None else products.sum(2).masked_fill_(padding, 0.0).sum(1)
        scores[number] = of_probe
    return scores


def _fitted(probe: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return the probe in the dtype, and what to multiply the scores with: a validation gradient is below float16."""
    if dtype != torch.float16 or probe.dtype == torch.float16 or not probe.numel():
        return probe.to(dtype), None
    scale = probe.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
    return (probe / scale).to(dtype), scale.float()


def _check(a: Tensor, b: Tensor, probe: Tensor, lengths: Tensor | None, input_precision: str) -> None:
    check_sides(a, b)
    matrix = (b.shape[-1], a.shape[-1])
    if probe.dim() not in (2, 3) or probe.shape[-2:] != matrix:
        raise ValueError(f"probe must be {list(matrix)} or {['V', *matrix]}, got {list(probe.shape)}")
    if lengths is not None and (lengths.shape != (len(a),) or lengths.is_floating_point()):
        raise ValueError(f"lengths must be integers [{len(a)}], got {lengths.dtype} {list(lengths.shape)}")
    check_precision(input_precision)
