"""Which axis of a layer's input and output numbers the samples of the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

__all__ = ["BatchAxis", "Doubt", "batch_first", "find_axis", "repeated"]

BatchAxis: TypeAlias = int | Literal["folded"] | None
"""None: no axis does, the layer sees positions and no samples; ``"folded"``: the first axis numbers samples and
positions, samples slowest."""


@dataclass(frozen=True)
class Doubt:
    """What speaks against a batch axis, if `wrong` (a flag on the layer's device) is true."""

    wrong: Tensor
    error: ValueError


def find_axis(
    name: str, declared: BatchAxis, certain: bool, a: Any, output: Tensor, size: int
) -> tuple[BatchAxis, Doubt | None]:
    """Return the batch axis of one call of a layer, and what its input's numbers may say against it.

    Parameters
    ----------
    name : str
        The layer's name, for messages.
    declared : BatchAxis
        What the user, or else the layer's rule, says.
    certain : bool
        Whether the user says so. Otherwise, calls with positions (0, 1, 2, ..., as embeddings of them are) and calls
        whose first axis has length 1 are taken for calls without a batch axis.
    a : Any
        The layer's first input.
    output : Tensor
        The layer's output.
    size : int
        Number of samples.

    Raises
    ------
    ValueError
        If the declared axis does not number that many samples. The doubt's: if what the layer was called with may
        number both.
    """
    if declared is None:
        return None, None
    axis = 0 if declared == "folded" else declared
    length = output.shape[axis] if output.dim() > axis else -1
    whole = isinstance(a, Tensor) and not a.is_floating_point() and a.dim() > 0
    if length == size or (declared == "folded" and length % size == 0):
        if size == 1 or certain or not whole or a.dim() > 1:
            return declared, None
        error = ValueError(
            f"layer {name!r} was called with 0 .. {size - 1}, which may number the batch's samples or positions; "
            f"say which, with batch_axis={{{name!r}: 0}} or batch_axis={{{name!r}: None}}"
        )
        return declared, Doubt(_counts(a), error)
    if not certain and output.shape[0] == 1:
        return None, None
    error = ValueError(
        f"index names {size} samples, but layer {name!r} returned a tensor of shape {list(output.shape)}, whose axis "
        f"{axis} does not number them; name the axis that does with batch_axis={{layer: axis}} (None where the layer "
        "sees positions and no samples, 'folded' where the first axis numbers samples and positions, samples slowest)"
    )
    if certain or not whole:
        raise error
    return None, Doubt(~_counts(a), error)


def batch_first(tensor: Tensor, axis: BatchAxis) -> Tensor:
    """Return `tensor` with the batch, folded or not, as its first axis."""
    return tensor.movedim(axis, 0) if isinstance(axis, int) and axis else tensor


def repeated(tensor: Tensor, size: int) -> Tensor:
    """Return a tensor without a batch axis, the same for every sample, with one in front; it takes no memory."""
    one = tensor[0] if tensor.dim() and tensor.shape[0] == 1 else tensor
    return one.expand(size, *one.shape)


def _counts(a: Tensor) -> Tensor:
    """Return whether the numbers are 0, 1, 2, ..."""
    return (a == torch.arange(a.shape[-1], device=a.device)).all()
