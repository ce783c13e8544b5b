"""Watching a model's layers: what goes in, and what gradient comes back.

A forward hook on each layer that owns trained parameters sees the layer's input a; a hook on the output tensor sees the
gradient b of the batch's loss with respect to it. While watching is off the hooks return at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inrun_bench.attribution.rules import GhostRule, find_rule, supported_layers

__all__ = ["Capture", "Site"]


@dataclass(frozen=True)
class Site:
    """A layer that owns trained parameters: its name, and for each parameter its rule and its key among all."""

    name: str
    layer: nn.Module
    rules: tuple[tuple[GhostRule, str], ...]

    def score(self, a: Tensor, b: Tensor, probe: Mapping[str, Tensor]) -> Tensor:
        """Return the dot products of the layer's gradients with `probe` (by parameter key), float64 [B]."""
        scores = [rule(self.layer, a, b, probe[key]) for rule, key in self.rules]
        return torch.stack([s.double() for s in scores]).sum(0)


class Capture:
    """Hooks on a model's layers.

    Parameters
    ----------
    model : torch.nn.Module
        Its layers with trained parameters must all have ghost rules.
    receive : callable
        Called in the backward pass with ``(site, a, b)`` for each call of each layer, while `watching`.

    Attributes
    ----------
    parameters : dict of str to Parameter
        The trained parameters by name; a parameter that several layers share appears once.
    watching : bool
        Switch it on for the training passes of a step, off for everything else.
    """

    def __init__(self, model: nn.Module, receive: Callable[[Site, Tensor, Tensor], None]) -> None:
        self.parameters: dict[str, nn.Parameter] = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError("model has no trained parameters (none has requires_grad=True)")
        self.watching = False
        self._receive = receive
        sites = _sites(model, {p: name for name, p in self.parameters.items()})
        self._handles = [site.layer.register_forward_hook(self._hook(site)) for site in sites]

    def remove(self) -> None:
        """Take all hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, site: Site) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def forward(_layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if self.watching and torch.is_grad_enabled() and output.requires_grad:
                a = inputs[0].detach()
                output.register_hook(lambda b: self._receive(site, a, b))

        return forward


def _sites(model: nn.Module, key_of: Mapping[nn.Parameter, str]) -> list[Site]:
    """Return the layers that own trained parameters, with their rules; refuse what has no per-sample gradient."""
    sites = []
    for name, layer in model.named_modules():
        where = f"{name!r} ({type(layer).__name__})" if name else f"the model itself ({type(layer).__name__})"
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise TypeError(
                f"batch norm couples the samples of a batch, so {where} has no per-sample gradient; "
                "replace it by nn.GroupNorm"
            )
        owned = [(n, key_of[p]) for n, p in layer.named_parameters(recurse=False) if p in key_of]
        rules = []
        for parameter, key in owned:
            rule = find_rule(layer, parameter)
            if rule is None:
                raise TypeError(
                    f"no ghost rule for {parameter!r} of {where}; layers with rules: {', '.join(supported_layers())}. "
                    "Register one with inrun_bench.attribution.ghost_rule, or freeze the parameter"
                )
            rules.append((rule, key))
        if rules:
            sites.append(Site(name, layer, tuple(rules)))
    return sites
