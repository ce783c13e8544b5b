"""Modules of a model, and leaves of arguments, listed in little time: both are asked for several times a step.

What :meth:`torch.nn.Module.modules` and :func:`torch.utils._pytree.tree_flatten` return, without generators within
generators, and without a tree's description where there is no tree.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

__all__ = ["flattened", "leaves_of", "modules_of", "parameters_of", "tensors_of"]

LEAVES = {Tensor, nn.Parameter, NoneType, bool, int, float, str, torch.dtype, torch.device}
"""Kinds that are no trees; others are asked."""


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Return a module and all below it, each once, in the order of :meth:`~torch.nn.Module.modules`."""
    found: dict[nn.Module, None] = {}
    waiting: list[nn.Module | None] = [model]
    while waiting:
        module = waiting.pop()
        if module is not None and module not in found:
            if _overrides(type(module), "modules", "named_modules"):
                return list(model.modules())
            found[module] = None
            if module._modules:
                waiting.extend(reversed(module._modules.values()))
    return list(found)


def parameters_of(model: nn.Module) -> set[nn.Parameter]:
    """Return the parameters of a module and of all below it."""
    if _overrides(type(model), "parameters", "named_parameters"):
        return set(model.parameters())
    return {p for module in modules_of(model) for p in module._parameters.values() if p is not None}


def _overrides(kind: type[nn.Module], *methods: str) -> bool:
    return any(getattr(kind, method) is not getattr(nn.Module, method) for method in methods)


def flattened(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[list[Any], Hashable]:
    """Return the leaves of arguments, and what tells their tree from others."""
    given = [*args, *kwargs.values()]
    if LEAVES.issuperset(map(type, given)):
        return given, (len(args), *kwargs)
    leaves, spec = tree_flatten((args, dict(kwargs)))
    return leaves, str(spec)


def leaves_of(args: Iterable[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Return the leaves of arguments."""
    given = [*args, *kwargs.values()]
    if LEAVES.issuperset(map(type, given)):
        return given
    leaves: list[Any] = []
    for each in given:
        kind = type(each)
        if kind in LEAVES:
            leaves.append(each)
        else:
            leaves += leaves_of(each, {}) if kind is tuple or kind is list else tree_flatten(each)[0]
    return leaves


def tensors_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors among the leaves of arguments."""
    return [leaf for leaf in leaves_of(args, kwargs) if isinstance(leaf, Tensor)]
