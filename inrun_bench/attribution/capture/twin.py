"""A twin of a model, to run beside training and without effect on it.

The twin shares the model's parameters, but for trained ones that are zero throughout: nothing is seen of what a model
multiplies with them, but soon they will be others, and so the twin may have other numbers in their place. All else is
its own: buffers, tensors, counters, lists, generators of random numbers. Functions that a user has hooked onto its
layers after their forward are left out, since what they collect is meant to be training's.
"""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inrun_bench.attribution.capture.recorder import tensors_in
from inrun_bench.attribution.capture.shared_state import UNCHANGING

__all__ = ["begins_with_zero", "beside_training", "own", "twin_of"]

HOOKS = ("_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Of a module, left out: those that run before its forward may make its weights."""

FAINT = 0.05  # numbers in place of biases and gates, which shall not saturate what is behind them


def twin_of(module: nn.Module, memo: dict[int, Any], *, as_it_is: bool = True, alone: bool = False) -> nn.Module:
    """Return a module that computes the same from the same parameters, and whose state is its own.

    Parameters
    ----------
    module : torch.nn.Module
        Any; what :mod:`torch.jit` made is taken as it is.
    memo : dict
        Filled with the twin of each module, and what the twin has for each parameter, by id.
    as_it_is : bool
        Whether zero is left zero.
    alone : bool
        Whether what cannot be copied is refused; else it is shared.

    Raises
    ------
    TypeError
        If the forward of a module is a function of its own that may hold on to the module, or `alone` and something
        cannot be copied.
    """
    for child in module.modules():
        if id(child) not in memo:
            memo[id(child)] = child if isinstance(child, torch.jit.ScriptModule) else object.__new__(type(child))
    shared = {id(p) for child in module.modules() if memo[id(child)] is child for p in child.parameters()}
    for parameter in module.parameters():
        replaced = not as_it_is and id(parameter) not in shared and _is_zero(parameter)
        memo[id(parameter)] = _stand_in(parameter) if replaced else parameter
    for child in module.modules():
        if memo[id(child)] is not child:
            held = {
                name: value if type(value) in UNCHANGING else _own(child, name, value, memo, alone)
                for name, value in _held(child).items()
            }
            vars(memo[id(child)]).update(held)
    twin: nn.Module = memo[id(module)]
    return twin


def _held(module: nn.Module) -> dict[str, Any]:
    held = dict(vars(module))
    forward = held.get("forward")
    if getattr(forward, "stands_in", False):
        del held["forward"]
    elif forward is not None and not (isinstance(forward, MethodType) and forward.__self__ is module):
        raise TypeError(f"the forward of {type(module).__name__} was replaced by a function, which has no twin")
    held["_compiled_call_impl"] = None
    return held


def begins_with_zero(module: nn.Module) -> bool:
    """Whether a twin would have other numbers in place of any of a module's parameters."""
    return any(map(_is_zero, module.parameters()))


def _is_zero(parameter: nn.Parameter) -> bool:
    plain = (
        type(parameter) is nn.Parameter
        and parameter.requires_grad
        and parameter.layout == torch.strided
        and not parameter.is_meta
    )
    return plain and parameter.is_floating_point() and parameter.numel() > 0 and not bool(parameter.any())


def _stand_in(parameter: nn.Parameter) -> nn.Parameter:
    """Return a parameter with numbers of a usual size."""
    draw = torch.Generator().manual_seed(parameter.numel())
    size = 1 / math.sqrt(parameter[0].numel()) if parameter.dim() > 1 else FAINT
    drawn = size * torch.randn(parameter.shape, generator=draw, dtype=torch.float32)
    return nn.Parameter(drawn.to(parameter), requires_grad=parameter.requires_grad)


def _own(module: nn.Module, name: str, value: Any, memo: dict[int, Any], alone: bool) -> Any:
    if name in HOOKS:
        return type(value)()
    if name == "_parameters":
        return type(value)((key, None if each is None else memo[id(each)]) for key, each in value.items())
    if name.endswith("_hooks") or "_hooks_" in name:
        return copy.copy(value) if value else type(value)()
    if name == "forward":
        return MethodType(value.__func__, memo[id(module)])
    return own(value, memo, alone=alone)


def own(value: Any, memo: dict[int, Any], *, alone: bool = False) -> Any:
    """Return a copy as deep as can be, whose tensors have no graph; what cannot be copied is shared, or refused.

    Parameters
    ----------
    value : object
        Of a module's attributes, or an argument.
    memo : dict
        As for :func:`twin_of`.
    alone : bool
        Whether a TypeError is raised where something cannot be copied.
    """
    if isinstance(value, Tensor):
        return memo[id(value)] if id(value) in memo else value.detach().clone()
    if isinstance(value, torch.Generator):
        generator = torch.Generator(value.device)
        generator.set_state(value.get_state())
        return generator
    if type(value) in (dict, list, tuple, set) or type(value).__name__ == "OrderedDict":
        if isinstance(value, dict):
            return type(value)((key, own(each, memo, alone=alone)) for key, each in value.items())
        return type(value)(own(each, memo, alone=alone) for each in value)
    if value is None or isinstance(value, (int, float, str)):
        return value
    for tensor in tensors_in(value):  # those of a graph cannot be copied by others
        if id(tensor) not in memo:
            memo[id(tensor)] = tensor.detach().clone()
    try:
        return copy.deepcopy(value, memo)
    except Exception as error:  # locks, files: whatever cannot be copied
        if alone:
            raise TypeError(f"{type(value).__name__} cannot be copied") from error
        return value


@contextmanager
def beside_training(module: nn.Module) -> Iterator[None]:
    """Let a twin be run in this block: random numbers come from copies, nothing is kept, and no warning is said."""
    devices = sorted({p.device.index for p in module.parameters() if p.device.type == "cuda"})
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - the state of others
    try:
        with (
            torch.random.fork_rng(devices=devices),
            torch.compiler.set_stance("force_eager"),
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(lambda _tensor: None, _never),
            warnings.catch_warnings(action="ignore"),  # training will say them
        ):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def _never(_: Any) -> Tensor:
    raise RuntimeError(
        "the model differentiates inside of its forward, so that it cannot be run beside training to observe its batch "
        "axis"
    )
