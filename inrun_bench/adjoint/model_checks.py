"""Models whose runs cannot be differentiated by the weights of their samples, and why.

A run must be repeatable, since every step is run a second time to be differentiated; and a sample can count in part
only if it has a loss of its own. So a model may neither draw random numbers nor mix the samples of a batch. Both are
found by running it on two samples, in the mode in which the task makes it (training, as a rule), which it keeps to the
end of the run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["check_model"]

ROUNDING = 1e-5  # of an output, in units of the largest


@torch.no_grad()
def check_model(model: nn.Module, x: Tensor) -> None:
    """Refuse a model that draws random numbers, or whose output for a sample depends on the others in its batch.

    Parameters
    ----------
    model : nn.Module
        With its initial weights.
    x : [n, ...]
        Inputs of its training samples.

    Raises
    ------
    ValueError
        If it does; the message names the layer, where it is one of torch's, or the operation.
    """
    _check_layers(model)
    nothing_drawn = _NothingDrawn()  # type: ignore[no-untyped-call]
    with nothing_drawn, sdpa_kernel(SDPBackend.MATH):  # the fused kernels can draw, which counts as drawing
        alone, together = (model(x[[0, neighbour]])[0] for neighbour in (0, -1))
    if not torch.allclose(alone, together, rtol=0, atol=ROUNDING * float(alone.abs().max()), equal_nan=True):
        raise ValueError(
            f"the output of {type(model).__name__} for a sample depends on the others in its batch, or changes from "
            "pass to pass, so that no sample has a weight of its own; each output must be a function of its input alone"
        )


def _check_layers(model: nn.Module) -> None:
    for name, layer in model.named_modules():
        if not layer.training:
            continue
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"batch norm couples the samples of a batch, so that none of them has a weight of its own in {name!r}; "
                "replace it by nn.GroupNorm"
            )
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0:
            raise ValueError(f"dropout draws anew in each pass, so that {name!r} makes no repeatable run; set p = 0")


class _NothingDrawn(TorchDispatchMode):
    """Refuses operations that draw random numbers."""

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise ValueError(
                f"the model draws random numbers in each pass ({func}), so that it makes no repeatable run; take the "
                "randomness out (dropout = 0), or draw once and keep what was drawn in a buffer"
            )
        return func(*args, **(kwargs or {}))
