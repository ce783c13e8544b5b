"""Operations on followed parameters: values and derivatives by the chain rule, and the scores of those on samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._pytree import TreeSpec, tree_unflatten

from inrun_bench.attribution.capture.batch_axis import batch_first
from inrun_bench.attribution.capture.hooks import plain_forward
from inrun_bench.attribution.capture.in_place import results_of
from inrun_bench.attribution.directions import Direction, multiplied_out
from inrun_bench.attribution.layer_terms import FORMED, MANY, FormedTerm, MicroBatch, Rows, each_formed, each_scored
from inrun_bench.attribution.precision import Autocast
from inrun_bench.attribution.random_state import RandomState

__all__ = [
    "FollowedParameter",
    "LayerCall",
    "Operation",
    "OperationTerm",
    "Source",
    "changed_in_place",
    "without_tensors",
]


NO_FORWARD_MODE = ("forward AD", "forward-mode", "forward mode")
"""What torch says of operations, and of functions of the user's, that have none."""


@dataclass(frozen=True)
class FollowedParameter:
    """A parameter, where a chain begins."""

    key: str
    parameter: nn.Parameter

    @property
    def keys(self) -> set[str]:
        """Its name among the model's."""
        return {self.key}

    @property
    def kinds(self) -> set[torch.dtype]:
        """What it is rounded to."""
        return {self.parameter.dtype}

    def primal(self) -> Tensor:
        """Return the parameter as it is."""
        return self.parameter.detach()

    def tangent(self, probe: Direction) -> Tensor:
        """Return its derivative in the probe's direction."""
        direction = probe.get(self.key)
        if direction is None:
            return torch.zeros_like(self.parameter)
        return multiplied_out(direction).to(self.parameter.dtype)

    def value(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the parameter, as given in `weights`."""
        return weights[self.key]


@dataclass(frozen=True)
class Operation:
    """A call of a torch function, or of a layer, in which followed tensors take part.

    Attributes
    ----------
    function : callable
        What was called.
    leaves, spec : tuple, TreeSpec
        Its arguments, flattened; None in place of what is followed. Tensors are the operation's own, or as they were.
    sources : mapping of int to Source
        Which of the leaves are followed, and what they come from.
    autocast : Autocast
        Under which the call was made.
    output : int
        Which of the results this is.
    random_state : RandomState, optional
        That from which the call drew.
    written : frozenset of int
        Leaves that the function changes: a result, where it works in place, or running statistics.
    result : Tensor, optional
        What came out; computed again where None, or where it was changed in place since.
    """

    function: Callable[..., Any]
    leaves: tuple[Any, ...]
    spec: TreeSpec
    sources: Mapping[int, Source]
    autocast: Autocast
    output: int = 0
    random_state: RandomState | None = None
    written: frozenset[int] = frozenset()
    result: Tensor | None = None
    version_of_result: int = field(init=False, default=0)
    versions: dict[int, int] = field(init=False, default_factory=dict)  # of tensors among the leaves

    def __post_init__(self) -> None:
        self.versions.update({slot: leaf._version for slot, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor)})
        if self.result is not None:
            object.__setattr__(self, "version_of_result", self.result._version)

    @property
    def name(self) -> str:
        """The function's name."""
        return getattr(self.function, "__name__", "an operation")

    @property
    def keys(self) -> set[str]:
        """Names of the parameters that take part."""
        return {key for source in self.sources.values() for key in source.keys}

    @property
    def kinds(self) -> set[torch.dtype]:
        """What parameters, and what is made of them, are rounded to on the way."""
        own = set() if self.autocast.kind is None else {self.autocast.kind}
        return own.union(*(source.kinds for source in self.sources.values()))

    def primal(self) -> Tensor:
        """Return the operation's output."""
        if self.result is not None and self.result._version == self.version_of_result:
            return self.result
        return self._call(*(source.primal() for source in self.sources.values()))

    def tangent(self, probe: Direction) -> Tensor:
        """Return its derivative in the probe's direction."""
        primals = [source.primal() for source in self.sources.values()]
        tangents = [source.tangent(probe) for source in self.sources.values()]
        with forward_ad.dual_level():  # unlike torch.func.jvp, it draws a dropout's mask as training did
            duals = (forward_ad.make_dual(x, dx.to(x.dtype)) for x, dx in zip(primals, tangents, strict=True))
            value, tangent = forward_ad.unpack_dual(self._call(*duals))
        return torch.zeros_like(value) if tangent is None else tangent

    def value(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the operation's output, as a function of `weights`."""
        return self._call(*(source.value(weights) for source in self.sources.values()))

    def parameters(self) -> dict[str, Tensor]:
        """Return the followed parameters that take part, at their present values."""
        parameters: dict[str, Tensor] = {}
        for source in self.sources.values():
            own = {source.key: source.parameter} if isinstance(source, FollowedParameter) else source.parameters()
            parameters |= own
        return parameters

    def _call(self, *followed: Tensor) -> Tensor:
        leaves = list(self.leaves)
        if any(leaves[slot]._version != version for slot, version in self.versions.items()):
            raise changed_in_place(self.name, self.keys)
        for slot, tensor in zip(self.sources, followed, strict=True):
            leaves[slot] = tensor
        for slot in self.written:
            leaves[slot] = leaves[slot].clone()
        args, kwargs = tree_unflatten(leaves, self.spec)
        with self.autocast.again(), nullcontext() if self.random_state is None else self.random_state.again():
            outputs = results_of(self.function(*args, **kwargs), [leaves[slot] for slot in sorted(self.written)])
        return outputs[self.output]


def without_tensors(operation: Operation) -> Operation:
    """Return an operation without its arguments, which autograd keeps."""
    return replace(operation, leaves=tuple(None if isinstance(leaf, Tensor) else leaf for leaf in operation.leaves))


Source: TypeAlias = FollowedParameter | Operation


class LayerCall:
    """A layer's forward, without its hooks, as a function of some of its parameters and of its arguments."""

    def __init__(self, layer: nn.Module, names: tuple[str, ...]) -> None:
        self.__name__ = type(layer).__name__
        self._forward, self._names = _Forward(layer), tuple(f"layer.{name}" for name in names)

    def __call__(self, weights: tuple[Tensor, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the layer's forward with other weights."""
        own = dict(zip(self._names, weights, strict=True))
        return torch.func.functional_call(self._forward, own, args, kwargs)


class _Forward(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        forward = vars(self.layer).get("forward")
        if forward is None or getattr(forward, "stands_in", False):
            return plain_forward(self.layer, *args, **kwargs)
        return forward(*args, **kwargs)


@dataclass(frozen=True)
class OperationTerm:
    """One operation of followed parameters on the samples: what it was, and the gradient b of its output."""

    operation: Operation
    micro_batch: MicroBatch
    axis: int | Literal["folded"]
    b: Tensor

    @property
    def where(self) -> str:
        """The operation and its parameters, for messages."""
        return f"operation {self.operation.name!r} on parameter {', '.join(map(repr, sorted(self.keys)))}"

    @property
    def keys(self) -> set[str]:
        """Names of the parameters concerned."""
        return self.operation.keys

    @property
    def kind(self) -> torch.dtype:
        """The coarsest precision of what went into it."""
        return max(self.operation.kinds | {self.b.dtype}, key=lambda kind: torch.finfo(kind).eps)

    @property
    def tensors(self) -> list[Tensor]:
        """What is kept in memory."""
        return [leaf for leaf in (*self.operation.leaves, self.b) if isinstance(leaf, Tensor)]

    def score(self, probe: Direction) -> Tensor:
        """Return the samples' dot products with `probe`."""
        with torch.no_grad():
            if self.kind != torch.float16:
                return self._dot(probe)
            own = {key: multiplied_out(probe[key]).float() for key in self.keys & probe.keys()}
            size = torch.stack([q.abs().amax() for q in own.values()]).amax()  # numbers may be too small for it
            return self._dot({key: torch.where(size == 0, q, q / size) for key, q in own.items()}) * size

    def _dot(self, probe: Direction) -> Tensor:
        try:
            tangent = self.operation.tangent(probe)
        except (NotImplementedError, RuntimeError) as error:
            if not any(words in str(error) for words in NO_FORWARD_MODE):
                raise
            return self._backwards(probe)
        b = self.b.to(torch.promote_types(self.b.dtype, torch.float32))
        return batch_first(b * tangent, self.axis).reshape(self.micro_batch.size, -1).sum(1)

    def scores(self, probes: Sequence[Direction]) -> Tensor:
        """Return the samples' dot products with several probes; with many, samples' gradients are formed once."""
        size = sum(p.numel() for p in self.operation.parameters().values()) * self.micro_batch.size
        if len(probes) <= max(MANY, self.micro_batch.size // 4) or size > FORMED or self.kind == torch.float16:
            return each_scored(self, probes)
        with torch.no_grad():
            formed = FormedTerm(self.where, self.keys, self.micro_batch, self.kind, self.gradients_of_each())
            return formed.scores(probes)

    def gradients_of_each(self) -> dict[str, Tensor]:
        """Return the gradient of each row."""
        return each_formed(self)

    def gradients(self, groups: Sequence[Rows]) -> list[dict[str, Tensor]]:
        """Return the gradients of groups of rows, by differentiating the operation once for each."""
        weights, output = self._value()
        b = self.b.to(output.dtype)
        found = []
        for group in groups:
            alone = torch.zeros_like(b)
            whole, own = (self._by_row(x) for x in (b, alone))
            own[group] = whole[group]
            gradients = torch.autograd.grad(output, list(weights.values()), alone, retain_graph=True, allow_unused=True)
            found.append(
                {
                    key: torch.zeros_like(w) if g is None else g.to(torch.promote_types(g.dtype, torch.float32))
                    for (key, w), g in zip(weights.items(), gradients, strict=True)
                }
            )
        return found

    @property
    def by_row(self) -> Tensor:
        """The gradient of the output, [micro_batch.size, ...]."""
        return self._by_row(self.b)

    def _value(self) -> tuple[dict[str, Tensor], Tensor]:
        """Return copies of the parameters, and the operation's output as a function of them."""
        weights = {key: p.detach().requires_grad_() for key, p in self.operation.parameters().items()}
        with torch.enable_grad():
            return weights, self.operation.value(weights)

    def _by_row(self, x: Tensor) -> Tensor:
        """Return a view of what is shaped like the output, [micro_batch.size, ...]."""
        x = batch_first(x, self.axis)
        return x.unflatten(0, (self.micro_batch.size, -1)) if self.axis == "folded" else x

    def rounded(self, dtype: torch.dtype) -> OperationTerm:
        """Return the term with the gradient in another precision; the operation needs its own."""
        return replace(self, b=self.b.to(dtype))

    def _backwards(self, probe: Direction) -> Tensor:
        """Differentiate the operation once for each sample, all others' gradients held at zero."""
        weights, output = self._value()
        size = self.micro_batch.size
        scores = self.b.new_zeros(size, dtype=torch.promote_types(self.b.dtype, torch.float32))
        for sample in range(size):
            alone = torch.zeros_like(self.b)
            self._by_row(alone)[sample] = self._by_row(self.b)[sample]
            gradients = torch.autograd.grad(output, list(weights.values()), alone, retain_graph=True, allow_unused=True)
            for key, gradient in zip(weights, gradients, strict=True):
                if gradient is not None and key in probe:
                    scores[sample] += (gradient * multiplied_out(probe[key])).sum()
        return scores


def changed_in_place(name: str, keys: set[str]) -> RuntimeError:
    """Return the refusal of an operation of which something was changed in place."""
    return RuntimeError(
        f"what {name!r} makes of parameter {', '.join(map(repr, sorted(keys)))}, or what it makes it with, was changed "
        "in place afterwards, where it is not seen; write the change out of place (x = x + y and not x += y, torch.cat "
        "or torch.where and not an assignment to a part)"
    )
