"""Functions that work in place: what they return, and the gradient of what they have written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from inrun_bench.attribution.capture.trees import tensors_of

__all__ = ["hook_on_value", "results_of", "works_in_place"]


def works_in_place(function: Callable[..., Any]) -> bool:
    """Whether a torch function writes into its first argument, as far as its name tells."""
    name = getattr(function, "__name__", "")
    return name == "__setitem__" or (name.startswith("__i") and name.endswith("__")) or _ends_with_one(name)


def results_of(result: Any, written: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors of what a function returned; what it has written into where it returns none."""
    return tensors_of((result,), {}) or list(written)


def hook_on_value(tensor: Tensor, function: Callable[[Tensor], None]) -> None:
    """Call a function with the gradient of a tensor that was just written into, or made.

    What is written into a view is used through its base, too, and through other views of it: the gradient of all that
    is the base's.
    """
    base = tensor._base
    if base is None or base.dtype != tensor.dtype:
        tensor.register_hook(function)
        return
    if base.numel() == tensor.numel() and base.is_contiguous() and tensor.is_contiguous():
        shape = tensor.shape
        base.register_hook(lambda gradient: function(gradient.reshape(shape)))
        return
    size, stride, offset = tensor.size(), tensor.stride(), tensor.storage_offset() - base.storage_offset()
    geometry, strides = base.size(), base.stride()

    def of_view(gradient: Tensor) -> None:
        whole = torch.empty_strided(geometry, strides, dtype=gradient.dtype, device=gradient.device).copy_(gradient)
        function(whole.as_strided(size, stride, offset))

    base.register_hook(of_view)


def _ends_with_one(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")
