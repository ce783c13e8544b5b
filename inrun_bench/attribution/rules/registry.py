"""Which rule serves which parameter of which layer type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor, nn

__all__ = ["GhostRule", "find_rule", "ghost_rule", "supported_layers"]

GhostRule: TypeAlias = Callable[[Any, Tensor, Tensor, Tensor], Tensor]

_RULES: dict[tuple[type[nn.Module], str], GhostRule] = {}


def ghost_rule(layer_type: type[nn.Module], parameter: str) -> Callable[[GhostRule], GhostRule]:
    """Register the decorated function as the rule for one parameter of a layer type.

    Parameters
    ----------
    layer_type : type
        The rule serves this class; a subclass, which may compute something else, needs a rule of its own.
    parameter : str
        The attribute's name on the layer, such as ``"weight"``.
    """

    def register(rule: GhostRule) -> GhostRule:
        _RULES[layer_type, parameter] = rule
        return rule

    return register


def find_rule(layer: nn.Module, parameter: str) -> GhostRule | None:
    """Return the rule for `parameter` of `layer`, or None where there is none."""
    return _RULES.get((type(layer), parameter))


def supported_layers() -> list[str]:
    """Return the names of the layer types that have rules, sorted."""
    return sorted({layer.__name__ for layer, _ in _RULES})
