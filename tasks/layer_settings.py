"""What tells one architecture from another, where the tensors that are its state do not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from tasks.code_identity import code_identity

__all__ = ["layer_settings"]

_STATE = ("_parameters", "_buffers", "_modules")
_OF_ANY_LAYER = vars(nn.Module())


def layer_settings(model: nn.Module) -> Iterator[tuple[str, object]]:
    """Yield what tells the architecture from another, by name.

    Of each layer these are its class, and its public settings that are numbers, strings, tuples of them or None; of
    each parameter that is not trained, that it is not. Where there is more (classes other than torch's, functions such
    as ``activation=torch.tanh``, hooks, private or other attributes), a digest of its code and its state comes last.
    Torch itself enters by names alone: what its versions compute differs by rounding.

    Raises
    ------
    CodeIdentityError
        A ValueError, if the code of a layer cannot be seen, such as that of a notebook's cell, or an attribute cannot
        be pickled.
    """
    more = []
    for name, layer in model.named_modules():
        yield name, f"{type(layer).__module__}.{type(layer).__qualname__}"
        classes = [each for each in type(layer).__mro__ if not _is_known_by_name(each)]
        others: list[tuple[str, object]] = []
        for key, value in sorted(vars(layer).items()):
            if not key.startswith("_") and _is_plain(value):
                yield key, value
            elif key not in _STATE and not (key in _OF_ANY_LAYER and value == _OF_ANY_LAYER[key]):
                others.append((key, _without_handles(key, value)))
        if classes or others:
            more.append((name, classes, others))
    untrained = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if untrained:
        yield "parameters that are not trained", untrained
    if more:
        yield "code", code_identity(more)


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str | None)


def _is_known_by_name(of_layer: type) -> bool:
    return of_layer.__module__.partition(".")[0] in ("torch", "builtins")


def _without_handles(key: str, value: Any) -> object:
    """Return an attribute as it is, but hooks without the numbers that a process gives them."""
    return list(value.values()) if key.endswith("hooks") and isinstance(value, dict) else value
