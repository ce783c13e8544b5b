"""Where samples are: observed by exchanging samples for others, never guessed from sizes.

Sizes coincide: as many positions as samples, hidden numbers, layers, or a constant of as many rows; and sums of scores
cannot tell, since they run over all axes. What tells is the model itself. Its forward pass is run on a twin, without
effect on training: once as it is, and then with half of the samples exchanged for their neighbours, in twice as many
ways as a sample's number has binary digits, so that no two samples are exchanged in the same ones. Along the axis that
numbers the samples, each row of a layer's output then changes where its sample was exchanged, and nowhere else.

The same shows which operations see no samples at all (what is computed from positions, weights or constants), which
layers mix samples (batch statistics, contrastive losses) and which see their rows in another order (experts). These are
:class:`~inrun_bench.attribution.capture.batch_axis.Unclear`, with the reason. An axis is a fact of the code and not of
the sizes: it is observed once for each form of the arguments, and holds for other sizes. A model may still begin with
what tells nothing, samples of one length that it sorts by length for instance. So the second, the fifth, the 14th, the
41st ... call of each form is looked at once more: what is known must hold there, too.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from inrun_bench.attribution.capture.batch_axis import BatchAxis, Unclear
from inrun_bench.attribution.capture.recorder import Directions, OperationKey, Output, Recorder, tensors_in
from inrun_bench.attribution.capture.shared_state import SharedStateChangedError, shared_state_stays
from inrun_bench.attribution.capture.twin import begins_with_zero, beside_training, own, twin_of

__all__ = ["RESOLUTION", "Call", "Observation", "Seen", "is_looked_at_again", "masks_of"]

Seen: TypeAlias = BatchAxis | Unclear
"""What was seen of one output: the axis that numbers samples, None where it holds none, or why neither is clear."""

ROUNDS = 8  # of taking what turned out to be constant for what it is; more than any model has constants of constants
SEVERAL = Unclear("its calls had different axes when the model was observed, and it is not known which this is")
RESOLUTION = 1e-6  # relative; rows that nothing was done to are the same to the bit, but for sums in random order


@dataclass
class Observation:
    """What was seen in the call of a module, whose layers and operations are listed by name and in their order."""

    layers: dict[str, list[Seen]] = field(default_factory=dict)
    operations: dict[OperationKey, list[Seen]] = field(default_factory=dict)
    failure: Unclear | None = None  # why nothing could be observed
    without_samples: bool = False  # whether nothing in the call holds samples
    arguments: dict[int, int] = field(default_factory=dict, compare=False)  # which axes number samples, by slot
    told: frozenset[int] = field(default=frozenset(), compare=False)  # slots in which these axes' rows differed
    outputs: dict[int, BatchAxis] = field(default_factory=dict, compare=False)  # the same of what is returned
    missing: frozenset[str] = frozenset()  # layers that were not called, and parameters of none that were not used
    way: tuple[Any, ...] = field(default=(), compare=False)  # operations outside of layers, and what was called
    counts: frozenset[int] = field(default=frozenset(), compare=False)  # of these operations, in every way seen
    constants: set[tuple[Any, int]] = field(default_factory=set, compare=False)  # made of samples, and yet without
    returned: list[Tensor] = field(default_factory=list, compare=False)  # by the module, on its own arguments

    @property
    def unclear(self) -> float:
        """How many outputs are unclear."""
        if self.failure is not None:
            return math.inf
        everything = [*self.layers.values(), *self.operations.values()]
        return sum(map(_is_unclear, itertools.chain(*everything)))

    @property
    def unclear_layers(self) -> set[str]:
        """Names of layers of which a call is unclear; all of ``""`` where nothing could be observed."""
        if self.failure is not None:
            return {""}
        return {name for name, calls in self.layers.items() if any(map(_is_unclear, calls))}

    @property
    def unclear_names(self) -> set[str]:
        """Names of layers, and of parameters of operations, of which a call is unclear."""
        operations = {name for key, calls in self.operations.items() if any(map(_is_unclear, calls)) for name in key[1]}
        return self.unclear_layers | operations

    def joined(self, other: Observation) -> Observation:
        """Return what was seen in this call and in another of the same form that went another way."""
        if self.failure is not None or other.failure is not None:
            return other if self.failure is not None else self
        layers, operations = _joined(self.layers, other.layers), _joined(self.operations, other.operations)
        return replace(
            other,
            layers=layers,
            operations=operations,
            missing=self.missing & other.missing,
            counts=self.counts | other.counts,
            told=self.told | other.told,
        )

    def of_layer(self, name: str, call: int | None) -> Seen:
        """Return what was seen of a layer's call, numbered from 0; None: of one that is not known by its number."""
        return self._of(self.layers.get(name, []), call)

    def of_operation(self, key: OperationKey) -> Seen:
        """Return what was seen of an operation."""
        return self._of(self.operations.get(key, []), None)

    def of_output(self, kind: Any, call: int) -> Seen:
        """Return what was seen of an output of a pass: of a layer's call, an operation, or the module itself."""
        if isinstance(kind, str):
            return self.of_layer(kind, call)
        if isinstance(kind, int):
            return self.outputs.get(kind, SEVERAL)
        return self.of_operation(kind)

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
        return SEVERAL


