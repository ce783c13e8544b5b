"""Functions that are put on layers, do nothing on copies of them, and are not copied with them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch._C._dynamo.eval_frame import set_eval_frame

__all__ = ["EagerHook", "ForwardAsWritten", "LayerForward", "LayerHook", "has_own_forward", "plain_forward"]

WHY_AS_WRITTEN = (
    "InRunShapley follows parameters of this module operation by operation, which a compiled graph hides; it is run as "
    "it is written, and what is around it is compiled: leave fullgraph=True away"
)


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


class EagerHook(LayerHook):
    """A hook that is run as it is written, with the numbers of its call, also where what it is on was compiled.

    The function is told as its second argument whether there is a compiler at work. In a function that is compiled as
    a whole, the model with it, it is traced all the same.
    """

    def __init__(self, layer: nn.Module, function: Callable[..., Any]) -> None:
        from torch._dynamo.eval_frame import skip_code

        super().__init__(layer, function)
        skip_code(EagerHook.__call__.__code__)

    def __call__(self, layer: nn.Module, *arguments: Any) -> Any:
        """Call the function, unless it was asked for by a copy."""
        if layer is not self._layer:
            return None
        if torch.compiler.is_compiling():
            return self._function(layer, True, *arguments)
        compiler = set_eval_frame(None)
        try:
            return self._function(layer, compiler is not None, *arguments)
        finally:
            set_eval_frame(compiler)


class LayerForward:
    """Stands in for the forward of a layer of one input; a copy of the layer has its plain one."""

    stands_in = True

    def __init__(self, layer: nn.Module, run: Callable[..., Any]) -> None:
        self._layer, self._run = layer, run
        self.__signature__ = inspect.signature(MethodType(type(layer).forward, layer))  # others may ask for it

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer in our way where it gets one input, in its own where it gets more."""
        return self._run(*args) if len(args) == 1 and not kwargs else plain_forward(self._layer, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> MethodType:
        return MethodType(type(self._layer).forward, copy.deepcopy(self._layer, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return _own_forward, (self._layer,)


class ForwardAsWritten(LayerForward):
    """Stands in for the forward of a module that a compiled graph is to leave alone; `run` calls it."""

    def __init__(self, layer: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__(layer, torch.compiler.disable(run, reason=WHY_AS_WRITTEN))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module as it is written."""
        return self._run(*args, **kwargs)


def _no_hook() -> Callable[..., None]:
    return _do_nothing


def has_own_forward(layer: nn.Module) -> bool:
    """Whether what runs a layer is the forward of its class, be it that a copy holds it itself."""
    held = vars(layer).get("forward")
    return held is None or (isinstance(held, MethodType) and held.__func__ is type(layer).forward)


def _own_forward(layer: nn.Module) -> Callable[..., Any]:
    return MethodType(type(layer).forward, layer)


def _do_nothing(*_: Any, **__: Any) -> None:
    return None


def plain_forward(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the forward of the layer's class."""
    return type(layer).forward(layer, *args, **kwargs)
