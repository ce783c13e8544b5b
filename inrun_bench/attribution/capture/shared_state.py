"""What a twin shares with its model, so that a pass beside training may change it: parameters, and all beyond copy.

A twin has buffers, attributes and containers of its own. What it cannot have of its own is shared: attributes of
classes and of parameters, what functions have closed over, running generators, objects that cannot be copied (locks,
files), and what such things refer to, buffers of the model among it. Nobody can tell from outside whether a pass will
change any of it; but whether one did can be told, by what all of it is made of in the end: numbers and text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from types import FunctionType, GeneratorType, MethodType, ModuleType, NoneType
from typing import Any

from torch import Tensor, nn

from inrun_bench.attribution.weights import traits, unlike

__all__ = ["UNCHANGING", "SharedStateChangedError", "shared_state_stays"]

UNCHANGING = {NoneType, bool, int, float, str}
"""Kinds of values that a twin may share."""

DEEP, MANY = 4, 64  # how far is looked into what holds others, and into how many of them
OURS = __name__.partition(".")[0] + "."


class SharedStateChangedError(RuntimeError):
    """A pass beside training has changed what training uses, too."""


@contextmanager
def shared_state_stays(module: nn.Module) -> Iterator[None]:
    """Let twins be run in this block, and see to it that they leave alone what they share with the module.

    Raises
    ------
    SharedStateChangedError
        If any of it is changed in it, even where something else is raised.
    """
    parameters = list(module.parameters())
    before, state = traits(parameters), _state_of(module)
    try:
        yield
    finally:  # whatever was raised
        if unlike(traits(parameters), before).any():
            raise _changed(module, "its own parameters", "keep such tensors as buffers")
        now = _state_of(module)
        other = next((place for place in (*state, *now) if place not in now or state.get(place) != now[place]), None)
        if other is not None:
            raise _changed(
                module, other, "keep such state in plain attributes or buffers of the module that changes it"
            )


def _changed(module: nn.Module, what: str, instead: str) -> SharedStateChangedError:
    return SharedStateChangedError(
        f"the forward of {type(module).__name__} changes {what}, so that it cannot be run beside training to observe "
        f"its batch axis; {instead}, or pass batch_axis=0 (the axis of the samples in all layers) and start anew"
    )


def _state_of(module: nn.Module) -> dict[str, Any]:
    """Return the numbers and texts that a twin shares, by where they stand."""
    found: dict[str, Any] = {}
    met: set[int] = set()
    for name, child in module.named_modules():
        place = f"{name}." if name else ""
        for kind in type(child).__mro__:
            if not kind.__module__.startswith(("torch.", OURS, "builtins")) and id(kind) not in met:
                met.add(id(kind))
                plain = {key: value for key, value in vars(kind).items() if type(value) in UNCHANGING}
                found.update({f"the attribute {key!r} of class {kind.__name__}": value for key, value in plain.items()})
        for key, value in vars(child).items():
            if type(value) not in UNCHANGING and key != "_modules":
                _note(f"{place}{key}", value, found, met, DEEP)
    return found


def _note(place: str, value: Any, found: dict[str, Any], met: set[int], depth: int) -> None:
    if type(value) in UNCHANGING:
        found[place] = value
        return
    if id(value) in met or not depth or isinstance(value, (nn.Module, ModuleType, type)):
        return
    if type(value).__module__.startswith(OURS) or getattr(value, "__module__", "").startswith(OURS):
        return
    met.add(id(value))
    if isinstance(value, Tensor) and not value.is_inference():
        found[place] = id(value), value._version
    for key, held in _held(value):
        _note(f"{place}{key}", held, found, met, depth - 1)


def _held(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a value holds, with how it is got at."""
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", each) for key, each in islice(value.items(), MANY))
        yield "'s length", len(value)
    elif isinstance(value, (list, tuple, deque)):
        yield from ((f"[{number}]", each) for number, each in enumerate(islice(value, MANY)))
        yield "'s length", len(value)
    elif isinstance(value, MethodType):
        yield ".__self__", value.__self__
        yield ".__func__", value.__func__
    elif isinstance(value, partial):
        yield ".func", value.func
        yield ".args", value.args
        yield ".keywords", value.keywords
    elif isinstance(value, FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                yield f"'s {name!r}", cell.cell_contents
            except ValueError:  # not bound yet
                continue
    elif isinstance(value, GeneratorType):
        yield "'s place", -1 if value.gi_frame is None else value.gi_frame.f_lasti
        yield "'s variables", {} if value.gi_frame is None else dict(value.gi_frame.f_locals)
    yield from ((f".{key}", each) for key, each in getattr(value, "__dict__", {}).items())