def is_looked_at_again(times: int) -> bool:
    """Whether what is known must hold once more the second time, the fifth, the 14th, the 41st, and so on.

    Even and odd turns, so that what alternates is met, each three times as late as the one before: ``(3**k + 1) / 2``.
    """
    number = 2 * times - 1
    while number > 1 and number % 3 == 0:
        number //= 3
    return times > 1 and number == 1


@dataclass(frozen=True)
class Call:
    """A call of a module that is about to be made, to be run beside training on a twin.

    Parameters
    ----------
    module : torch.nn.Module
        What is called.
    leaves, spec
        With what, as :func:`torch.utils._pytree.tree_flatten` has it; see :meth:`of`.
    size : int
        Number of samples, at least 2.
    layers : mapping of module to str
        The layers to look at, by their names; those that lie within `module` are seen.
    parameters : mapping of str to Parameter
        Those whose operations are to be looked at, outside of `layers`.
    as_it_is : bool
        Whether weights that are zero are left zero.
    alone : bool
        Whether the call is not run at all where the twin would share something with the module that may change.
    """

    module: nn.Module
    leaves: list[Any]
    spec: Any
    size: int
    layers: Mapping[nn.Module, str]
    parameters: Mapping[str, nn.Parameter]
    as_it_is: bool = True
    alone: bool = False

    @classmethod
    def of(
        cls,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        size: int,
        layers: Mapping[nn.Module, str],
        parameters: Mapping[str, nn.Parameter],
    ) -> Call:
        """Return the call of a module with arguments."""
        return cls(module, *tree_flatten((args, dict(kwargs))), size, layers, parameters)

    def observe(self) -> Observation:
        """Return where the samples are.

        ``1 + 2 ceil(log2(size))`` forward passes; as many again for each round in which outputs turn out to be constant
        though they were computed with the help of samples, and for each axis of the arguments that has the batch's
        length.
        """
        leaves = self.leaves
        if any(leaf.is_meta for leaf in leaves if isinstance(leaf, Tensor)):
            return _failed("tensors without numbers cannot be observed")
        observations = []
        zeros = begins_with_zero(self.module)
        for axes in _hypotheses(leaves, self.size):
            given = leaves if _tells(leaves, axes) else _told_apart(leaves, axes)
            if _tells(given, axes):
                watched = replace(self, leaves=given, as_it_is=not zeros)
                found = watched.observed(axes)
                if (zeros or given is not leaves) and found.failure is None:
                    found = self.beside(found)
                told = frozenset(slot for slot, axis in axes.items() if _tells(leaves, {slot: axis}))
                observations.append(replace(found, told=told))
        if not observations:
            return _failed(
                f"index names {self.size} samples, but no argument of the call, of shapes "
                f"{[list(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor)]}, has an axis of that length "
                "along which rows differ"
            )
        best = [one for one in observations if one.unclear == min(each.unclear for each in observations)]
        if any(one != best[0] for one in best[1:]):
            return _failed(
                f"several axes of the arguments have the length of the batch, {self.size}, and each may number its "
                "samples"
            )
        best[0].missing = self.names - best[0].layers.keys() - {key for one in best[0].operations for key in one[1]}
        return best[0]

    @property
    def names(self) -> frozenset[str]:
        """All that may be seen: layers, and parameters that belong to none of them."""
        layers = {layer: name for layer, name in self.layers.items() if layer in set(self.module.modules())}
        covered = {p for layer in layers for p in layer.parameters()}
        bare = set(self.module.parameters()) - covered
        return frozenset(layers.values()) | {key for key, p in self.parameters.items() if p in bare}

    def observed(self, axes: dict[int, int]) -> Observation:
        """Return where samples are if `axes` number them in the arguments, by slot."""
        constants: set[tuple[Any, int]] = set()
        for _ in range(ROUNDS):
            try:
                base, changes = self.exchanged(axes, constants)
            except SharedStateChangedError:
                raise
            except Exception as error:  # whatever a model raises where it is run beside training
                reason = f"to observe its samples the model was run beside training, which failed: {error!r}"
                return _failed(reason, error)
            if base.returned and all(each.isnan().all() for each in base.returned):
                return _failed("all that the model returns is NaN (are its weights, or the batch?)")
            if changes is None:
                return _failed("which layers are called, and with what sizes, depends on the samples' values")
            found = {
                (output.kind, output.number)
                for output, seen in zip(base.outputs, changes, strict=True)
                if output.tainted and not any(change.whole for change in seen)
            }
            if not found:
                return replace(self._summary(axes, base, changes), constants=constants)
            constants |= found
        return _failed("constants were made of constants without end, with the help of samples")

    def beside(self, observation: Observation) -> Observation:
        """Return what was observed of the call with other numbers, joined with what is seen of it with its own."""
        try:
            with shared_state_stays(self.module):
                own = self._run(self.leaves, observation.arguments, observation.constants, Directions())
        except SharedStateChangedError:
            raise
        except Exception as error:  # as above
            return _failed(f"to observe its samples the model was run beside training, which failed: {error!r}", error)
        if own.way == observation.way or not _tells(self.leaves, observation.arguments):
            return replace(observation, returned=own.returned)
        other = self.observed(observation.arguments)
        return other if other.failure is not None else observation.joined(other)

    def contradiction(self, known: Observation, believed: Collection[str]) -> str | None:
        """Return which output changes in other places than its samples' rows, by what is known; None where none does.

        As many passes as an observation has. Nothing speaks against what is known where they cannot be run without
        effect, go another way than any that is known, or differ in sizes or random numbers by what is exchanged.

        Parameters
        ----------
        known : Observation
            Of calls before.
        believed : collection of str
            Layers of which somebody has said where their samples are.
        """
        axes = {slot: axis for slot, axis in known.arguments.items() if slot in known.told}
        if known.failure is not None or known.without_samples or not _tells(self.leaves, axes):
            return None
        try:
            base, changes = replace(self, alone=True).exchanged(axes, known.constants)
        except SharedStateChangedError:
            raise
        except Exception:  # whatever a model raises beside training: too little memory, for instance
            return None
        if changes is None or base.count not in known.counts:
            return None
        calls: Counter[Any] = Counter()
        for output, seen in zip(base.outputs, changes, strict=True):
            axis = known.of_output(output.kind, calls[output.kind])
            calls[output.kind] += 1
            if axis is None or isinstance(axis, Unclear) or output.kind in believed:
                continue  # a constant that sees samples now is differentiated where it meets them, as before
            axis = 0 if axis == "folded" and output.shape[0] == self.size else axis
            if axis not in output.slices or not all(_at_samples(change, axis, self.size) for change in seen):
                return f"{_named(output)}: {_elsewhere(output, self.size)}"
        return None

    def _summary(self, axes: dict[int, int], base: _Pass, changes: list[list[_Change]]) -> Observation:
        observation = Observation(arguments=axes, way=base.way, counts=frozenset({base.count}), returned=base.returned)
        for output, seen in zip(base.outputs, changes, strict=True):
            axis = _seen(output, seen, self.size)
            if isinstance(output.kind, int):
                if isinstance(axis, Unclear):
                    return _failed(f"the model's output: {axis.reason}")
                observation.outputs[output.kind] = axis
                continue
            table: dict[Any, list[Seen]] = (
                observation.layers if isinstance(output.kind, str) else observation.operations
            )
            table.setdefault(output.kind, []).append(axis)
        return observation

    def exchanged(
        self, axes: dict[int, int], constants: set[tuple[Any, int]]
    ) -> tuple[_Pass, list[list[_Change]] | None]:
        """Return a pass as it is, and what each exchange changed in each output; None where it changed their forms."""
        directions = Directions()
        with shared_state_stays(self.module):  # by themselves: what each pass changes may be as before after several
            base = self._run(self.leaves, axes, constants, directions)
        with shared_state_stays(self.module):
            return base, self._changes(base, axes, constants, directions)

    def _changes(
        self, base: _Pass, axes: dict[int, int], constants: set[tuple[Any, int]], directions: Directions
    ) -> list[list[_Change]] | None:
        changes: list[list[_Change]] = [[] for _ in base.outputs]
        for mask in masks_of(self.size):
            leaves = list(self.leaves)
            for slot, axis in axes.items():
                leaves[slot] = _with_neighbours(leaves[slot], axis, mask)
            exchanged = self._run(leaves, axes, constants, directions)
            if exchanged.forms != base.forms or (self.alone and not all(map(torch.equal, exchanged.drawn, base.drawn))):
                return None
            for one, two, seen in zip(base.outputs, exchanged.outputs, changes, strict=True):
                seen.append(_changed(mask, one, two))
        return changes

    def _run(
        self, leaves: list[Any], axes: dict[int, int], constants: set[tuple[Any, int]], directions: Directions
    ) -> _Pass:
        memo: dict[int, Any] = {}
        twin = twin_of(self.module, memo, as_it_is=self.as_it_is, alone=self.alone)
        keys = {id(memo.get(id(p), p)): key for key, p in self.parameters.items()}
        recorder = Recorder(keys, self.size, constants, directions)
        given = [_copied(leaf) if isinstance(leaf, Tensor) else own(leaf, memo, alone=self.alone) for leaf in leaves]
        for slot in axes:
            recorder.taint(given[slot])
        args, kwargs = tree_unflatten(given, self.spec)
        for layer, name in ((memo[id(layer)], name) for layer, name in self.layers.items() if id(layer) in memo):
            layer.register_forward_pre_hook(recorder.enter)
            trained = {keys[id(p)] for p in layer.parameters() if id(p) in keys}
            layer.register_forward_hook(recorder.leave(name, trained), with_kwargs=True)
        with beside_training(self.module), recorder:
            recorder.count.begin()
            output = twin(*args, **kwargs)
            count = recorder.count.counted
            recorder.leave_model(output)
            drawn = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ())]
        returned = [each.detach() for each in tensors_in(output) if each.requires_grad]
        return _Pass(recorder.outputs, count, returned, drawn)


