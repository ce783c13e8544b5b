"""Data parallel training, which is refused by name."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["refuse_parallel", "refuse_process_group"]

WRAPPERS = {
    "DataParallel",
    "DistributedDataParallel",
    "FullyShardedDataParallel",
    "FSDPModule",
    "DeepSpeedEngine",
    "PipelineModule",
}


def refuse_parallel(model: nn.Module, parameters: Iterable[Tensor]) -> None:
    """Raise TypeError where a model is trained by several processes or on several devices at once.

    Each process sees its part of the batch alone, while the optimiser receives the mean over all of them.
    """
    for name, module in model.named_modules():
        kind = next((base.__name__ for base in type(module).__mro__ if base.__name__ in WRAPPERS), None)
        if kind is not None:
            raise TypeError(
                f"{name or 'the model'!r} is a {kind}: In-Run values of data parallel training are not supported yet, "
                "since each process sees its own part of the batch; train in one process, on one device"
            )
    if any(type(p).__name__ == "DTensor" or type(p.data).__name__ == "DTensor" for p in parameters):
        raise TypeError(
            "the model's parameters are sharded over processes (DTensor), which is not supported yet; train in one "
            "process, on one device"
        )
    refuse_process_group()


def refuse_process_group() -> None:
    """Raise TypeError where a process group of more than one process is initialised."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        world = torch.distributed.get_world_size()
        if world > 1:
            raise TypeError(
                f"a process group of {world} processes is initialised: In-Run values of data parallel training are not "
                "supported yet, since each process sees its own part of the batch; train in one process"
            )
