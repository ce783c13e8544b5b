"""Watching a model's layers: what goes in, and what gradient comes back.

A forward hook on each layer whose parameters have ghost rules sees the layer's input a; a hook on the output tensor
sees the gradient b of the batch's loss with respect to it. Together they are a *term*: the share of the samples'
gradients that this call of the layer makes, ready to be dotted with a probe. Parameters that no rule covers are followed
operation by operation (:mod:`~inrun_bench.attribution.outside`). While watching is off the hooks return at once.

Inputs are kept by autograd itself, as if the layer had saved them, so that whatever it does with saved tensors
(activation checkpointing, offloading) is done with ours.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from inrun_bench.attribution.compiled import announce, pass_through
from inrun_bench.attribution.costs import Call, fastest
from inrun_bench.attribution.outside import Followed, OutsideTerm
from inrun_bench.attribution.rules import Rule, find_rules
from inrun_bench.attribution.saving import save
from inrun_bench.attribution.weight_gradient import Scored, find_map, scored_call

if TYPE_CHECKING:
    from inrun_bench.attribution.scores import Scores

__all__ = ["BatchAxis", "Capture", "LayerTerm", "Part", "Site", "Term"]

BatchAxis: TypeAlias = int | None | Literal["folded"]
"""Which axis of a layer's input and output numbers the samples; None: none does (positions); ``"folded"``: the first
one numbers samples and positions, samples slowest."""

BATCH_NORM = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Part:
    """The samples of one forward pass: where in the step's batch they stand, and how many there are."""

    rows: Tensor
    size: int


@dataclass(frozen=True)
class Site:
    """A layer whose parameters have ghost rules; `keys` are the rule's parameters' names among the model's."""

    name: str
    layer: nn.Module
    rules: tuple[tuple[Rule, tuple[str | None, ...]], ...]
    axis: BatchAxis = 0

    @property
    def where(self) -> str:
        """The layer's name, for messages."""
        return f"layer {self.name!r} ({type(self.layer).__name__})"

    @property
    def keys(self) -> set[str]:
        """Names of the parameters that the site covers."""
        return {key for _, keys in self.rules for key in keys if key}

    @property
    def wants_all(self) -> bool:
        """Whether a rule wants all arguments of the layer's forward."""
        return any(rule.inputs == "all" for rule, _ in self.rules)

    def score(self, a: Any, b: Tensor, probe: Mapping[str, Tensor]) -> Tensor:
        """Return the dot products of the layer's gradients with `probe` (by parameter key), [B]."""
        scores = []
        for rule, keys in self.rules:
            q = [probe.get(key) if key else None for key in keys]
            if any(direction is not None for direction in q):
                scores.append(rule.function(self.layer, a, b, *q))
        total: Tensor = sum(scores[1:], start=scores[0]) if scores else b.new_zeros(len(b))
        return total


@dataclass(frozen=True)
class LayerTerm:
    """One call of a layer: its input and the gradient of its output, batch first."""

    site: Site
    part: Part
    a: Any
    b: Tensor

    @property
    def where(self) -> str:
        """The layer's name, for messages."""
        return self.site.where

    @property
    def keys(self) -> set[str]:
        """Names of the parameters concerned."""
        return self.site.keys

    @property
    def tensors(self) -> list[Tensor]:
        """What is kept in memory."""
        return [leaf for leaf in tree_flatten((self.a, self.b))[0] if isinstance(leaf, Tensor)]

    def score(self, probe: Mapping[str, Tensor]) -> Tensor:
        """Return the dot products with `probe`, [part.size]."""
        if self.b.dtype == torch.float16:  # a probe's numbers may be too small for it
            return self.rounded(torch.float32).score(probe)
        return self.site.score(self.a, self.b, probe)

    def rounded(self, dtype: torch.dtype) -> LayerTerm:
        """Return the term with its floating-point tensors in another precision."""
        leaves, spec = tree_flatten((self.a, self.b))
        a, b = tree_unflatten([_round(leaf, dtype) for leaf in leaves], spec)
        return replace(self, a=a, b=b)


Term: TypeAlias = LayerTerm | OutsideTerm


