"""Batches of coalitions: which samples the models of a stack see in each step, and how much each of them counts.

Two ways to train on a coalition S. Either all models take the batches of the run on everybody, in which samples
outside S have weight zero; or each model takes batches of S alone, |S| / B of them an epoch, rounded up. The order of S
is then that of all samples without those that are absent::

    order of an epoch   4 0 5 2 1 3       B = 2
    S = {0, 1, 2, 3, 5}   0 5 | 2 1 | 3
    S = {1, 2, 4}       4 2 | 1

so that coalitions which have many samples in common also have much of their chance in common. A batch that is shorter
than those of other models is filled up with a sample of its coalition, at weight zero.

Each step is ``(index int64 [m or 1, B], weights [m, B])``: the rows of `index` are the models', or one row is
everybody's; a model's gradient is that of its weighted sum of losses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["own_batches", "shared_batches"]


def shared_batches(
    batches: Sequence[Tensor], present: Tensor, *, renormalised: bool, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the steps of models that all take the same batches.

    Parameters
    ----------
    batches : sequence of int64 [B]
        Indices of the samples of every step.
    present : bool [m, n]
        Which samples each model sees.
    renormalised : bool
        Whether the mean of a batch is over the samples present (where there are none, the gradient is zero), rather
        than over all.
    dtype : torch.dtype
        Of the weights.
    """
    counted = present.to(dtype)
    for index in batches:
        weights = counted[:, index]
        yield index[None], weights / (weights.sum(1, keepdim=True).clamp(min=1) if renormalised else len(index))


def own_batches(
    orders: Iterable[Tensor], present: Tensor, batch_size: int, *, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the steps of models that each train on their own samples alone.

    Parameters
    ----------
    orders : iterable of int64 [m, n]
        The order of all n samples in each epoch of each model.
    present : bool [m, n]
        Which samples each model sees. All models take the same number of batches an epoch.
    batch_size : int
        Samples in a batch; the last one of an epoch may have fewer.
    dtype : torch.dtype
        Of the weights.
    """
    sizes = present.sum(1, keepdim=True)
    places = torch.arange(int(sizes.max()), device=present.device)
    filled = places < sizes  # [m, size of the largest coalition]
    for order in orders:
        there = present.gather(1, order)
        first = order.gather(1, there.long().argmax(1, keepdim=True))
        members = first.repeat(1, len(places)).masked_scatter_(filled, order[there])  # both run along the rows
        for batch in places.split(batch_size):
            weights = filled[:, batch].to(dtype)
            yield members[:, batch], weights / weights.sum(1, keepdim=True)
