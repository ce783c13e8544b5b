"""Ghost rules of ``nn.Embedding`` and ``nn.EmbeddingBag``: look the ids up in the probe, as the layer in its table.

Some settings act on the gradient alone. The padding row gets none. ``scale_grad_by_freq`` divides a row's gradient by
the number of times that the *whole batch* names its id, so that a sample's contribution depends on its company, exactly
as in training. ``max_norm`` shrinks rows of the table before the lookup, which the rule does not read; nor does
``sparse`` matter to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from inrun_bench.attribution.families.registry import ghost_rule, gradients_of_samples
from inrun_bench.attribution.products.backend import Backend
from inrun_bench.attribution.products.embedding_dot import embedding_dot
from inrun_bench.attribution.products.sample_dot import sample_dot


@ghost_rule(nn.Embedding, "weight", takes_backend=True)
def embedding(layer: nn.Embedding, a: Tensor, b: Tensor, q: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Look up the ids a [B, ...] in the table's probe [rows, d]."""
    if layer.scale_grad_by_freq:
        ids = a.flatten().long()  # counted without bincount, which waits for the largest
        counts = ids.new_zeros(len(q)).scatter_add_(0, ids, torch.ones_like(ids))
        b = b / counts[a.long()].unsqueeze(-1)
    return embedding_dot(a, b, q, padding_idx=layer.padding_idx, backend=backend)


@gradients_of_samples(nn.Embedding)
def of_embedding(layer: nn.Embedding, a: Tensor, b: Tensor) -> dict[str, Tensor] | None:
    """Add the output gradients [B, ..., d] to the rows of tables of zeros, one a sample."""
    if layer.scale_grad_by_freq:
        return None
    b = b.to(torch.promote_types(b.dtype, torch.float32)).reshape(len(b), -1, b.shape[-1])
    ids = a.reshape(len(a), -1).long()
    if layer.padding_idx is not None:
        b = b.masked_fill((ids == layer.padding_idx).unsqueeze(-1), 0.0)
    rows = layer.num_embeddings
    tables = b.new_zeros(len(b) * rows, b.shape[-1])
    samples = torch.arange(len(b), device=b.device).unsqueeze(1)
    tables.index_add_(0, (ids + rows * samples).flatten(), b.flatten(0, 1))
    return {"weight": tables.view(len(b), rows, -1)}


@ghost_rule(nn.EmbeddingBag, "weight", inputs="all")
def embedding_bag(layer: nn.EmbeddingBag, a: Mapping[str, Any], b: Tensor, q: Tensor) -> Tensor:
    """Look up the bags, rows of ids [B, n] or ids [n] with offsets [B], in the table's probe [rows, d].

    Raises
    ------
    ValueError
        If the layer has ``scale_grad_by_freq``, where torch divides by the counts of other ids (pytorch issue 190063).
    """
    if layer.scale_grad_by_freq:
        raise ValueError(
            f"{layer} has scale_grad_by_freq=True, for which torch computes wrong gradients (pytorch issue 190063); "
            "set it to False, or use nn.Embedding and a sum"
        )
    ids, offsets, weights = a["input"], a.get("offsets"), a.get("per_sample_weights")
    if layer.mode == "max":
        return sample_dot(_rows_of_maxima(layer, ids, offsets, q), b)
    tangent = functional.embedding_bag(
        ids,
        q,
        offsets,
        mode=layer.mode,
        per_sample_weights=None if weights is None else weights.to(q.dtype),
        include_last_offset=layer.include_last_offset,
        padding_idx=layer.padding_idx,
    )
    return sample_dot(tangent, b)


def _rows_of_maxima(layer: nn.EmbeddingBag, ids: Tensor, offsets: Tensor | None, q: Tensor) -> Tensor:
    """Return q at the row where each bag, in each dimension, has its maximum: [B, d], zeros for an empty bag."""
    if offsets is None:
        offsets, ids = torch.arange(len(ids), device=ids.device) * ids.shape[1], ids.flatten()
    maximum, _, sizes, rows = torch.embedding_bag(
        layer.weight.detach(), ids, offsets, False, 2, False, None, layer.include_last_offset, layer.padding_idx
    )
    return q.gather(0, rows.clamp(min=0)).masked_fill_((sizes[: len(maximum)] == 0).unsqueeze(1), 0.0)
