"""Functions that are put on layers, do nothing on copies of them, and are not copied with them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

from torch import Tensor, nn

__all__ = ["LayerForward", "LayerHook", "plain_forward"]


class LayerHook:
    """A hook on one layer."""

    def __init__(self, layer: nn.Module, function: Callable[..., Any]) -> None:
        self._layer, self._function = layer, function

    def __call__(self, layer: nn.Module, *arguments: Any) -> Any:
        """Call the function, unless it was asked for by a copy."""
        return self._function(layer, *arguments) if layer is self._layer else None

    def __deepcopy__(self, _memo: Any) -> LayerHook:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _no_hook, ()  # a model that is saved while it is watched is saved as if it were not


class LayerForward:
    """Stands in for the forward of a layer of one input; a copy of the layer has its plain one."""

    stands_in = True

    def __init__(self, layer: nn.Module, run: Callable[[Tensor], Any]) -> None:
        self._layer, self._run = layer, run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer in our way where it gets one input, in its own where it gets more."""
        return self._run(*args) if len(args) == 1 and not kwargs else plain_forward(self._layer, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> MethodType:
        return MethodType(type(self._layer).forward, copy.deepcopy(self._layer, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return _own_forward, (self._layer,)


def _no_hook() -> Callable[..., None]:
    return _do_nothing


def _own_forward(layer: nn.Module) -> Callable[..., Any]:
    return partial(plain_forward, layer)


def _do_nothing(*_: Any, **__: Any) -> None:
    return None


def plain_forward(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the forward of the layer's class."""
    return type(layer).forward(layer, *args, **kwargs)
