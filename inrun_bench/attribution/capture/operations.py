"""Parameters that no ghost rule covers, followed operation by operation.

Positional embeddings and scales that a model adds or multiplies itself, layers without a rule, a tied weight that is
used as a function's argument: wherever such a parameter takes part in an operation, one of two things holds.

- All that it meets is the same for every sample (a slice, a transpose, a norm of the weight): the result is *derived*
  from the parameter and followed in its place.
- It meets the samples. Then the result y has a batch axis, and the scores of the operation are
  ``sum over the elements of y_i of b_i * dy_i``, with b the gradient of the loss with respect to y and dy the
  derivative of the operation in the direction of the probe (forward mode, ``torch.func.jvp``; the chain rule through
  what is derived). An operation without a forward mode is differentiated backwards instead, once a sample.

Both are exact. Operations inside of a layer that has rules are that layer's own affair.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from inrun_bench.attribution.capture.saved_tensors import save
from inrun_bench.attribution.directions import Direction, multiplied_out
from inrun_bench.attribution.layer_terms import Part

__all__ = ["Followed", "OutsideTerm"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Leaf:
    """A followed parameter."""

    key: str
    parameter: nn.Parameter

    @property
    def keys(self) -> set[str]:
        return {self.key}

    def dual(self, probe: Direction) -> tuple[Tensor, Tensor]:
        """Return the parameter and its derivative in the probe's direction."""
        weight = self.parameter.detach()
        direction = probe.get(self.key)
        return weight, torch.zeros_like(weight) if direction is None else multiplied_out(direction).to(weight.dtype)

    def value(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the parameter, as given in `weights`."""
        return weights[self.key]


@dataclass(frozen=True)
class _Operation:
    """A call of a torch function in which followed tensors take part; `sources` says which arguments they are."""

    function: Callable[..., Any]
    leaves: tuple[Any, ...]
    spec: TreeSpec
    sources: Mapping[int, _Source]
    output: int = 0

    @property
    def keys(self) -> set[str]:
        return {key for source in self.sources.values() for key in source.keys}

    def dual(self, probe: Direction) -> tuple[Tensor, Tensor]:
        """Return the operation's output and its derivative in the probe's direction."""
        duals = [source.dual(probe) for source in self.sources.values()]
        value, tangent, *_ = torch.func.jvp(
            self._call, tuple(primal for primal, _ in duals), tuple(tangent for _, tangent in duals)
        )
        return value, tangent

    def value(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the operation's output, as a function of `weights`."""
        return self._call(*(source.value(weights) for source in self.sources.values()))

    def parameters(self) -> dict[str, Tensor]:
        """Return the followed parameters that take part, at their present values."""
        found: dict[str, Tensor] = {}
        for source in self.sources.values():
            found |= {source.key: source.parameter} if isinstance(source, _Leaf) else source.parameters()
        return found

    def _call(self, *followed: Tensor) -> Tensor:
        leaves = list(self.leaves)
        for slot, tensor in zip(self.sources, followed, strict=True):
            leaves[slot] = tensor
        args, kwargs = tree_unflatten(leaves, self.spec)
        outputs = _tensors(self.function(*args, **kwargs))
        return outputs[self.output]


_Source: TypeAlias = _Leaf | _Operation


@dataclass(frozen=True)
class OutsideTerm:
    """One operation of followed parameters on the samples: what it was, and the gradient b of its output."""

    operation: _Operation
    part: Part
    axis: int
    b: Tensor

    @property
    def where(self) -> str:
        """The operation and its parameters, for messages."""
        name = getattr(self.operation.function, "__name__", str(self.operation.function))
        return f"operation {name!r} on parameter {', '.join(map(repr, sorted(self.keys)))}"

    @property
    def keys(self) -> set[str]:
        """Names of the parameters concerned."""
        return self.operation.keys

    @property
    def tensors(self) -> list[Tensor]:
        """What is kept in memory."""
        return [leaf for leaf in (*self.operation.leaves, self.b) if isinstance(leaf, Tensor)]

    def score(self, probe: Direction) -> Tensor:
        """Return the dot products with `probe`, [part.size]."""
        with torch.no_grad():
            try:
                _, tangent = self.operation.dual(probe)
            except (NotImplementedError, RuntimeError) as error:
                if "forward AD" not in str(error) and "forward-mode" not in str(error):
                    raise
                return self._backwards(probe)
            return (self.b * tangent).movedim(self.axis, 0).reshape(self.part.size, -1).sum(1)

    def rounded(self, dtype: torch.dtype) -> OutsideTerm:
        """Return the term with the gradient in another precision; the operation needs its own."""
        return replace(self, b=self.b.to(dtype))

    def _backwards(self, probe: Direction) -> Tensor:
        """Differentiate the operation once for each sample, all others' gradients held at zero."""
        weights = {key: p.detach().requires_grad_() for key, p in self.operation.parameters().items()}
        with torch.enable_grad():
            output = self.operation.value(weights)
        scores = self.b.new_zeros(self.part.size)
        for sample in range(self.part.size):
            alone = torch.zeros_like(self.b)
            alone.select(self.axis, sample).copy_(self.b.select(self.axis, sample))
            gradients = torch.autograd.grad(output, list(weights.values()), alone, retain_graph=True, allow_unused=True)
            for key, gradient in zip(weights, gradients, strict=True):
                if gradient is not None and key in probe:
                    scores[sample] += (gradient * multiplied_out(probe[key])).sum()
        return scores


class Followed:
    """Follows parameters while its block lasts.

    Parameters
    ----------
    parameters : mapping of str to Parameter
        All trained parameters by name.
    model : torch.nn.Module
        Its buffers are taken to be the same for every sample.
    receive : callable
        Called in the backward pass with an :class:`OutsideTerm` for each operation.
    axis : int
        The batch axis of results.
    uncovered : set of str
        Parameters that no rule covers. The others are followed until the first step has shown whether they, too, are
        used outside of their layers.

    Attributes
    ----------
    part : Part or None
        The samples of the operations to come; None: look away.
    found : set of str
        Parameters that no rule covers, or that are used outside of their layers.
    inside : int
        How many layers with rules are being run; their operations are not looked at.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        model: nn.Module,
        receive: Callable[[OutsideTerm], None],
        axis: int,
        uncovered: set[str],
    ) -> None:
        self.part: Part | None = None
        self.inside = 0
        self._receive, self._axis, self._model = receive, axis, model
        self._parameters = dict(parameters)
        self._names = set(parameters)
        self.found = set(uncovered)
        self._announced: set[str] = set()
        self._mode: _Mode | None = None

    def __enter__(self) -> None:
        self.inside = 0
        if self._names:
            constants = {buffer.untyped_storage().data_ptr() for buffer in self._model.buffers()}
            self._mode = _Mode(self, {name: self._parameters[name] for name in self._names}, constants)
            self._mode.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        if self._mode is not None:
            self._mode.__exit__(*error)  # type: ignore[no-untyped-call]
            self._mode = None
        if error[0] is None:
            self._names = self.found  # what the first step did not find outside of its layer is not looked for again

    def derive(self, layer: nn.Module, keys: Mapping[str, str], a: Tensor, output: Tensor) -> None:
        """Follow the output of a layer that was called without samples; `keys` names its parameters in the model."""

        def call(a: Tensor, *weights: Tensor) -> Tensor:
            found: Tensor = torch.func.functional_call(layer, dict(zip(keys, weights, strict=True)), (a,))
            return found

        _, spec = tree_flatten(((a, *keys), {}))
        sources = {slot: _Leaf(key, self._parameters[key]) for slot, key in enumerate(keys.values(), 1)}
        self.found |= set(keys.values())
        if self._mode is not None:
            self._mode.follow(_Operation(call, (a.detach(), *(None for _ in keys)), spec, sources), output)

    def meet(self, operation: _Operation, output: Tensor, size: int) -> None:
        """Note an operation on the samples: its term is received when the gradient of its output comes."""
        part = self.part
        assert part is not None
        axis = self._axis_of(operation, output, size)
        for key in operation.keys - self._announced:
            logger.warning(
                "parameter %r has no ghost rule where %r uses it; its operations are differentiated one by one",
                key,
                getattr(operation.function, "__name__", "an operation"),
            )
        self._announced |= operation.keys
        self.found |= operation.keys
        leaves = list(operation.leaves)
        slots = [number for number, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        saved = save([leaves[slot].detach() for slot in slots])
        for slot in slots:
            leaves[slot] = None

        def backward(b: Tensor) -> None:
            found = dict(zip(slots, saved(), strict=True))
            known = tuple(found.get(slot, leaf) for slot, leaf in enumerate(leaves))
            self._receive(OutsideTerm(replace(operation, leaves=known), part, axis, b.detach()))

        output.register_hook(backward)

    def _axis_of(self, operation: _Operation, output: Tensor, size: int) -> int:
        if output.dim() > self._axis and output.shape[self._axis] == size:
            return self._axis
        candidates = [axis for axis, length in enumerate(output.shape) if length == size]
        if len(candidates) == 1:
            return candidates[0]
        name = getattr(operation.function, "__name__", "an operation")
        raise ValueError(
            f"{name!r} joins parameter {', '.join(map(repr, sorted(operation.keys)))} with the batch's {size} samples, "
            f"but no axis of its result, of shape {list(output.shape)}, numbers them, so it has no per-sample "
            "gradient. A penalty on weights belongs into the optimiser (weight_decay); other layers need a rule of "
            "their own (inrun_bench.attribution.ghost_rule)"
        )


class _Mode(TorchFunctionMode):
    def __init__(self, followed: Followed, parameters: Mapping[str, nn.Parameter], constants: set[int]) -> None:
        super().__init__()
        self._followed = followed
        self._constants = constants
        self._sources: dict[int, _Source] = {id(p): _Leaf(key, p) for key, p in parameters.items()}
        self._alive: list[Tensor] = []  # a followed tensor's id must not pass to another

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            return func(*args, **kwargs)
        part = self._followed.part
        if part is None or self._followed.inside or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        leaves, spec = tree_flatten((args, kwargs))
        sources = {slot: self._sources[id(leaf)] for slot, leaf in enumerate(leaves) if id(leaf) in self._sources}
        if not sources:
            return func(*args, **kwargs)
        function, leaves = _out_of_place(func, leaves)
        result = func(*args, **kwargs)
        others = [leaf for slot, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and slot not in sources]
        meets_samples = any(self._numbers_samples(other, part.size) for other in others)
        operation = _Operation(
            function, tuple(None if s in sources else x for s, x in enumerate(leaves)), spec, sources
        )
        outputs, result_spec = tree_flatten(result)
        tensors = [slot for slot, output in enumerate(outputs) if isinstance(output, Tensor)]
        for number, slot in enumerate(tensors):
            output = outputs[slot]
            if not output.requires_grad or id(output) in self._sources:
                continue
            own = replace(operation, output=number)
            if meets_samples or not (output.dim() or not others):
                if len(tensors) > 1:  # one output may be made from another, whose gradient would then hold both
                    outputs[slot] = output = output.view_as(output)
                self._followed.meet(own, output, part.size)
            else:
                self.follow(own, output)
        return tree_unflatten(outputs, result_spec) if len(tensors) > 1 else result

    def follow(self, operation: _Operation, output: Tensor) -> None:
        """Follow a tensor that is derived from followed ones."""
        self._sources[id(output)] = operation
        self._alive.append(output)

    def _numbers_samples(self, tensor: Tensor, size: int) -> bool:
        return (size in tensor.shape and tensor.untyped_storage().data_ptr() not in self._constants) or (
            tensor.requires_grad and tensor.dim() == 0  # the loss itself
        )


def _tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor)]


def _out_of_place(function: Callable[..., Any], leaves: list[Any]) -> tuple[Callable[..., Any], list[Any]]:
    """Return the twin of an in-place method that changes nothing, and its arguments as they are now."""
    name = getattr(function, "__name__", "")
    if name.startswith("__i") and name.endswith("__"):
        twin = getattr(Tensor, f"__{name[3:]}", None)
    elif name.endswith("_") and not name.endswith("__"):
        twin = getattr(Tensor, name[:-1], None)
    else:
        return function, leaves
    if twin is None:
        return function, leaves
    return twin, [
        leaf.detach().clone() if number == 0 and isinstance(leaf, Tensor) else leaf
        for number, leaf in enumerate(leaves)
    ]
