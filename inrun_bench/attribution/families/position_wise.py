"""Layers found by their form: whatever makes each position anew by vectors of weights, and has no rule of its own.

The norms of language models are classes of their models (``LlamaRMSNorm``, ``T5LayerNorm``, Gemma's that multiplies by
1 + w), as are scales of your own. They need no list of names. Such a layer takes one tensor and returns one of its
shape, each position from itself alone; it has no children, nothing but plain settings, and parameters of the length of
the last axis. That is tried on made-up numbers. Its rule differentiates it in the direction of the probe, in forward
mode.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from inrun_bench.attribution.families.registry import Rule
from inrun_bench.attribution.products.sample_dot import sample_dot

__all__ = ["position_wise_rules"]

PLAIN = (bool, int, float, str, torch.dtype, torch.device, type(None))
OF_MODULES = vars(nn.Module()).keys() - {"training"}
SAME = 64  # in units of the precision: what one position may differ by when it is computed alone


def position_wise_rules(layer: nn.Module) -> tuple[Rule, ...]:
    """Return the rule of a layer of this form; empty where it has another."""
    parameters = dict(layer.named_parameters(recurse=False))
    if (
        type(layer).__module__.startswith("torch.")
        or not parameters
        or any(True for _ in layer.children())
        or any(True for _ in layer.buffers())
        or _settings(layer).keys() != {name for name in vars(layer) if name not in OF_MODULES}
        or any(p.dim() != 1 or not p.is_floating_point() or p.is_meta for p in parameters.values())
        or len({len(p) for p in parameters.values()}) > 1
        or not _takes_one(layer)
    ):
        return ()
    try:
        twin = _plain_copy(layer)
        rule = _Differentiated(twin, tuple(parameters))
        fits = _is_position_wise(twin, parameters) and _agrees(rule, twin, parameters)
    except Exception:  # whatever it raises on made-up numbers: it is of another form
        return ()
    return (Rule(rule, tuple(parameters)),) if fits else ()


class _Differentiated:
    """The rule: differentiate a copy of the layer, which has no hooks, in the probe's direction."""

    def __init__(self, twin: nn.Module, names: tuple[str, ...]) -> None:
        self._twin, self._names = twin, names

    def __call__(self, layer: nn.Module, a: Tensor, b: Tensor, *q: Tensor | None) -> Tensor:
        own = dict(layer.named_parameters(recurse=False))
        weights = tuple(own[name].detach() for name in self._names)
        along = tuple(
            torch.zeros_like(w) if probe is None else probe.to(w.dtype) for w, probe in zip(weights, q, strict=True)
        )
        vars(self._twin).update(_settings(layer))

        def forward(*given: Tensor) -> Any:
            return torch.func.functional_call(self._twin, dict(zip(self._names, given, strict=True)), (a,))

        _, tangent, *_ = torch.func.jvp(forward, weights, along)
        return sample_dot(tangent, b)


def _settings(layer: nn.Module) -> dict[str, Any]:
    """Return what a layer holds beside what all modules do, as far as it is plain."""
    return {
        name: value
        for name, value in vars(layer).items()
        if name not in OF_MODULES
        and all(isinstance(one, PLAIN) for one in (value if isinstance(value, tuple) else (value,)))
    }


def _takes_one(layer: nn.Module) -> bool:
    """Whether a call needs one argument and no more."""
    try:
        arguments = inspect.signature(layer.forward).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return len(arguments) == 1 and all(one.kind in positional for one in arguments)


def _plain_copy(layer: nn.Module) -> nn.Module:
    twin = copy.deepcopy(layer)
    for name, value in vars(twin).items():
        if name.endswith("_hooks") or "_hooks_" in name:
            value.clear()
    return twin


def _is_position_wise(twin: nn.Module, parameters: dict[str, nn.Parameter]) -> bool:
    """Whether the layer, in both modes, makes each position of made-up numbers from itself alone."""
    like = next(iter(parameters.values())).detach()
    width = len(like)
    x = _normal(like, (2, width + 1, width), 0)  # an axis of another length, lest it be taken for the last one
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        for training in (True, False):
            twin.train(training)
            whole = twin(x)
            if not isinstance(whole, Tensor) or whole.shape != x.shape:
                return False
            for row, position in ((0, 0), (1, width)):
                alone = twin(x[row : row + 1, position : position + 1])
                rounding = SAME * torch.finfo(whole.dtype).eps * whole.abs().max()
                if bool(((alone[0, 0] - whole[row, position]).abs() > rounding).any()):
                    return False
            if not torch.equal(whole, twin(x)):  # it draws random numbers
                return False
    return True


def _agrees(rule: _Differentiated, twin: nn.Module, parameters: dict[str, nn.Parameter]) -> bool:
    """Whether the rule's scores add up to what the backward pass makes, in the precision of the weights."""
    like = next(iter(parameters.values())).detach()
    x, b, *q = (_normal(like, (2, 3, len(like)), number) for number in range(2 + len(parameters)))
    q = [each[0, 0] for each in q]
    with torch.enable_grad():
        weights = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
        output = torch.func.functional_call(twin, weights, (x,))
        gradients = torch.autograd.grad(output, list(weights.values()), b.to(output.dtype))
    expected = sum(float((g.double() * each.double()).sum()) for g, each in zip(gradients, q, strict=True))
    size = sum(float(g.double().norm() * each.double().norm()) for g, each in zip(gradients, q, strict=True))
    with torch.no_grad():
        scores = rule(twin, x, b.to(output.dtype), *q)
    error = abs(float(scores.double().sum()) - expected)
    return bool(error <= torch.finfo(like.dtype).eps ** 0.5 / 16 * size)


def _normal(like: Tensor, shape: tuple[int, ...], seed: int) -> Tensor:
    draw = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=like.dtype, device=like.device)
