"""What tells one architecture from another, where their tensors do not: the layers, their settings and their code."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tasks.code_identity import code_identity

__all__ = ["layer_settings"]

RELEASED = ("torch.", "tasks.")  # whose classes are known by name; their private attributes follow from the public ones
OF_ALL_LAYERS = frozenset(vars(nn.Module())) - {"training"}


def layer_settings(model: nn.Module) -> Iterator[tuple[str, object]]:
    """Yield of each layer the name with the class, the settings by name and, of a class of one's own, the code.

    A setting is any attribute but parameters, buffers and layers, which have places of their own. What is neither a
    number, a string, a tuple, None nor a tensor is yielded as the digest of its state and code.

    Raises
    ------
    CodeIdentityError
        A ValueError, if the code of a layer or of a setting cannot be seen; see :mod:`tasks.code_identity`.
    """
    for name, layer in model.named_modules():
        yield name, f"{type(layer).__module__}.{type(layer).__qualname__}"
        released = type(layer).__module__.startswith(RELEASED)
        for key, value in sorted(vars(layer).items()):
            if key not in OF_ALL_LAYERS and not (released and key.startswith("_")):
                yield key, _told(value)
        if not released:
            yield "code", code_identity(type(layer))


def _told(value: object) -> object:
    """Return a setting as something whose repr tells it from others, in every process."""
    if isinstance(value, bool | int | float | str | tuple | None):
        return value
    if isinstance(value, Tensor):
        array = value.detach().cpu().contiguous()
        bits = array.flatten().view(torch.uint8).numpy().data
        return str(array.dtype), list(array.shape), hashlib.sha256(bits).hexdigest()
    return code_identity(value)
