"""Computing in the precision of the numbers at hand, whatever autocast is on around the loop."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["own_precision"]


def own_precision(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off in this block, where it is on."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
