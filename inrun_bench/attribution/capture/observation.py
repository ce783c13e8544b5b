"""Where samples are: observed by exchanging one sample for another, never guessed from sizes.

Sizes coincide: as many positions as samples, hidden numbers, layers, or a constant of as many rows; and sums of scores
cannot tell, since they run over all axes. What tells is the model itself. Its forward pass is run twice on a twin,
without effect on training: once as it is, once with the rows of one sample exchanged for another's. Along the axis that
numbers the samples, the output of each layer then changes at that sample and nowhere else.

The same shows which operations see no samples at all (what is computed from positions, weights or constants), which
layers mix samples (batch statistics, contrastive losses) and which see their rows in another order (experts). These are
:class:`~inrun_bench.attribution.capture.batch_axis.Unclear`, with the reason. An axis is a fact of the code and not of
the sizes: it is observed once for each form of the arguments, and holds for other sizes.

The twin shares its parameters with the model; buffers, counters and lists are its own, and random numbers are drawn
from a copy of the random state, so that the pass that follows is to the last bit what it would have been.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from inrun_bench.attribution.capture.batch_axis import BatchAxis, Unclear, batch_first, candidates

__all__ = ["Observation", "OperationKey", "Seen", "key_of_operation", "observe", "twin_of"]

Seen: TypeAlias = BatchAxis | Unclear
"""What was seen of one output: the axis that numbers samples, None where it holds none, or why neither is clear."""

OperationKey: TypeAlias = tuple[str, frozenset[str], int, int]
"""An operation on followed parameters: its name, theirs, the number of its result's axes, and which result it is."""

EXCHANGES = 3  # at most; one is enough unless axes that do not number samples changed in one place as well
RESOLUTION = 1e-6  # relative; rows that nothing was done to are the same to the bit, but for sums in random order


@dataclass
class Observation:
    """What was seen in the call of a module, whose layers and operations are listed by name and in their order."""

    layers: dict[str, list[Seen]] = field(default_factory=dict)
    operations: dict[OperationKey, list[Seen]] = field(default_factory=dict)
    failure: Unclear | None = None  # why nothing could be observed
    without_samples: bool = False  # whether nothing in the call holds samples

    @property
    def unclear(self) -> float:
        """How many outputs are unclear."""
        if self.failure is not None:
            return math.inf
        everything = [*self.layers.values(), *self.operations.values()]
        return sum(isinstance(seen, Unclear) for each in everything for seen in each)

    @property
    def unclear_layers(self) -> set[str]:
        """Names of layers of which a call is unclear; all of ``""`` where nothing could be observed."""
        if self.failure is not None:
            return {""}
        return {name for name, calls in self.layers.items() if any(isinstance(seen, Unclear) for seen in calls)}

    def of_layer(self, name: str, call: int | None) -> Seen:
        """Return what was seen of a layer's call, numbered from 0; None: of one that is not known by its number."""
        return self._of(self.layers.get(name, []), call)

    def of_operation(self, key: OperationKey) -> Seen:
        """Return what was seen of an operation."""
        return self._of(self.operations.get(key, []), None)

    def _of(self, calls: list[Seen], call: int | None) -> Seen:
        if self.failure is not None:
            return self.failure
        if self.without_samples:
            return None
        if not calls:
            return Unclear("it was not called when the model was observed, so that its samples are not known")
        if call is not None and call < len(calls):
            return calls[call]
        if all(seen == calls[0] for seen in calls):
            return calls[0]
        return Unclear("its calls had different axes when the model was observed, and it is not known which this is")


def key_of_operation(function: Callable[..., Any], keys: set[str], output: Tensor, slot: int) -> OperationKey:
    """Return what an operation is known by from one pass to the next."""
    return getattr(function, "__name__", str(function)), frozenset(keys), output.dim(), slot


