"""Layers with rules: what goes in, and what gradient comes back.

A forward hook on each layer whose parameters have ghost rules sees the layer's input a; a hook on the output tensor
sees the gradient b of the batch's loss with respect to it. Together they are a
:class:`~inrun_bench.attribution.layer_terms.LayerTerm`. While nobody watches, both return at once.

Inputs are kept by autograd itself, as if the layer had saved them, so that whatever it does with saved tensors
(activation checkpointing, offloading) is done with ours.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from inrun_bench.attribution.capture.batch_axis import BatchAxis, Unclear, batch_first, repeated
from inrun_bench.attribution.capture.calls import ObservedCalls
from inrun_bench.attribution.capture.compiled import announce, expect, pass_through, refuse
from inrun_bench.attribution.capture.custom_functions import is_of_a_layer
from inrun_bench.attribution.capture.factors import ValidationFactors
from inrun_bench.attribution.capture.fused import FusedLayers
from inrun_bench.attribution.capture.hooks import LayerHook
from inrun_bench.attribution.capture.in_place import hook_on_value
from inrun_bench.attribution.capture.observation import Seen
from inrun_bench.attribution.capture.operation_terms import Operation, OperationTerm
from inrun_bench.attribution.capture.operations import FollowedOperations
from inrun_bench.attribution.capture.saved_tensors import in_backward_pass, save
from inrun_bench.attribution.capture.trees import tensors_of
from inrun_bench.attribution.families import find_rules
from inrun_bench.attribution.layer_terms import LayerSite, LayerTerm, MicroBatch, Term
from inrun_bench.attribution.products.backend import Backend
from inrun_bench.attribution.random_state import RandomState

__all__ = ["WatchedLayers", "find_sites"]


class WatchedLayers:
    """Hooks on the layers that have rules.

    Parameters
    ----------
    sites : sequence of LayerSite
        The layers.
    receive : callable
        Called in the backward pass with the term of each call of each layer, while watching.
    calls : ObservedCalls
        Says what numbers the samples.
    fused : FusedLayers
        Told of each call, and asked whether it has scored itself.
    operations : FollowedOperations
        Goes on with what layers make without samples.
    factors : ValidationFactors
        Shown what is called in validation passes.

    Attributes
    ----------
    micro_batch : MicroBatch or None
        Of the forward passes to come; None while nobody watches.
    """

    def __init__(
        self,
        sites: Sequence[LayerSite],
        receive: Callable[[Term], None],
        calls: ObservedCalls,
        fused: FusedLayers,
        operations: FollowedOperations,
        factors: ValidationFactors,
    ) -> None:
        self.watched = 0  # calls, whose terms a backward pass will bring if it reaches them
        self.micro_batch: MicroBatch | None = None
        self.latest: MicroBatch | None = None  # for compiled graphs, which cannot remember theirs
        self._sites, self._receive = sites, receive
        self._calls, self._fused, self._operations, self._factors = calls, fused, operations, factors
        self._entered: list[tuple[LayerSite, Seen, RandomState | None]] = []  # calls that are going on
        self._number = announce(self)
        self._handles: list[Any] = []
        for slot, site in enumerate(sites):
            enter, leave = LayerHook(site.layer, partial(self._enter, site)), partial(self._leave, slot, site)
            self._handles.append(site.layer.register_forward_pre_hook(enter, with_kwargs=True))
            hook = LayerHook(site.layer, leave)  # also where the forward raises, as a checkpoint's does that has enough
            self._handles.append(site.layer.register_forward_hook(hook, with_kwargs=True, always_call=True))

    def remove(self) -> None:
        """Take all hooks off the layers."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def forget(self) -> None:
        """Let go of calls that were begun and never ended: a forward pass that raised."""
        self._entered.clear()
        self._fused.entered.clear()
        self._operations.inside = 0

    def receive_compiled(self, slot: int, axis: int, a: Tensor, b: Tensor) -> None:
        """Take a term from a compiled graph, which may write over what it has handed out."""
        if self.latest is not None:
            self.latest.of_a_graph()
            a, b = (batch_first(x, axis).clone() for x in (a, b))
            self._receive(LayerTerm(self._sites[slot], self.latest, a, b))

    def _enter(self, site: LayerSite, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return
        seen: Seen = None if self.micro_batch is None else self._calls.of_layer(site)
        state = None
        if self.micro_batch is not None and torch.is_grad_enabled():
            with torch._C.DisableTorchFunction():  # what is asked of tensors here is no operation of the model's
                replayed = site.replays or seen is None or self._operations.takes_part(args, kwargs)
                state = RandomState.now(tensors_of(args, kwargs)) if replayed else None
        self._calls.count.pause()
        self._entered.append((site, seen, state))
        self._fused.entered.append(seen)
        self._operations.inside = len(self._entered)

    def _leave(
        self, slot: int, site: LayerSite, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        scored = self._fused.take_scored()
        if torch.compiler.is_compiling():
            expect(self._number, "note_compiled")
            return None if scored else self._leave_compiled(slot, site, args, kwargs, output)
        seen, state = self._left(site)
        if output is not None and torch.is_grad_enabled() and self.micro_batch is None:
            self._factors.note(site, next(iter((*args, *kwargs.values()))), output)
        elif output is not None and torch.is_grad_enabled():
            with torch._C.DisableTorchFunction():
                self._watch(site, args, kwargs, output[0] if isinstance(output, tuple) else output, seen, state, scored)
        self._calls.count.go_on()
        return None

    def _watch(
        self,
        site: LayerSite,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        first: Tensor,
        seen: Seen,
        state: RandomState | None,
        scored: bool,
    ) -> None:
        """Watch for the gradient of a layer's output, or follow the output where no samples went in."""
        assert self.micro_batch is not None
        if not first.requires_grad:
            return
        frozen = site.frozen
        if frozen is None:
            raise ValueError(
                f"{site.where} was called while some of its parameters were frozen (requires_grad=False) and others "
                "were not, which its rule does not tell apart; freeze all of them for a call, or none, or freeze some "
                "before InRunShapley is made"
            )
        if frozen and not self._operations.takes_part(args, kwargs):
            return
        if isinstance(seen, Unclear):
            raise seen.error(site.where, site.name)
        if site.wants_all:
            self._operations.note_caller(site.layer)
        is_of_a_layer(first)
        if state is not None and not state.drawn_from():
            state = None
        if seen is None:
            shown = _is_repeated(next(iter((*args, *kwargs.values()))), first, self.micro_batch.size)
            self._operations.derive(site.layer, args, kwargs, first, state, shown=shown)
            return
        _check_size(site, seen, first, self.micro_batch)
        operation = self._operations.through(site.layer, args, kwargs, state)
        if self._fused.joint is not None and not (scored or frozen):
            self._fused.joint.called(list(site.keys))
        if operation is not None or not (scored or frozen):
            self.watched += (operation is not None) + (not (scored or frozen))
            call = _WatchedCall(site, self.micro_batch, seen, state, operation, scored or frozen)
            hook = call.hook(args, kwargs, self._receive, self._operations.apart)
            base = first._base  # through which a view may be written into
            whole = base is not None and base.requires_grad and base.numel() == first.numel()
            hook_on_value(first, hook) if whole else first.register_hook(hook)

    def _left(self, site: LayerSite) -> tuple[Seen, RandomState | None]:
        """Return what is known of the call that ends; nothing of one that raised before it was begun."""
        seen: Seen = None
        state = None
        if self._entered and self._entered[-1][0] is site:
            _, seen, state = self._entered.pop()
            self._fused.entered.pop()
        self._operations.inside = len(self._entered)
        return seen, state

    def note_compiled(self) -> None:
        """Note that a layer is part of a graph, in which nobody sees it run."""
        self._calls.compiled = True

    def expect_clear(self, slot: int) -> None:
        """Refuse a layer in a graph whose samples are not known."""
        seen = self._calls.of_compiled_layer(self._sites[slot])
        if isinstance(seen, Unclear):
            raise seen.error(self._sites[slot].where, self._sites[slot].name)

    def _leave_compiled(
        self, slot: int, site: LayerSite, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        if self.micro_batch is None or not torch.is_grad_enabled():
            return None
        if site.wants_all:
            refuse(TypeError, f"{site.where} cannot be watched inside of a compiled graph; compile the parts around it")
        a, size = next(iter((*args, *kwargs.values()))), self.micro_batch.size
        seen = self._calls.of_compiled_layer(site)
        if isinstance(seen, Unclear) and not seen.by_size:
            expect(self._number, "expect_clear", slot)
        axis = _axis_by_size(site, a, output, size) if isinstance(seen, Unclear) else seen
        if axis is None and _is_expanded(a, size):
            axis = 0
        if axis is None:
            if not _is_repeated(a, output, size):
                refuse(
                    TypeError,
                    f"{site.where} sees no samples, and returns a tensor of shape {list(output.shape)}: inside of a "
                    "compiled graph it is not seen where samples meet it. Compile the parts around it, or hand the "
                    "model what it looks up (token_type_ids, positions) with a row for each sample",
                )
            a, output, axis = repeated(a, size), repeated(output, size), 0
        return pass_through(output, a.detach(), self._number, slot, 0 if axis == "folded" else axis)


@dataclass(frozen=True)
class _WatchedCall:
    """One call of a layer on the samples: of its rules, unless it scores itself, and of what is followed through it."""

    site: LayerSite
    micro_batch: MicroBatch
    axis: int | Literal["folded"]
    state: RandomState | None
    operation: Operation | None
    scored: bool

    def hook(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        receive: Callable[[Term], None],
        apart: Callable[[Tensor], Tensor],
    ) -> Callable[[Tensor], None]:
        """Let autograd keep the arguments, and return the hook that makes terms of them when b comes."""
        leaves, rebuilt = _flattened(args, kwargs)
        known_by_chain = self.operation.sources if self.operation is not None and self.scored else ()
        slots = [slot for slot, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and slot not in known_by_chain]
        saved = save([apart(leaves[slot]) for slot in slots], self.site.where)
        leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        anew = in_backward_pass()

        def backward(b: Tensor) -> None:
            if anew:
                self.micro_batch.computed_anew()
            known = list(leaves)
            for slot, tensor in zip(slots, saved(), strict=True):
                known[slot] = tensor
            for term in self.terms(known, rebuilt, b.detach()):
                receive(term)

        return backward

    def terms(
        self, leaves: list[Any], rebuilt: Callable[[list[Any]], tuple[tuple[Any, ...], dict[str, Any]]], b: Tensor
    ) -> Iterator[Term]:
        """Yield the terms that a gradient of the output brings."""
        if self.operation is not None:
            known = tuple(None if slot in self.operation.sources else leaf for slot, leaf in enumerate(leaves))
            yield OperationTerm(replace(self.operation, leaves=known), self.micro_batch, self.axis, b)
        if self.scored:
            return
        args, kwargs = rebuilt(leaves)
        a: Any
        if self.site.wants_all:
            a = _bound(self.site.layer, args, kwargs)
            if self.site.replays and self.state is not None:
                a["random_state"] = self.state
        else:
            a = batch_first(next(iter((*args, *kwargs.values()))), self.axis)
        yield LayerTerm(self.site, self.micro_batch, a, batch_first(b, self.axis))


def _is_expanded(a: Any, size: int) -> bool:
    """Whether a layer's input is one row, expanded for all samples."""
    return isinstance(a, Tensor) and a.dim() > 1 and a.shape[0] == size and a.stride(0) == 0


def _is_repeated(a: Any, output: Tensor, size: int) -> bool:
    """Whether an output without samples is one for all of them, or can be repeated for each in a compiled graph."""
    return _is_expanded(a, size) or output.dim() <= 2 or output.shape[0] == 1


def _flattened(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Any], Callable[[list[Any]], tuple[tuple[Any, ...], dict[str, Any]]]]:
    """Return the leaves of arguments, and what makes arguments of them again."""
    if not kwargs and all(isinstance(each, Tensor) for each in args):  # as in most layers; trees take their time
        return list(args), lambda leaves: (tuple(leaves), {})
    leaves, spec = tree_flatten((args, kwargs))
    return leaves, lambda leaves: tree_unflatten(leaves, spec)


def find_sites(model: nn.Module, key_of: Mapping[nn.Parameter, str], kernels: Backend) -> list[LayerSite]:
    """Return the layers whose trained parameters have rules; `key_of` names these parameters."""
    sites: list[LayerSite] = []
    claimed: set[str] = set()  # layers whose parameters a rule of their parent serves
    for name, layer in model.named_modules():
        if name in claimed:
            continue
        own = dict(layer.named_parameters(remove_duplicate=False))
        rules = []
        for rule in () if _computes_weights(layer) else find_rules(layer):
            keys = tuple(key_of.get(own[p]) if p in own else None for p in rule.parameters)
            if any(keys):
                rules.append((rule, keys))
                claimed |= {f"{name}.{p.rpartition('.')[0]}".lstrip(".") for p in rule.parameters if "." in p}
        if rules:
            site = LayerSite(name, layer, tuple(rules), kernels)
            _ = site.frozen  # which parameters are its own is seen now, and not while others stand in for them
            sites.append(site)
    return sites


def _computes_weights(layer: nn.Module) -> bool:
    """Whether hooks put what they compute of other parameters where the layer had one (pruning, old weight norm)."""
    return any(isinstance(vars(layer).get(name), Tensor) for rule in find_rules(layer) for name in rule.parameters)


def _check_size(site: LayerSite, axis: int | Literal["folded"], output: Tensor, micro_batch: MicroBatch) -> None:
    size = micro_batch.size
    number = 0 if axis == "folded" else axis
    length = output.shape[number] if output.dim() > number else -1
    if length != size and not (axis == "folded" and length % size == 0):
        rows = f"index names {size - micro_batch.validation}"
        rows += f" and validation_rows {micro_batch.validation}" if micro_batch.validation else ""
        raise ValueError(
            f"{rows} samples, but {site.where} returned a tensor of shape {list(output.shape)}, whose axis "
            f"{number} does not number them; name the axis that does with batch_axis={{{site.name!r}: axis}} (None "
            "where the layer sees no samples, 'folded' where the first axis numbers samples and positions, samples "
            "slowest)"
        )


def _axis_by_size(site: LayerSite, a: Tensor, output: Tensor, size: int) -> BatchAxis:
    """Return the only axis that can number samples, in a graph whose numbers nobody sees yet."""
    axes = [axis for axis, length in enumerate(output.shape) if length == size]
    if len(axes) == 1 and (a.is_floating_point() or a.dim() > 1):
        return axes[0]
    if not axes and not a.is_floating_point():
        return None  # positions
    refuse(
        ValueError,
        f"{site.where} returned a tensor of shape {list(output.shape)} in a compiled graph, where it is not seen which "
        f"axis numbers the {size} samples; take the first step of this way through the model under "
        f"torch.compiler.set_stance('force_eager'), or say it with batch_axis={{{site.name!r}: axis}}",
    )
    return None


def _bound(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    bound = inspect.signature(layer.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)
