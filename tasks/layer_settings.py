"""What tells one architecture from another, where their tensors do not: the layers and their settings."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

__all__ = ["layer_settings"]


def layer_settings(model: nn.Module) -> Iterator[tuple[str, object]]:
    """Yield of each layer the name with the class, and the settings by name: numbers, strings, tuples of them, None."""
    for name, layer in model.named_modules():
        yield name, f"{type(layer).__module__}.{type(layer).__qualname__}"
        for key, value in sorted(vars(layer).items()):
            if not key.startswith("_") and isinstance(value, bool | int | float | str | tuple | None):
                yield key, value
