"""Scores of an embedding table: ``embedding_dot``, its choice and its twin in torch.

The gradient of sample i has, in the row of every id that it names, the gradient of the output there. Its dot product
with the probe looks the ids up in the probe, as the layer in its table::

    score_i = sum_t <Q[ids_it], b_it>

In plain torch the rows looked up are a tensor of the size of b, written and read again; the kernel of
:mod:`inrun_bench.attribution.products.triton.embedding` gathers and dots in one pass over b.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from inrun_bench.attribution.products.backend import Backend, choose

__all__ = ["embedding_dot", "embedding_dot_torch"]


def embedding_dot(
    ids: Tensor, b: Tensor, probe: Tensor, padding_idx: int | None = None, backend: Backend = "auto"
) -> Tensor:
    """Return the dot product of each sample's gradient of an embedding table with its probe.

    Parameters
    ----------
    ids : integer Tensor [B, ...]
        What the layer looked up.
    b : Tensor [B, ..., d]
        Gradients of its outputs; any strides, any floating dtype.
    probe : Tensor [rows, d]
        Shaped like the table.
    padding_idx : int, optional
        The row that gets no gradient; counted from the end where negative.
    backend : {"auto", "triton", "torch"}
        See :func:`inrun_bench.attribution.products.backend.choose`.

    Returns
    -------
    Tensor [B]
        float32, which half precision is computed in; float64 where b or probe is (in torch alone). The same bits from
        run to run. The kernel cannot raise for an id outside the table: the score of its sample is NaN.

    Raises
    ------
    ValueError
        If shapes do not fit, ids are not integers or padding_idx is no row.

    Examples
    --------
    >>> b = torch.tensor([[[1.0, 1.0], [1.0, 2.0]]])
    >>> embedding_dot(torch.tensor([[2, 0]]), b, torch.tensor([[1.0, 2.0], [0.0, 0.0], [10.0, 20.0]]))
    tensor([35.])
    """
    _check(ids, b, probe, padding_idx)
    if padding_idx is not None:
        padding_idx %= len(probe)
    positions = math.prod(ids.shape[1:])
    ids, b = ids.reshape(len(ids), positions), b.reshape(len(b), positions, b.shape[-1])
    if choose("embedding_dot", backend, b, probe, ids) == "torch" or not b.numel():
        return embedding_dot_torch(ids, b, probe, padding_idx)
    from inrun_bench.attribution.products.triton.embedding import embedding_dot_triton

    return embedding_dot_triton(ids, b, probe, padding_idx)


def embedding_dot_torch(ids: Tensor, b: Tensor, probe: Tensor, padding_idx: int | None) -> Tensor:
    """Return the scores [B] of ids [B, T], b [B, T, d] and probe [rows, d]."""
    exact = torch.promote_types(torch.promote_types(b.dtype, probe.dtype), torch.float32)
    rows = (functional.embedding(ids, probe).to(exact) * b).sum(2)  # [B, T]
    if padding_idx is not None:
        rows = rows.masked_fill(ids == padding_idx, 0.0)
    return rows.sum(1)


def _check(ids: Tensor, b: Tensor, probe: Tensor, padding_idx: int | None) -> None:
    if ids.dim() < 1 or ids.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"ids must be int32 or int64 [B, ...], got {ids.dtype} {list(ids.shape)}")
    if b.dim() < 2 or b.shape[:-1] != ids.shape:
        raise ValueError(f"b must be {[*ids.shape, 'd']}, for ids has shape {list(ids.shape)}, got {list(b.shape)}")
    if probe.dim() != 2 or probe.shape[1] != b.shape[-1]:
        raise ValueError(f"probe must be {['rows', b.shape[-1]]}, as wide as b, got {list(probe.shape)}")
    if padding_idx is not None and not -len(probe) <= padding_idx < len(probe):
        raise ValueError(f"padding_idx must be {-len(probe)} to {len(probe) - 1} or None, got {padding_idx}")