def observe(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    size: int,
    layers: Mapping[nn.Module, str],
    parameters: Mapping[str, nn.Parameter],
    declared: int | None = None,
) -> Observation:
    """Return where the samples are in a call of a module.

    Parameters
    ----------
    module : torch.nn.Module
        What is about to be called.
    args, kwargs
        With what.
    size : int
        Number of samples, at least 2.
    layers : mapping of module to str
        The layers to look at, by their names; those that lie within `module` are seen.
    parameters : mapping of str to Parameter
        Those whose operations are to be looked at, outside of `layers`.
    declared : int, optional
        The axis of arguments that numbers samples, where it is known; every axis of that length is tried otherwise.

    Notes
    -----
    Two forward passes, and one or two more where sizes coincide and the first exchange does not tell.
    """
    leaves, spec = tree_flatten((args, dict(kwargs)))
    watch = _Watch(module, layers, parameters, spec, leaves)
    observations: list[Observation] = []
    if any(leaf.is_meta for leaf in leaves if isinstance(leaf, Tensor)):
        return _failed("tensors without numbers cannot be observed")
    hypotheses = list(_hypotheses(leaves, size, declared))
    for axes in hypotheses:
        exchanges = _exchanges(leaves, axes, size)
        if exchanges:
            observations.append(_observed(watch, axes, exchanges, size, all_of_them=len(hypotheses) > 1))
    if not observations:
        return _failed(
            f"index names {size} samples, but no argument of the call, of shapes "
            f"{[list(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor)]}, has an axis of that length along "
            "which rows differ"
        )
    best = [one for one in observations if one.unclear == min(each.unclear for each in observations)]
    if any(one != best[0] for one in best[1:]):
        return _failed(
            f"several axes of the arguments have the length of the batch, {size}, and each may number its samples"
        )
    return best[0]


@dataclass
class _Output:
    """One output of a layer or operation in one pass."""

    kind: Any  # a layer's name, or the key of an operation
    shape: tuple[int, ...]
    tainted: bool  # whether it was computed from arguments that hold samples
    sums: dict[BatchAxis, Tensor]  # random projections of its slices, by axis that may number samples
    whole: Tensor