@dataclass(eq=False)
class Capture:
    """Hooks on a model's layers.

    Parameters
    ----------
    model : torch.nn.Module
        The model in training.
    receive : callable
        Called in the backward pass with a :class:`Term` for each call of each layer, while watching.
    axes : mapping of str to BatchAxis
        Layers whose batch axis is not the rule's own, by name; ``""`` stands for all others.
    rules : {"auto", "project", "weight-gradient"}
        How linear maps and convolutions are scored where the probe is known in time.

    Attributes
    ----------
    parameters : dict of str to Parameter
        The trained parameters by name; a parameter that several layers share appears once.
    part : Part or None
        The samples of the forward passes to come; None while nobody watches.
    chosen : dict of str to str
        The rule that each layer's last call was scored by.
    """

    model: nn.Module
    receive: Callable[[Term], None]
    axes: Mapping[str, BatchAxis] = field(default_factory=dict)
    rules: str = "auto"

    def __post_init__(self) -> None:
        self.parameters: dict[str, nn.Parameter] = {
            name: p for name, p in self.model.named_parameters() if p.requires_grad
        }
        if not self.parameters:
            raise ValueError("model has no trained parameters (none has requires_grad=True)")
        self.part: Part | None = None
        self._latest: Part | None = None  # of the last forward pass, for backward passes that cannot remember theirs
        self.sites = _sites(self.model, {p: name for name, p in self.parameters.items()}, self.axes)
        covered = set().union(*(site.keys for site in self.sites))
        self.outside = Followed(
            self.parameters,
            self.model,
            self.receive,
            self._axis_of_operations(),
            uncovered=self.parameters.keys() - covered,
        )
        self._owners = [
            (module, attribute, name, p, p.device)
            for name, p in self.parameters.items()
            for module, attribute in _owners(self.model, p)
        ]
        self.chosen: dict[str, str] = {}
        self._probes: Sequence[Mapping[str, Tensor]] | None = None
        self._scores: Scores | None = None
        self._scored = False  # whether the layer being left has been scored by its weight gradient
        self._replaced = [] if self.rules == "project" else self._replace_backwards()
        self._number = announce(self)
        self._handles: list[Any] = []
        for slot, site in enumerate(self.sites):
            self._handles.append(site.layer.register_forward_pre_hook(self._enter))
            self._handles.append(
                site.layer.register_forward_hook(partial(self._forward, slot, site), with_kwargs=True)
            )
        for name, layer in self.model.named_modules():
            if isinstance(layer, BATCH_NORM):
                self._handles.append(layer.register_forward_pre_hook(partial(self._refuse_coupling, name)))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the forward passes of this block, and their backward passes whenever they come."""
        with self.outside:
            try:
                yield
            finally:
                self.part = self._latest = self.outside.part = None

    def show(self, part: Part | None) -> None:
        """Say which samples the coming forward passes hold; None: look away."""
        self.part = self.outside.part = part
        self._latest = part or self._latest

    def aim(self, probes: Sequence[Mapping[str, Tensor]] | None, scores: Scores) -> None:
        """Say which probes weight gradients may be dotted with on their way, and where the scores go; None: not yet known."""
        self._probes, self._scores = probes, scores

    def remove(self) -> None:
        """Take all hooks off the model."""
        for handle in self._handles:
            handle.remove()
        for layer in self._replaced:
            del layer.forward
            del _WATCHED[layer]
        self._replaced = []

    def check_parameters(self) -> None:
        """Refuse to go on with parameters that are no longer those that the engine was made for."""
        for module, attribute, name, parameter, device in self._owners:
            present = getattr(module, attribute, None)
            if present is not parameter:
                raise RuntimeError(
                    f"parameter {name!r} was replaced since InRunShapley was made; "
                    "make a new engine, or change the weights in place"
                )
            if parameter.device != device:
                raise RuntimeError(
                    f"parameter {name!r} moved from {device} to {parameter.device} since InRunShapley was made; "
                    "move the model first and make the engine then"
                )

    def _replace_backwards(self) -> list[nn.Module]:
        """Route the forward passes of linear maps and convolutions through :meth:`_run`; return these layers."""
        replaced = []
        for site in self.sites:
            layer = site.layer
            if find_map(layer) and site.axis == 0 and layer.weight.requires_grad and "forward" not in vars(layer):
                _WATCHED[layer] = partial(self._run, site)
                layer.__dict__["forward"] = MethodType(_watched_forward, layer)
                replaced.append(layer)
        return replaced

    def _run(self, site: Site, a: Tensor) -> Tensor:
        """Run a layer, with a backward pass that scores its samples if that is the faster rule."""
        layer: Any = site.layer
        part, probes, scores = self.part, self._probes, self._scores
        plain = type(layer).forward
        if part is None or probes is None or scores is None or not torch.is_grad_enabled() or len(a) != part.size:
            output: Tensor = plain(layer, a)
            return output
        how = find_map(layer)
        assert how is not None
        positions, d_in, d_out = how.size(layer, a)
        call = Call(part.size, positions, d_in, d_out, how.call_seconds, len(probes), device=a.device.type)
        self.chosen[site.name] = fastest(call) if self.rules == "auto" else self.rules
        if self.chosen[site.name] == "project":
            output = plain(layer, a)
            return output
        names = {p: key for rule, keys in site.rules for p, key in zip(rule.parameters, keys, strict=True)}
        self._scored = True
        return scored_call(
            Scored(
                layer,
                how,
                str(names["weight"]),
                names.get("bias"),
                probes,
                lambda found: self._receive_scores(site, part, scores, found),
            ),
            a,
        )

    def _receive_scores(self, site: Site, part: Part, scores: Scores, found: Tensor) -> None:
        scores.add_rows(site.where, part.rows, found)
        scores.keys |= site.keys

    def _axis_of_operations(self) -> int:
        axis = self.axes.get("", 0)
        return axis if isinstance(axis, int) else 0

    def receive_compiled(self, slot: int, a: Tensor, b: Tensor) -> None:
        """Take a term from a compiled graph, which may write over what it has handed out."""
        if self._latest is not None:
            site, part = self.sites[slot], self._latest
            axis: BatchAxis = 0 if site.axis is None else site.axis
            self.receive(LayerTerm(site, part, _first(a, axis, part).clone(), _first(b, axis, part).clone()))

    def _enter(self, *_: Any) -> None:
        if not torch.compiler.is_compiling():
            self.outside.inside += 1

    def _refuse_coupling(self, name: str, layer: nn.Module, *_: Any) -> None:
        if self.part is not None and layer.training:
            raise TypeError(_coupled(name, layer))

    def _forward(
        self, slot: int, site: Site, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        if torch.compiler.is_compiling():
            return self._forward_compiled(slot, site, args, kwargs, output)
        self.outside.inside -= 1
        part = self.part
        if self._scored or part is None or not torch.is_grad_enabled():
            self._scored = False
            return None
        out = output[0] if isinstance(output, tuple) else output
        if not out.requires_grad:
            return None
        a = _bound(layer, args, kwargs) if site.wants_all else next(iter((*args, *kwargs.values())))
        axis = self._axis(site, a, out, part)
        if axis is None:  # positions: the same for every sample, until they are many
            out = out.reshape(out.shape[1:] if out.shape[0] == 1 else out.shape).expand(part.size, *_tail(out))
            a = a.reshape(_tail(a)).expand(part.size, *_tail(a))
            axis, output = 0, out
        leaves, spec = tree_flatten(a)
        slots = [number for number, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        saved = save([leaves[slot].detach() for slot in slots])

        def backward(b: Tensor) -> None:
            for slot, tensor in zip(slots, saved(), strict=True):
                leaves[slot] = tensor
            known = tree_unflatten(leaves, spec)
            leaves.clear()
            self.receive(
                LayerTerm(site, part, known if site.wants_all else _first(known, axis, part), _first(b, axis, part))
            )

        out.register_hook(backward)
        return output

    def _forward_compiled(
        self, slot: int, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        if self.part is None or not torch.is_grad_enabled():
            return None
        if site.wants_all:
            raise TypeError(
                f"{site.where} cannot be watched inside of a compiled graph; "
                "compile the parts of the model around it, or none"
            )
        a = next(iter((*args, *kwargs.values())))
        axis = site.axis if isinstance(site.axis, int) else 0
        size = self.part.size
        if site.axis is None or (output.shape[axis] != size and site.axis != "folded" and not a.is_floating_point()):
            output, a = (x.reshape(_tail(x)).expand(size, *_tail(x)) for x in (output, a))  # positions
        return pass_through(output, a.detach(), self._number, slot)

    def _axis(self, site: Site, a: Any, out: Tensor, part: Part) -> BatchAxis:
        axis = site.axis
        if axis is None:
            return None
        if axis == "folded":
            if out.shape[0] % part.size == 0:
                return axis
        elif out.dim() > axis and out.shape[axis] == part.size:
            if part.size > 1 and site.name not in self.axes and _positions(a) and a.dim() == 1:
                raise ValueError(
                    f"layer {site.name!r} was called with 0 .. {part.size - 1}, which may number the batch's samples "
                    f"or positions; say which with batch_axis={{{site.name!r}: 0}} or {{{site.name!r}: None}}"
                )
            return axis
        elif site.name not in self.axes and (out.shape[0] == 1 or _positions(a)):
            return None
        raise ValueError(
            f"index names {part.size} samples, but layer {site.name!r} ({type(site.layer).__name__}) returned a "
            f"tensor of shape {list(out.shape)}, whose axis {0 if axis == 'folded' else axis} does not number them; "
            "name the axis that does with batch_axis={layer: axis} (None where the layer sees positions and no "
            "samples, 'folded' where the first axis numbers samples and positions, samples slowest)"
        )


_WATCHED: weakref.WeakKeyDictionary[nn.Module, Callable[[Tensor], Tensor]] = weakref.WeakKeyDictionary()


def _watched_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Stand in for the forward of a watched layer; a copy of one is not watched."""
    run = None if torch.compiler.is_compiling() else _WATCHED.get(self)
    if run is None or kwargs or len(args) != 1:
        return type(self).forward(self, *args, **kwargs)
    return run(*args)