@dataclass(frozen=True)
class _Pass:
    """One pass of a twin: what was noted, how many operations there were outside of layers, what it returned."""

    outputs: list[Output]
    count: int
    returned: list[Tensor]
    drawn: list[Tensor]  # states of random numbers afterwards

    @property
    def forms(self) -> list[tuple[Any, tuple[int, ...]]]:
        """Kinds and shapes of what was noted."""
        return [(each.kind, each.shape) for each in self.outputs]

    @property
    def way(self) -> tuple[Any, ...]:
        """What tells the way that it went from others."""
        return self.count, *self.forms


@dataclass(frozen=True)
class _Change:
    """What an exchange of the samples of a mask changed: anything at all, and which slices along each axis."""

    mask: Tensor
    whole: bool
    slices: dict[BatchAxis, Tensor]


def _is_unclear(seen: Seen) -> bool:
    return isinstance(seen, Unclear)


def _joined(one: Mapping[Any, list[Seen]], other: Mapping[Any, list[Seen]]) -> dict[Any, list[Seen]]:
    """Return what was seen of the calls of layers, or of operations, in two ways through the model."""
    both = {**one, **other}
    for name in one.keys() & other.keys():
        longer, shorter = sorted((one[name], other[name]), key=len, reverse=True)
        both[name] = longer if longer[: len(shorter)] == shorter or len({*longer, *shorter}) == 1 else [SEVERAL]
    return both


