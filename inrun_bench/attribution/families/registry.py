"""Which rule serves which parameters of which layer type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

from torch import Tensor, nn

from inrun_bench.attribution.families.scored_backward import ScoredBackward
from inrun_bench.attribution.products.backend import Backend

__all__ = [
    "GhostRule",
    "GradientsOfSamples",
    "Rule",
    "find_gradients_of_samples",
    "find_scored_backward",
    "ghost_rule",
    "gradients_of_samples",
    "registered_rules",
    "scores_backward",
    "supported_layers",
]

T = TypeVar("T")

GhostRule: TypeAlias = Callable[..., Tensor]
"""``rule(layer, a, b, *q) -> scores [B]``; see :mod:`inrun_bench.attribution.families`."""


@dataclass(frozen=True)
class Rule:
    """A ghost rule, the parameters that it serves, and how much of the layer's input it wants to see."""

    function: GhostRule
    parameters: tuple[str, ...]
    inputs: Literal["first", "all"] = "first"
    batch_axis: Callable[[Any], int] = lambda _layer: 0
    takes_backend: bool = False
    replays: bool = False

    def score(self, layer: nn.Module, a: Any, b: Tensor, q: Sequence[Tensor | None], backend: Backend) -> Tensor:
        """Return the dot products [B] with the probes `q`, one for each of the parameters."""
        return self.function(layer, a, b, *q, **({"backend": backend} if self.takes_backend else {}))


GradientsOfSamples: TypeAlias = Callable[[Any, Tensor, Tensor], dict[str, Tensor] | None]
"""``function(layer, a, b)``: of each sample, the gradients of all of the layer's parameters, [B, *parameter].

None where the layer's settings are not served.
"""

_RULES: dict[type[nn.Module] | str, tuple[Rule, ...]] = {}
_SCORED_BACKWARD: dict[type[nn.Module] | str, ScoredBackward] = {}
_GRADIENTS: dict[type[nn.Module] | str, GradientsOfSamples] = {}


def ghost_rule(
    layer_type: type[nn.Module] | str,
    *parameters: str,
    inputs: Literal["first", "all"] = "first",
    batch_axis: Callable[[Any], int] = lambda _layer: 0,
    takes_backend: bool = False,
    replays: bool = False,
) -> Callable[[GhostRule], GhostRule]:
    """Register the decorated function as the rule for some parameters of a layer type.

    Parameters
    ----------
    layer_type : type or str
        The rule serves this class; a subclass, which may compute something else, needs a rule of its own. A class of a
        package that need not be installed is given by its full name, such as ``"transformers.pytorch_utils.Conv1D"``.
    *parameters : str
        Names on the layer, such as ``"weight", "bias"``; the rule gets one probe for each, in this order, None for one
        that the layer does not have or does not train. A parameter of a child is named with a dot, and the child's own
        rules are then not used.
    inputs : {"first", "all"}
        What the rule gets as `a`: the layer's first input, batch first, or a dict of all arguments of its ``forward``
        by name, as they were. One rule that wants all of them makes all rules of the layer get them.
    batch_axis : callable
        Given the layer, the axis of its output that numbers the samples.
    takes_backend : bool
        Whether the rule is called with ``backend=``, which says what runs the products that have kernels.
    replays : bool
        Whether the rule, which gets all inputs, runs the layer again: `a` then holds ``"random_state"``, the
        :class:`~inrun_bench.attribution.random_state.RandomState` of the call.

    Raises
    ------
    ValueError
        If no parameter is named.
    """
    if not parameters:
        raise ValueError(f"ghost_rule({_name(layer_type)}) must name at least one parameter, such as 'weight'")

    def register(function: GhostRule) -> GhostRule:
        others = tuple(rule for rule in _RULES.get(layer_type, ()) if not set(rule.parameters) & set(parameters))
        _RULES[layer_type] = (*others, Rule(function, parameters, inputs, batch_axis, takes_backend, replays))
        return function

    return register


def registered_rules(layer: nn.Module) -> tuple[Rule, ...]:
    """Return the rules of the layer's type; empty where there are none."""
    return _by_type(_RULES, layer) or ()


def gradients_of_samples(layer_type: type[nn.Module]) -> Callable[[GradientsOfSamples], GradientsOfSamples]:
    """Register the decorated function for a layer type.

    Where samples' gradients themselves are asked for, and are not too many numbers, it forms them in one go; they are
    float32 at least.
    """

    def register(function: GradientsOfSamples) -> GradientsOfSamples:
        _GRADIENTS[layer_type] = function
        return function

    return register


def find_gradients_of_samples(layer: nn.Module) -> GradientsOfSamples | None:
    """Return what forms the gradients of the layer's samples, or None where there is nothing of the kind."""
    return _by_type(_GRADIENTS, layer)


def scores_backward(layer_type: type[nn.Module] | str, how: ScoredBackward) -> None:
    """Register how layers of a type form their weight gradients with scores."""
    _SCORED_BACKWARD[layer_type] = how


def find_scored_backward(layer: nn.Module) -> ScoredBackward | None:
    """Return how the layer's weight gradient is formed with scores, or None where that is not known."""
    how = _by_type(_SCORED_BACKWARD, layer)
    return how if how is not None and how.serves(layer) else None


def _by_type(table: Mapping[type[nn.Module] | str, T], layer: nn.Module) -> T | None:
    """Return the entry of the layer's class, given as such or by its full name; None where there is none."""
    kind = type(layer)
    return table.get(kind) or table.get(f"{kind.__module__}.{kind.__qualname__}")


def supported_layers() -> list[str]:
    """Return the names of the layer types that have rules, sorted."""
    return sorted(map(_name, _RULES))


def _name(layer_type: type[nn.Module] | str) -> str:
    return layer_type.rpartition(".")[2] if isinstance(layer_type, str) else layer_type.__name__
