"""Which axis of a layer's input and output numbers the samples of the batch."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

__all__ = ["BatchAxis", "batch_first", "find_axis", "repeated"]

BatchAxis: TypeAlias = int | Literal["folded"] | None
"""None: no axis does, the layer sees positions and no samples; ``"folded"``: the first axis numbers samples and
positions, samples slowest."""


def find_axis(name: str, declared: BatchAxis, certain: bool, a: Any, output: Tensor, size: int) -> BatchAxis:
    """Return the batch axis of one call of a layer.

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
        If the declared axis does not number that many samples, or what the layer was called with may number both.
    """
    if declared is None:
        return None
    axis = 0 if declared == "folded" else declared
    length = output.shape[axis] if output.dim() > axis else -1
    if length == size or (declared == "folded" and length % size == 0):
        if size > 1 and not certain and isinstance(a, Tensor) and a.dim() == 1 and _positions(a):
            raise ValueError(
                f"layer {name!r} was called with 0 .. {size - 1}, which may number the batch's samples or positions; "
                f"say which, with batch_axis={{{name!r}: 0}} or batch_axis={{{name!r}: None}}"
            )
        return declared
    if not certain and (output.shape[0] == 1 or _positions(a)):
        return None
    raise ValueError(
        f"index names {size} samples, but layer {name!r} returned a tensor of shape {list(output.shape)}, whose axis "
        f"{axis} does not number them; name the axis that does with batch_axis={{layer: axis}} (None where the layer "
        "sees positions and no samples, 'folded' where the first axis numbers samples and positions, samples slowest)"
    )


def batch_first(tensor: Tensor, axis: BatchAxis) -> Tensor:
    """Return `tensor` with the batch, folded or not, as its first axis."""
    return tensor.movedim(axis, 0) if isinstance(axis, int) and axis else tensor


def repeated(tensor: Tensor, size: int) -> Tensor:
    """Return a tensor without a batch axis, the same for every sample, with one in front; it takes no memory."""
    one = tensor[0] if tensor.dim() and tensor.shape[0] == 1 else tensor
    return one.expand(size, *one.shape)


def _positions(a: Any) -> bool:
    if not isinstance(a, Tensor) or a.is_floating_point() or a.dim() == 0:
        return False
    return bool((a == torch.arange(a.shape[-1], device=a.device)).all())
