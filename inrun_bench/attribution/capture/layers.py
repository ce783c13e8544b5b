"""Watching a model's layers: what goes in, and what gradient comes back.

A forward hook on each layer whose parameters have ghost rules sees the layer's input a; a hook on the output tensor
sees the gradient b of the batch's loss with respect to it. Together they are a :class:`LayerTerm`. Linear maps and
convolutions may instead be run with a backward pass that scores their samples on the way
(:mod:`~inrun_bench.attribution.capture.fused`). Parameters that no rule covers are followed operation by operation
(:mod:`~inrun_bench.attribution.capture.operations`). While nobody watches, all of them return at once.

Inputs are kept by autograd itself, as if the layer had saved them, so that whatever it does with saved tensors
(activation checkpointing, offloading) is done with ours.
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import MethodType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from inrun_bench.attribution.capture.batch_axis import BatchAxis, Doubt, batch_first, find_axis, repeated
from inrun_bench.attribution.capture.compiled import announce, pass_through, scored_linear
from inrun_bench.attribution.capture.fused import Scored, scored_call, scored_gradients
from inrun_bench.attribution.capture.operations import Followed
from inrun_bench.attribution.capture.saved_tensors import save
from inrun_bench.attribution.directions import Direction, Factors
from inrun_bench.attribution.families import find_rules, find_scored_backward
from inrun_bench.attribution.families.costs import Call, RuleName, fastest
from inrun_bench.attribution.families.scored_backward import ScoredBackward
from inrun_bench.attribution.layer_terms import LayerTerm, Part, Site
from inrun_bench.attribution.products.backend import Backend
from inrun_bench.attribution.scoring.scores import Scores, Term
from inrun_bench.attribution.transfer import Numbers, to_host
from inrun_bench.attribution.validation import Collected

__all__ = ["Capture"]

BATCH_NORM = nn.modules.batchnorm._BatchNorm


class Capture:
    """Hooks on a model's layers.

    Parameters
    ----------
    model : torch.nn.Module
        The model in training.
    receive : callable
        Called in the backward pass with the term of each call of each layer, while watching.
    axes : mapping of str to BatchAxis
        Layers whose batch axis is not the rule's own, by name; ``""`` stands for all others.
    rules : {"auto", "project", "weight-gradient", "gram"}
        How linear maps and convolutions are scored where the probe is known in time.
    kernels : {"auto", "triton", "torch"}
        What runs the products that have kernels, see :mod:`inrun_bench.attribution.products`.

    Attributes
    ----------
    parameters : dict of str to Parameter
        The trained parameters by name; a parameter that several layers share appears once.
    chosen : dict of str to str
        The rule that each linear map's and convolution's last call was scored by, where the probe was known.
    """

    def __init__(
        self,
        model: nn.Module,
        receive: Callable[[Term], None],
        axes: Mapping[str, BatchAxis],
        rules: RuleName | str,
        kernels: Backend = "auto",
    ) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError("model has no trained parameters (none has requires_grad=True)")
        self.chosen: dict[str, RuleName] = {}
        self._receive, self._axes, self._rules = receive, axes, rules
        self._sites = _sites(model, {p: name for name, p in self.parameters.items()}, axes, kernels)
        self._part: Part | None = None  # of the forward passes to come; None while nobody watches
        self._latest: Part | None = None  # of the last one, for compiled graphs, which cannot remember theirs
        self._probes: Sequence[Direction] | None = None
        self._scores: Scores | None = None
        self._checks: Numbers | None = None
        self._scored = False  # whether the layer that is being left has scored itself
        self._maps = {site.name: how for site in self._sites if (how := find_scored_backward(site.layer)) is not None}
        self._calls: dict[str, Call] = {}
        self._settled: set[tuple[str, BatchAxis]] = set()  # layers and the batch axis that was no mistake before
        self._resumed: set[str] | None = None
        self._validation_positions: dict[str, int] = {}
        self._collecting: tuple[Collection[str], list[Collected]] | None = None
        covered = set().union(*(site.keys for site in self._sites))
        everywhere = axes.get("", 0)
        self._outside = Followed(
            self.parameters,
            model,
            receive,
            everywhere if isinstance(everywhere, int) else 0,
            uncovered=(self.parameters.keys() - covered).union(*(s.keys for s in self._sites if s.axis is None)),
        )
        self._owners = [
            (module, attribute, name, p, p.device)
            for name, p in self.parameters.items()
            for module in model.modules()
            for attribute, own in module.named_parameters(recurse=False)
            if own is p
        ]
        self._number = announce(self)
        self._replaced = self._replace_forwards()
        self._handles: list[Any] = []
        for slot, site in enumerate(self._sites):
            enter, leave = _Hook(site.layer, self._enter), _Hook(site.layer, partial(self._forward, slot, site))
            self._handles.append(site.layer.register_forward_pre_hook(enter))
            self._handles.append(site.layer.register_forward_hook(leave, with_kwargs=True))
        for name, layer in model.named_modules():
            if isinstance(layer, BATCH_NORM):
                hook = _Hook(layer, partial(self._refuse_coupling, name))
                self._handles.append(layer.register_forward_pre_hook(hook))

    def remove(self) -> None:
        """Take all hooks off the model."""
        for handle in self._handles:
            handle.remove()
        for layer in self._replaced:
            del layer.forward
        self._handles, self._replaced = [], []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Be ready to watch forward passes in this block, from :meth:`show` on."""
        with self._outside:
            try:
                yield
            finally:
                self.show(None)
                self._latest = None

    def show(self, part: Part | None) -> None:
        """Say which samples the coming forward passes hold; None: look away."""
        self._part = self._outside.part = part
        self._latest = part or self._latest

    def aim(self, probes: Sequence[Direction] | None, scores: Scores, checks: Numbers) -> None:
        """Say which probes samples may be scored with on the way, and where scores and doubts go; None: none yet."""
        self._probes, self._scores, self._checks = probes, scores, checks

    def factorable(self) -> set[str]:
        """Return the weights whose validation gradient is better left in factors, by the sizes of their last calls."""
        if not self._calls and self._resumed is not None:
            return self._resumed
        uses = Counter(key for site in self._sites for key in site.keys)
        found = set()
        for site in self._sites:
            key, call, positions = (
                site.key_of("weight"),
                self._calls.get(site.name),
                self._validation_positions.get(site.name),
            )
            if key is None or call is None or positions is None or uses[key] > 1 or key in self._outside.found:
                continue
            call = replace(call, validation_positions=positions)
            if self._rules == "gram" or (self._rules == "auto" and fastest(call) == "gram"):
                found.add(key)
        return found

    def resume(self, factorable: set[str]) -> None:
        """Learn what :meth:`factorable` returned where an earlier run stopped; no sizes are known yet."""
        self._resumed = factorable

    @contextmanager
    def collecting(self, keys: Collection[str]) -> Iterator[list[Collected]]:
        """Collect what goes into and comes out of the linear maps of these weights, in a validation pass."""
        self._collecting = (keys, [])
        try:
            yield self._collecting[1]
        finally:
            self._collecting = None

    def check_parameters(self) -> None:
        """Refuse to go on with parameters that are no longer those that the engine was made for."""
        for module, attribute, name, parameter, device in self._owners:
            if getattr(module, attribute, None) is not parameter:
                raise RuntimeError(
                    f"parameter {name!r} was replaced since InRunShapley was made; "
                    "make a new engine, or change the weights in place"
                )
            if parameter.device != device:
                raise RuntimeError(
                    f"parameter {name!r} moved from {device} to {parameter.device} since InRunShapley was made; "
                    "move the model first and make the engine then"
                )

    def receive_compiled(self, slot: int, a: Tensor, b: Tensor) -> None:
        """Take a term from a compiled graph, which may write over what it has handed out."""
        part = self._latest
        if part is not None:
            site = self._sites[slot]
            axis: BatchAxis = 0 if site.axis is None else site.axis
            a, b = (batch_first(x, axis).clone() for x in (a, b))
            self._receive(LayerTerm(site, part, a, b))

    def _enter(self, *_: Any) -> None:
        if not torch.compiler.is_compiling():
            self._outside.inside += 1

    def _forward(
        self, slot: int, site: Site, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        if torch.compiler.is_compiling():
            scored, self._scored = self._scored, False
            return None if scored else self._forward_compiled(slot, site, args, kwargs, output)
        self._outside.inside -= 1
        scored, self._scored = self._scored, False
        if not torch.is_grad_enabled() or scored:
            return None
        first = next(iter((*args, *kwargs.values())))
        if self._part is None:
            self._note_validation(site, first, output)
            return None
        out = output[0] if isinstance(output, tuple) else output
        if not out.requires_grad:
            return None
        a: Any = _bound(layer, args, kwargs) if site.wants_all else first
        part = self._part
        axis, doubt = find_axis(site.name, site.axis, site.name in self._axes, first, out, part.size)
        if doubt is not None:
            self._settle(doubt, (site.name, axis))
        if axis is None and site.wants_all:
            raise ValueError(f"{site.where} was called without samples, which only layers of one input may be")
        if axis is None and site.axis is None:  # for certain; what becomes of it need not have the form of a batch
            keys = {parameter: key for parameter, _ in layer.named_parameters() if (key := site.key_of(parameter))}
            self._outside.derive(layer, keys, a, out)
            return None
        if axis is None:  # the same for every sample until here, and from here on a batch
            a, output, axis = repeated(a, part.size), repeated(out, part.size), 0
            out = output
        out.register_hook(self._backward(site, part, a, axis))
        return output

    def _settle(self, doubt: Doubt, case: tuple[str, BatchAxis]) -> None:
        """Raise the doubt's error if it is one: at once where such a call is the layer's first, later otherwise."""
        assert self._checks is not None

        def check(wrong: NDArray[np.float64]) -> None:
            if wrong:
                raise doubt.error

        if case in self._settled:
            self._checks.expect(doubt.wrong, check)
        else:
            check(to_host(doubt.wrong)())
            self._settled.add(case)

    def _backward(self, site: Site, part: Part, a: Any, axis: BatchAxis) -> Callable[[Tensor], None]:
        """Let autograd keep a, and return the hook that makes a term of it when b comes."""
        leaves, spec = tree_flatten(a)
        slots = [number for number, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        saved = save([leaves[slot].detach() for slot in slots])
        leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]

        def backward(b: Tensor) -> None:
            found = dict(zip(slots, saved(), strict=True))
            known = tree_unflatten([found.get(slot, leaf) for slot, leaf in enumerate(leaves)], spec)
            if not site.wants_all:
                known = batch_first(known, axis)
            self._receive(LayerTerm(site, part, known, batch_first(b.detach(), axis)))

        return backward

    def _forward_compiled(
        self, slot: int, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        if self._part is None or not torch.is_grad_enabled():
            return None
        if site.wants_all:
            raise TypeError(f"{site.where} cannot be watched inside of a compiled graph; compile the parts around it")
        a, size = next(iter((*args, *kwargs.values()))), self._part.size
        axis = site.axis if isinstance(site.axis, int) else 0
        if site.axis is None or (site.axis != "folded" and output.shape[axis] != size and not a.is_floating_point()):
            a, output = repeated(a, size), repeated(output, size)  # positions
        return pass_through(output, a.detach(), self._number, slot)

    def _note_validation(self, site: Site, a: Any, output: Any) -> None:
        how = self._maps.get(site.name)
        if how is None or how.transposed is None:
            return
        self._validation_positions[site.name] = a.shape[:-1].numel()
        key = site.key_of("weight")
        if self._collecting is not None and key in self._collecting[0]:
            self._collecting[1].append(Collected(str(key), a.detach(), output, how.transposed))

    def score_compiled(self, slot: int, a: Tensor, b: Tensor, with_bias: bool) -> tuple[Tensor, Tensor | None]:
        """Return the gradients of a linear map in a compiled graph, and score its samples on the way."""
        site, part = self._sites[slot], self._latest
        if part is None or self._probes is None:
            raise RuntimeError(f"{site.where} was differentiated after its step; call backward() inside the with-block")
        call = self._call_to_score(site, self._maps[site.name], part)
        return scored_gradients(call, a, b, with_bias=with_bias)

    def _replace_forwards(self) -> list[nn.Module]:
        """Route the forward passes of linear maps and convolutions through :meth:`_run`; return these layers."""
        replaced = []
        for slot, site in enumerate(self._sites):
            how = self._maps.get(site.name)
            if how is not None and site.axis == 0 and site.key_of("weight") and "forward" not in vars(site.layer):
                site.layer.__dict__["forward"] = _Forward(site.layer, partial(self._run, slot, site, how))
                replaced.append(site.layer)
        return replaced

    def _run(self, slot: int, site: Site, how: ScoredBackward, a: Tensor) -> Any:
        """Run a layer, with a backward pass that scores its samples if that is the fastest rule."""
        layer: Any = site.layer
        part, probes = self._part, self._probes
        if part is None or probes is None or len(a) != part.size or not torch.is_grad_enabled():
            return _plain(layer, a)
        positions, d_in, d_out = how.size(layer, a)
        call = Call(part.size, positions, d_in, d_out, how.price, len(probes), device=a.device.type)
        rule: Any = fastest(call) if self._rules in ("auto", "gram") else self._rules
        if torch.compiler.is_compiling():
            if rule != "weight-gradient" or how.transposed is None:
                return _plain(layer, a)
            self._scored = True
            return scored_linear(a, layer.weight, layer.bias, how.transposed, self._number, slot)
        self.chosen[site.name] = rule = "gram" if isinstance(probes[0][str(site.key_of("weight"))], Factors) else rule
        if how.transposed is not None:
            self._calls[site.name] = call
        if rule != "weight-gradient":
            return _plain(layer, a)
        self._scored = True
        return scored_call(self._call_to_score(site, how, part), a)

    def _call_to_score(self, site: Site, how: ScoredBackward, part: Part) -> Scored:
        probes, scores = self._probes, self._scores
        assert probes is not None
        assert scores is not None

        def receive(found: Tensor) -> None:
            scores.add_scores(site.where, part, found)
            scores.keys |= site.keys

        keys = str(site.key_of("weight")), site.key_of("bias")
        return Scored(site.layer, how, *keys, probes, receive, site.kernels)

    def _refuse_coupling(self, name: str, layer: nn.Module, *_: Any) -> None:
        if self._part is not None and layer.training:
            raise TypeError(_coupled(name, layer))


class _Hook:
    """A hook on one layer that does nothing on copies of it, and is not copied with it."""

    def __init__(self, layer: nn.Module, function: Callable[..., Any]) -> None:
        self._layer, self._function = layer, function

    def __call__(self, layer: nn.Module, *arguments: Any) -> Any:
        return self._function(layer, *arguments) if layer is self._layer else None

    def __deepcopy__(self, _memo: Any) -> _Hook:
        return self


class _Forward:
    """Stands in for the forward of a watched layer; a copy of the layer has its plain one."""

    def __init__(self, layer: nn.Module, run: Callable[[Tensor], Any]) -> None:
        self._layer, self._run = layer, run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(*args) if len(args) == 1 and not kwargs else _plain(self._layer, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> MethodType:
        return MethodType(type(self._layer).forward, copy.deepcopy(self._layer, memo))


def _plain(layer: Any, *args: Any, **kwargs: Any) -> Any:
    return type(layer).forward(layer, *args, **kwargs)


def _sites(
    model: nn.Module, key_of: Mapping[nn.Parameter, str], axes: Mapping[str, BatchAxis], kernels: Backend
) -> list[Site]:
    """Return the layers whose trained parameters have rules; refuse what couples samples."""
    unknown = sorted(axes.keys() - {name for name, _ in model.named_modules()} - {""})
    if unknown:
        raise ValueError(f"batch_axis names {unknown[0]!r}, which is no layer of the model")
    sites: list[Site] = []
    claimed: set[str] = set()  # layers whose parameters a rule of their parent serves
    for name, layer in model.named_modules():
        if isinstance(layer, BATCH_NORM) and layer.training:
            raise TypeError(_coupled(name, layer))
        if name in claimed:
            continue
        own = dict(layer.named_parameters(remove_duplicate=False))
        rules = []
        for rule in find_rules(layer):
            keys = tuple(key_of.get(own[p]) if p in own else None for p in rule.parameters)
            if any(keys):
                rules.append((rule, keys))
                claimed |= {f"{name}.{p.rpartition('.')[0]}".lstrip(".") for p in rule.parameters if "." in p}
        if rules:
            axis = axes.get(name, axes.get("", rules[0][0].batch_axis(layer)))
            sites.append(Site(name, layer, tuple(rules), axis, kernels))
    return sites


def _coupled(name: str, layer: nn.Module) -> str:
    where = f"{name!r} ({type(layer).__name__})" if name else f"the model itself ({type(layer).__name__})"
    return (
        f"batch norm couples the samples of a batch, so {where} has no per-sample gradient in training mode; "
        "replace it by nn.GroupNorm, or freeze its statistics with eval()"
    )


def _bound(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    bound = inspect.signature(layer.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)