@dataclass(frozen=True)
class _Watch:
    module: nn.Module
    layers: Mapping[nn.Module, str]
    parameters: Mapping[str, nn.Parameter]
    spec: Any
    leaves: list[Any]

    def run(self, leaves: list[Any], tainted: set[int], size: int) -> list[_Output]:
        """Run a twin and return what it brought."""
        memo: dict[int, Any] = {}
        twin = twin_of(self.module, memo)
        layers = {memo[id(layer)]: name for layer, name in self.layers.items() if id(layer) in memo}
        recorder = _Recorder({id(p): key for key, p in self.parameters.items()}, size)
        given = [_copied(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        for slot in tainted:
            recorder.taint(given[slot])
        args, kwargs = tree_unflatten(given, self.spec)
        handles = []
        for layer, name in layers.items():
            keys = {key for key, p in self.parameters.items() if any(own is p for own in layer.parameters())}
            handles.append(layer.register_forward_pre_hook(recorder.enter))
            handles.append(layer.register_forward_hook(recorder.leave(name, keys), with_kwargs=True))
        devices = sorted({p.device.index for p in self.module.parameters() if p.device.type == "cuda"})
        with (
            torch.random.fork_rng(devices=devices),
            torch.compiler.set_stance("force_eager"),
            torch.enable_grad(),
            _saving_nothing(),
            warnings.catch_warnings(action="ignore"),  # training will say them
            recorder,
        ):
            twin(*args, **kwargs)
        return recorder.outputs


def _observed(
    watch: _Watch, axes: dict[int, int], exchanges: list[tuple[int, int]], size: int, *, all_of_them: bool
) -> Observation:
    try:
        base = watch.run(watch.leaves, set(axes), size)
    except Exception as error:  # whatever a model raises where it is run beside training
        return _failed(f"to observe its samples the model was run beside training, which failed: {error!r}")
    changes: list[list[tuple[int, Tensor, dict[BatchAxis, Tensor]]]] = [[] for _ in base]
    for sample, other in exchanges:
        leaves = list(watch.leaves)
        for slot, axis in axes.items():
            leaves[slot] = _exchanged(leaves[slot], axis, sample, other)
        try:
            outputs = watch.run(leaves, set(axes), size)
        except Exception as error:
            return _failed(f"the model fails where one sample is exchanged for another: {error!r}")
        if [(each.kind, each.shape) for each in outputs] != [(each.kind, each.shape) for each in base]:
            return _failed("which layers are called, and with what sizes, depends on the samples' values")
        for one, two, of_output in zip(base, outputs, changes, strict=True):
            differing = {axis: _differing(one.sums[axis], two.sums[axis]) for axis in one.sums}
            of_output.append((sample, _differing(one.whole, two.whole), differing))
        seen = [_seen(one, each, size) for one, each in zip(base, changes, strict=True)]
        if not all_of_them and not any(isinstance(each, _Ambiguous) for each in seen):
            break
    observation = Observation()
    for one, each in zip(base, changes, strict=True):
        table: dict[Any, list[Seen]] = observation.layers if isinstance(one.kind, str) else observation.operations
        table.setdefault(one.kind, []).append(_seen(one, each, size))
    return observation


class _Ambiguous(Unclear):
    """Several axes number the samples, for all that was seen so far."""


def _seen(output: _Output, changes: list[tuple[int, Tensor, dict[BatchAxis, Tensor]]], size: int) -> Seen:
    """Return what the exchanges so far say of an output."""
    axes = list(output.sums)
    if not any(bool(whole.any()) for _, whole, _ in changes):
        if not output.tainted:
            return None
        if len(axes) == 1:
            return axes[0]
        return _Ambiguous(f"its output, of shape {list(output.shape)}, did not change with the sample")
    fitting = [
        axis
        for axis in axes
        if all(_at_sample(differing[axis], axis, sample, size) for sample, _, differing in changes)
    ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        return _Ambiguous(f"several axes of its output, of shape {list(output.shape)}, may number the {size} samples")
    return Unclear(
        f"where one of the {size} samples is exchanged for another, its output, of shape {list(output.shape)}, changes "
        "in other places than one row of an axis: it mixes samples, sees a part of them, or has them in another order"
    )


def _at_sample(differing: Tensor, axis: BatchAxis, sample: int, size: int) -> bool:
    """Whether a slice differs at the sample, if at all, and at no other."""
    changed = differing.nonzero().flatten().tolist()
    if axis == "folded":
        block = len(differing) // size
        return all(row // block == sample for row in changed)
    return all(row == sample for row in changed)


def _differing(one: Tensor, two: Tensor) -> Tensor:
    scale = torch.maximum(one.abs().max(), two.abs().max()) if one.numel() else one.new_zeros(())
    return ((one - two).abs() > RESOLUTION * scale) | (one.isfinite() != two.isfinite())


def _hypotheses(leaves: list[Any], size: int, declared: int | None) -> Iterator[dict[int, int]]:
    """Yield ways in which arguments may hold samples: of each that does, the axis that numbers them."""
    fitting = {
        slot: [axis for axis, length in enumerate(leaf.shape) if length == size]
        for slot, leaf in enumerate(leaves)
        if isinstance(leaf, Tensor)
    }
    fitting = {slot: axes for slot, axes in fitting.items() if axes}
    told: list[dict[int, int]] = []
    most = max((max(axes) + 1 for axes in fitting.values()), default=0)
    for wanted in range(most) if declared is None else [declared]:
        axes_of = {slot: wanted if wanted in axes else axes[0] for slot, axes in fitting.items()}
        if any(wanted in axes for axes in fitting.values()) and axes_of not in told:
            told.append(axes_of)
            yield axes_of


def _exchanges(leaves: list[Any], axes: dict[int, int], size: int) -> list[tuple[int, int]]:
    """Return pairs of samples that differ in as many arguments as can be, the first ones of different samples."""
    rows = {slot: leaves[slot].detach().movedim(axis, 0).reshape(size, -1) for slot, axis in axes.items()}
    pairs: list[tuple[int, int, int]] = []
    for sample in {0, size // 2, size - 1}:
        counted = [
            (sum(not torch.equal(each[sample], each[other]) for each in rows.values()), sample, other)
            for other in {(sample + 1) % size, (sample + size // 2) % size, (sample - 1) % size} - {sample}
        ]
        pairs.append(max(counted))
    pairs = sorted((pair for pair in pairs if pair[0]), reverse=True)
    return [(sample, other) for _, sample, other in pairs[:EXCHANGES]]


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _exchanged(tensor: Tensor, axis: int, sample: int, other: int) -> Tensor:
    changed = tensor.detach().clone()
    changed.select(axis, sample).copy_(tensor.detach().select(axis, other))
    return changed.requires_grad_(tensor.requires_grad)


def _failed(reason: str) -> Observation:
    return Observation(failure=Unclear(reason))


class _Recorder(TorchFunctionMode):
    """Follows what is computed from samples and from parameters, and notes projections of where they meet."""

    def __init__(self, parameters: Mapping[int, str], size: int) -> None:
        super().__init__()
        self.outputs: list[_Output] = []
        self._size = size
        self._inside = 0
        self._samples: dict[int, Tensor] = {}  # what holds samples, by id; kept alive, lest an id pass to another
        self._followed: dict[int, set[str]] = {number: {key} for number, key in parameters.items()}
        self._alive: list[Tensor] = []

    def taint(self, tensor: Tensor) -> None:
        """Note that a tensor holds samples."""
        self._samples[id(tensor)] = tensor

    def enter(self, *_: Any) -> None:
        """Be told that a layer is entered, whose operations are its own affair."""
        self._inside += 1

    def leave(self, name: str, keys: set[str]) -> Callable[..., None]:
        """Return the forward hook of a layer."""

        def hook(_layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._inside -= 1
            if self._inside:
                return
            given = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
            tainted = any(id(leaf) in self._samples for leaf in given)
            results = [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]
            for result in results if tainted else []:
                self.taint(result)
            if results:
                self._note(name, results[0], tainted)
                if not tainted:
                    self._follow(results[0], keys)

        return hook

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        results = [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor)]
        if not results:
            return result
        tainted = any(id(leaf) in self._samples for leaf in given)
        if tainted:
            for each in results:
                self.taint(each)
        keys = set().union(*(self._followed.get(id(leaf), ()) for leaf in given))
        if not keys or self._inside:
            return result
        for slot, each in enumerate(results):
            if not each.is_floating_point():
                continue
            if id(each) not in self._followed:
                self._note(key_of_operation(func, keys, each, slot), each, tainted)
            if not tainted:
                self._follow(each, keys)
        return result

    def _follow(self, tensor: Tensor, keys: set[str]) -> None:
        self._followed.setdefault(id(tensor), keys)
        self._alive.append(tensor)

    def _note(self, kind: Any, output: Tensor, tainted: bool) -> None:
        with torch.no_grad(), torch.autocast(output.device.type, enabled=False):
            values = output.detach()
            values = values.to(torch.promote_types(values.dtype, torch.float32))
            sums = {axis: _projected(values, axis) for axis in candidates(tuple(output.shape), self._size)}
            whole = _projected(values[None], 0)
        self.outputs.append(_Output(kind, tuple(output.shape), tainted, sums, whole))


def _projected(values: Tensor, axis: BatchAxis) -> Tensor:
    """Return a random projection of each slice along an axis: equal slices have equal ones."""
    slices = batch_first(values, axis)
    rows = slices.reshape(len(slices), -1)
    draw = torch.Generator(values.device).manual_seed(rows.shape[1])
    return rows @ (torch.rand(rows.shape[1], generator=draw, dtype=values.dtype, device=values.device) + 0.5)


@contextmanager
def _saving_nothing() -> Iterator[None]:
    """Let autograd keep no tensor for a backward pass that will never come."""

    def never(_: Any) -> Tensor:
        raise AssertionError("an observed pass is never differentiated")

    with torch.autograd.graph.saved_tensors_hooks(lambda _tensor: None, never):
        yield


def twin_of(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Return a module that computes the same from the same parameters, and whose state is its own.

    Parameters
    ----------
    module : torch.nn.Module
        Any; what :mod:`torch.jit` made is taken as it is.
    memo : dict
        Filled with the twin of each module, by id.
    """
    if id(module) in memo:
        known: nn.Module = memo[id(module)]
        return known
    if isinstance(module, torch.jit.ScriptModule):
        memo[id(module)] = module
        return module
    twin: nn.Module = object.__new__(type(module))
    memo[id(module)] = twin
    held = dict(vars(module))
    if getattr(held.get("forward"), "stands_in", False):
        del held["forward"]
    held["_compiled_call_impl"] = None
    children = held.pop("_modules")
    for name, value in held.items():
        if name == "_buffers":
            value = {key: None if buffer is None else buffer.detach().clone() for key, buffer in value.items()}
        elif isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            value = value.detach().clone()
        elif isinstance(value, (dict, list, set)):
            value = copy.copy(value)
        twin.__dict__[name] = value
    twin.__dict__["_modules"] = {
        name: None if child is None else twin_of(child, memo) for name, child in children.items()
    }
    for name, value in held.items():  # modules that are held in another way than as children
        if isinstance(value, nn.Module) and id(value) in memo:
            twin.__dict__[name] = memo[id(value)]
        elif isinstance(value, list) and any(isinstance(each, nn.Module) for each in value):
            twin.__dict__[name] = [memo.get(id(each), each) for each in value]
    return twin
