"""Computing in the precision of the numbers at hand, whatever autocast is on around the loop."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from inrun_bench.attribution.transfer import gathered

__all__ = ["Autocast", "norms", "own_precision"]


@dataclass(frozen=True)
class Autocast:
    """What autocast is on, to be on again where something is computed again; `kind` is None where it is off."""

    device: str
    kind: torch.dtype | None

    @classmethod
    def now(cls, tensors: Sequence[Tensor]) -> Autocast:
        """Return what is on where the tensors lie."""
        device = next((tensor.device.type for tensor in tensors if tensor.device.type != "cpu"), "cpu")
        return cls(device, torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None)

    def again(self) -> AbstractContextManager[object]:
        """Switch it on for a block; weights that it casts are not kept, since they may be others in the next."""
        if self.kind is None:
            return nullcontext()
        return torch.autocast(self.device, self.kind, cache_enabled=False)


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the norm of each tensor, [tensors], on the device of the first; those of half precision in single."""
    kinds = {tensor.dtype for tensor in tensors}
    if len(kinds) == 1:
        half = kinds <= {torch.float16, torch.bfloat16}
        return gathered(torch._foreach_norm(list(tensors), 2, dtype=torch.float32 if half else None))
    return gathered([torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensor in tensors])


def own_precision(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off in this block, where it is on."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
