r"""Cheaper probe products, at the price of an error that is measured: float8, and low rank. Off by default.

The "project" rule's product b Q is all that it costs. Two ways to make it cheaper:

- *float8*: b and Q are rounded to float8 (e4m3, three bits of mantissa), each row of b and each column of Q scaled to
  the format's range, and multiplied with float32 accumulation: twice the rate of bfloat16 on tensor cores that have it.
  A number is off by up to 2^-4 of itself, independently of its neighbours, so that the error of a score shrinks
  against its terms as their number grows.
- *low rank*: :math:`Q \approx U V` with r columns, by a randomised singular value decomposition (Halko, Martinsson,
  Tropp 2011, as in ``torch.svd_lowrank``): the product costs :math:`2 B T r (d_{in} + d_{out})` operations in
  place of :math:`2 B T d_{in} d_{out}`. What is lost is the part of Q outside of its leading directions; validation
  gradients of few samples, or of confident models, have few.

Each function returns the scores; :func:`score_error` says how far they are from the exact ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["float8_project_dot", "low_rank", "low_rank_project_dot", "score_error"]

FLOAT8 = torch.float8_e4m3fn
OVERSAMPLED = 8  # directions that are drawn beyond those asked for


def float8_project_dot(a: Tensor, b: Tensor, probe: Tensor) -> Tensor:
    """Return the samples' scores by a product in float8.

    Parameters
    ----------
    a, b : Tensor [B, ..., d_in], [B, ..., d_out]
        A linear map's input and output gradient.
    probe : Tensor [d_out, d_in]
        Q.

    Returns
    -------
    Tensor [B]
        In float32.

    Notes
    -----
    On a GPU with float8 tensor cores (compute capability 8.9 and later), with sides that are multiples of 16, the
    product runs on them; elsewhere the rounded numbers are multiplied in float32, which gives the same scores but for
    the order of summation, and no speed.
    """
    rows, row_scale = _rounded(b.reshape(-1, b.shape[-1]), dim=1)  # [B T, d_out], [B T, 1]
    columns, column_scale = _rounded(probe, dim=0)  # [d_out, d_in], [1, d_in]
    if _has_float8(rows, columns):
        product = torch._scaled_mm(
            rows, columns.t().contiguous().t(), row_scale, column_scale, out_dtype=torch.bfloat16
        ).float()
    else:
        product = (rows.float() @ columns.float()) * row_scale * column_scale
    return (product.reshape(len(a), -1) * a.reshape(len(a), -1).float()).sum(1)


def low_rank(probe: Tensor, rank: int, *, power_iterations: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return U [d_out, r] and V [r, d_in], the leading singular directions of a probe, with U V near it.

    Parameters
    ----------
    probe : Tensor [d_out, d_in]
        Q.
    rank : int
        r, from 1 to the smaller side.
    power_iterations : int
        Each sharpens the directions, for two more products with Q.
    seed : int
        Of the random directions to start from; torch's own random stream is left alone.
    """
    if not 1 <= rank <= min(probe.shape):
        raise ValueError(
            f"rank must lie in 1 .. {min(probe.shape)} for a probe of shape {list(probe.shape)}, got {rank}"
        )
    exact = probe.to(torch.promote_types(probe.dtype, torch.float32))
    drawn = min(rank + OVERSAMPLED, *probe.shape)
    with torch.random.fork_rng(devices=[probe.device] if probe.is_cuda else []):
        torch.manual_seed(seed)
        u, s, v = torch.svd_lowrank(exact, q=drawn, niter=power_iterations)
    return (u[:, :rank] * s[:rank]).to(probe.dtype), v[:, :rank].t().to(probe.dtype)


def low_rank_project_dot(a: Tensor, b: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return the samples' scores, float32 [B], with the probe's factors U [d_out, r] and V [r, d_in]."""
    inner = (b @ left.to(b.dtype)).float() * (a @ right.t().to(a.dtype)).float()  # [B, ..., r]
    return inner.reshape(len(a), -1).sum(1)


def score_error(scores: Tensor, exact: Tensor) -> float:
    """Return the relative error ``||scores - exact|| / ||exact||``."""
    return float((scores.double() - exact.double()).norm() / exact.double().norm())


def _rounded(matrix: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return `matrix` in float8, scaled along `dim` to the format's range, and the scales to undo it."""
    matrix = matrix.float()
    largest = matrix.abs().amax(dim, keepdim=True)
    scale = torch.where(largest > 0, largest, 1.0) / torch.finfo(FLOAT8).max
    return (matrix / scale).to(FLOAT8), scale


def _has_float8(rows: Tensor, columns: Tensor) -> bool:
    if not rows.is_cuda or torch.cuda.get_device_capability(rows.device) < (8, 9):
        return False
    return all(side % 16 == 0 for side in columns.shape)