def _sites(
    model: nn.Module, key_of: Mapping[nn.Parameter, str], axes: Mapping[str, BatchAxis]
) -> list[Site]:
    """Return the layers whose trained parameters have rules; refuse what couples samples."""
    names = {name for name, _ in model.named_modules()}
    unknown = sorted(axes.keys() - names - {""})
    if unknown:
        raise ValueError(f"batch_axis names {unknown[0]!r}, which is no layer of the model")
    sites: list[Site] = []
    claimed: set[str] = set()
    for name, layer in model.named_modules():
        if isinstance(layer, BATCH_NORM) and layer.training:
            raise TypeError(_coupled(name, layer))
        rules = []
        own = dict(layer.named_parameters(remove_duplicate=False))
        for rule in find_rules(layer):
            if name in claimed:
                continue
            keys = tuple(key_of.get(own[p]) if p in own else None for p in rule.parameters)
            if any(keys):
                rules.append((rule, keys))
                claimed |= {f"{name}.{p.rpartition('.')[0]}".lstrip(".") for p in rule.parameters if "." in p}
        if rules:
            axis = axes.get(name, axes.get("", rules[0][0].batch_axis(layer)))
            sites.append(Site(name, layer, tuple(rules), axis))
    return sites


def _owners(model: nn.Module, parameter: nn.Parameter) -> list[tuple[nn.Module, str]]:
    return [
        (module, attribute)
        for module in model.modules()
        for attribute, p in module.named_parameters(recurse=False)
        if p is parameter
    ]


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


def _first(tensor: Tensor, axis: BatchAxis, part: Part) -> Tensor:
    """Return `tensor` with the batch as its first axis."""
    if axis == "folded":
        return tensor.reshape(part.size, -1, *tensor.shape[1:])
    return tensor.movedim(axis, 0) if axis else tensor


def _tail(tensor: Tensor) -> torch.Size:
    return tensor.shape[1:] if tensor.dim() and tensor.shape[0] == 1 else tensor.shape


def _positions(a: Any) -> bool:
    """Whether a layer was called with 0, 1, 2, ..., as embeddings of positions are."""
    if not isinstance(a, Tensor) or a.is_floating_point() or a.dim() == 0:
        return False
    return bool((a == torch.arange(a.shape[-1], device=a.device)).all())


def _round(leaf: Any, dtype: torch.dtype) -> Any:
    return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
