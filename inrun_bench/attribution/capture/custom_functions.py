"""Functions with a backward pass of the user's, which torch calls without saying so to whoever watches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

__all__ = ["custom_function", "is_of_a_layer"]

OF_A_LAYER = "inrun_bench: of a layer with a rule"
KNOWN = ("torch.", "inrun_bench.")  # checkpoints, compiled graphs, and our own


def custom_function(tensor: Tensor, is_followed: Callable[[Any], bool]) -> str | None:
    """Return the name of the ``torch.autograd.Function`` that made a tensor of followed ones, if one did.

    `is_followed` is asked about the nodes of the graph that its arguments come from.
    """
    node = tensor.grad_fn
    if not isinstance(node, BackwardCFunction):
        return None
    kind: Any = getattr(node, "_forward_cls", None)
    if kind is None or f"{kind.__module__}.".startswith(KNOWN) or OF_A_LAYER in node.metadata:
        return None
    return kind.__qualname__ if any(is_followed(before) for before, _ in node.next_functions) else None


def is_of_a_layer(output: Tensor) -> None:
    """Note that a tensor came out of a layer with a rule, which may use whatever function it likes."""
    if isinstance(output.grad_fn, BackwardCFunction):
        output.grad_fn.metadata[OF_A_LAYER] = True
