"""How much memory is free where models are trained."""

from __future__ import annotations

import psutil
import torch

__all__ = ["free_bytes"]


def free_bytes(device: torch.device) -> int:
    """Return the memory of `device` that is free now: of a GPU its own, otherwise that of the machine."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