def _seen(output: Output, changes: list[_Change], size: int) -> Seen:
    """Return what exchanges say of an output."""
    if not output.tainted and not any(change.whole for change in changes):
        return None
    fitting = [
        axis
        for axis in output.slices
        if axis is not None and all(_at_samples(change, axis, size) for change in changes)
    ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        return Unclear(f"several axes of its output, of shape {list(output.shape)}, may number the {size} samples")
    return Unclear(_elsewhere(output, size))


def _elsewhere(output: Output, size: int) -> str:
    return (
        f"where some of the {size} samples are exchanged for others, its output, of shape {list(output.shape)}, "
        "changes in other places than their rows of one axis: it mixes samples, sees a part of them, or has them in "
        "another order"
    )


def _named(output: Output) -> str:
    if isinstance(output.kind, int):
        return "the model"
    return f"layer {output.kind!r}" if isinstance(output.kind, str) else f"operation {output.kind[0]!r}"


def _changed(mask: Tensor, one: Output, two: Output) -> _Change:
    slices = {axis: _differing(one.slices[axis], two.slices[axis]) for axis in one.slices}
    return _Change(mask, bool(next(iter(slices.values())).any()), slices)


def _at_samples(change: _Change, axis: BatchAxis, size: int) -> bool:
    """Whether slices differ at samples that were exchanged, and at no others."""
    rows = change.slices[axis]
    return not bool((rows & ~change.mask.repeat_interleave(len(rows) // size).to(rows.device)).any())


def _differing(one: Tensor, two: Tensor) -> Tensor:
    scale = torch.maximum(one.abs().max(), two.abs().max()) if one.numel() else one.new_zeros(())
    return ((one - two).abs() > RESOLUTION * scale) | (one.isfinite() != two.isfinite())


def masks_of(size: int) -> Iterator[Tensor]:
    """Yield bool [size]: for each binary digit of a sample's number, those in which it is 1, and those in which not."""
    numbers = torch.arange(size)
    for digit in range((size - 1).bit_length()):
        chosen = (numbers >> digit) % 2 == 1
        yield chosen
        yield ~chosen


def _hypotheses(leaves: list[Any], size: int) -> Iterator[dict[int, int]]:
    """Yield ways in which arguments may hold samples: of each that does, the axis that numbers them."""
    fitting = {
        slot: [axis for axis, length in enumerate(leaf.shape) if length == size]
        for slot, leaf in enumerate(leaves)
        if isinstance(leaf, Tensor)
    }
    fitting = {slot: axes for slot, axes in fitting.items() if axes}
    told: list[dict[int, int]] = []
    for wanted in range(max((max(axes) + 1 for axes in fitting.values()), default=0)):
        axes_of = {slot: wanted if wanted in axes else axes[0] for slot, axes in fitting.items()}
        if any(wanted in axes for axes in fitting.values()) and axes_of not in told:
            told.append(axes_of)
            yield axes_of


def _tells(leaves: list[Any], axes: dict[int, int]) -> bool:
    """Whether any sample differs from its neighbour."""
    return any(not torch.equal(leaves[slot], leaves[slot].roll(1, axis)) for slot, axis in axes.items())


def _told_apart(leaves: list[Any], axes: dict[int, int]) -> list[Any]:
    """Return arguments whose rows are alike, what a layer with zero weights returned for instance, with noise added."""
    told = list(leaves)
    for slot in axes:
        if leaves[slot].is_floating_point():
            draw = torch.Generator().manual_seed(slot)
            noise = torch.randn(leaves[slot].shape, generator=draw).to(leaves[slot])
            told[slot] = (leaves[slot].detach() + noise).requires_grad_(leaves[slot].requires_grad)
    return told


def _with_neighbours(tensor: Tensor, axis: int, mask: Tensor) -> Tensor:
    """Return a tensor in which the samples of a mask are their neighbours."""
    along = mask.to(tensor.device).view(*(len(mask) if one == axis else 1 for one in range(tensor.dim())))
    exchanged = torch.where(along, tensor.detach().roll(1, axis), tensor.detach())
    return exchanged.requires_grad_(tensor.requires_grad)


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _failed(reason: str, cause: Exception | None = None) -> Observation:
    return Observation(failure=Unclear(reason, everywhere=True, cause=cause))
