"""Parameters that no ghost rule covers, followed operation by operation.

Positional embeddings and scales that a model adds or multiplies itself, layers without a rule, a tied weight that is
used as a function's argument: wherever such a parameter takes part in an operation, one of two things holds.

- All that it meets is the same for every sample (a slice, a transpose, a norm of the weight): the result is *derived*
  from the parameter and followed in its place.
- It meets the samples. Then the result y has a batch axis, and the scores of the operation are
  ``sum over the elements of y_i of b_i * dy_i``, with b the gradient of the loss with respect to y and dy the
  derivative of the operation in the direction of the probe (forward mode, ``torch.func.jvp``; the chain rule through
  what is derived). An operation without a forward mode is differentiated backwards instead, once a sample.

Both are exact. Which of the two it is, and which axis numbers the samples, is observed
(:mod:`~inrun_bench.attribution.capture.observation`); an operation outside of any module's call, which cannot be, is
accepted where only one axis of its result can number samples. Operations that draw random numbers draw the same again.
Operations inside of a layer that has rules are that layer's own affair.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from inrun_bench.attribution.capture.batch_axis import BatchAxis, Unclear, batch_first, candidates
from inrun_bench.attribution.capture.observation import Seen
from inrun_bench.attribution.capture.recorder import OperationKey, key_of_operation
from inrun_bench.attribution.capture.saved_tensors import in_backward_pass, save
from inrun_bench.attribution.directions import Direction, multiplied_out
from inrun_bench.attribution.layer_terms import MicroBatch
from inrun_bench.attribution.random_state import RandomState

__all__ = ["FollowedOperations", "OperationTerm"]

DRAWING = {
    "lstm",
    "gru",
    "rnn_tanh",
    "rnn_relu",
    "multi_head_attention_forward",
    "scaled_dot_product_attention",
    "rrelu",
}
"""Operations that may draw random numbers, beside those with ``dropout`` in their names."""

BACKWARD = (Tensor.backward, torch.autograd.backward)

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
    random_state: RandomState | None = None
    written: frozenset[int] = frozenset()  # arguments that the function changes, running statistics for instance

    @property
    def name(self) -> str:
        """The function's name."""
        return getattr(self.function, "__name__", "an operation")

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
        parameters: dict[str, Tensor] = {}
        for source in self.sources.values():
            parameters |= {source.key: source.parameter} if isinstance(source, _Leaf) else source.parameters()
        return parameters

    def _call(self, *followed: Tensor) -> Tensor:
        leaves = [leaf.clone() if slot in self.written else leaf for slot, leaf in enumerate(self.leaves)]
        for slot, tensor in zip(self.sources, followed, strict=True):
            leaves[slot] = tensor
        args, kwargs = tree_unflatten(leaves, self.spec)
        with nullcontext() if self.random_state is None else self.random_state.again():
            outputs = _tensors(self.function(*args, **kwargs))
        return outputs[self.output]


_Source: TypeAlias = _Leaf | _Operation


@dataclass(frozen=True)
class OperationTerm:
    """One operation of followed parameters on the samples: what it was, and the gradient b of its output."""

    operation: _Operation
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
    def tensors(self) -> list[Tensor]:
        """What is kept in memory."""
        return [leaf for leaf in (*self.operation.leaves, self.b) if isinstance(leaf, Tensor)]

    def score(self, probe: Direction) -> Tensor:
        """Return the samples' dot products with `probe`."""
        with torch.no_grad():
            try:
                _, tangent = self.operation.dual(probe)
            except (NotImplementedError, RuntimeError) as error:
                if "forward AD" not in str(error) and "forward-mode" not in str(error):
                    raise
                return self._backwards(probe)
            return batch_first(self.b * tangent, self.axis).reshape(self.micro_batch.size, -1).sum(1)

    def rounded(self, dtype: torch.dtype) -> OperationTerm:
        """Return the term with the gradient in another precision; the operation needs its own."""
        return replace(self, b=self.b.to(dtype))

    def _backwards(self, probe: Direction) -> Tensor:
        """Differentiate the operation once for each sample, all others' gradients held at zero."""
        weights = {key: p.detach().requires_grad_() for key, p in self.operation.parameters().items()}
        with torch.enable_grad():
            output = self.operation.value(weights)
        size = self.micro_batch.size
        scores = self.b.new_zeros(size)
        for sample in range(size):
            alone = torch.zeros_like(self.b)
            for whole, own in ((batch_first(self.b, self.axis), batch_first(alone, self.axis)),):
                rows = len(whole) // size if self.axis == "folded" else 1
                own[sample * rows : (sample + 1) * rows] = whole[sample * rows : (sample + 1) * rows]
            gradients = torch.autograd.grad(output, list(weights.values()), alone, retain_graph=True, allow_unused=True)
            for key, gradient in zip(weights, gradients, strict=True):
                if gradient is not None and key in probe:
                    scores[sample] += (gradient * multiplied_out(probe[key])).sum()
        return scores


class FollowedOperations:
    """Follows parameters while its block lasts.

    Parameters
    ----------
    parameters : mapping of str to Parameter
        All trained parameters by name.
    receive : callable
        Called in the backward pass with an :class:`OperationTerm` for each operation.
    seen : callable
        Given the key of an operation, what was observed of it.
    uncovered : set of str
        Parameters that no rule covers. The others are followed until the first step has shown whether they, too, are
        used outside of their layers.

    Attributes
    ----------
    micro_batch : MicroBatch or None
        The samples of the operations to come; None: look away.
    keys : set of str
        Parameters that no rule covers, or that are used outside of their layers.
    inside : int
        How many layers with rules are being run; their operations are not looked at.
    suspended : bool
        Whether a backward pass is going on, in which torch looks away.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        receive: Callable[[OperationTerm], None],
        seen: Callable[[OperationKey], Seen],
        uncovered: set[str],
    ) -> None:
        self.micro_batch: MicroBatch | None = None
        self.inside = 0
        self.suspended = False
        self.keys = set(uncovered)
        self._receive, self._seen = receive, seen
        self._parameters = dict(parameters)
        self._names = set(parameters)
        self._announced: set[str] = set()
        self._mode: _Mode | None = None

    def __enter__(self) -> None:
        self.inside = 0
        if self._names:
            self._mode = _Mode(self, {name: self._parameters[name] for name in self._names})
            self._mode.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        if self._mode is not None:
            self._mode.__exit__(*error)  # type: ignore[no-untyped-call]
            self._mode = None
        if error[0] is None:
            self._names = set(
                self.keys
            )  # what the first step did not find outside of its layer is not looked for again

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Look away in this block."""
        micro_batch, self.micro_batch = self.micro_batch, None
        try:
            yield
        finally:
            self.micro_batch = micro_batch

    def follow_again(self, on: bool) -> None:
        """Begin, or end, to follow what a checkpoint computes anew in a backward pass, as it was followed at first."""
        if self._mode is not None and on:
            self._mode.__enter__()  # type: ignore[no-untyped-call]
        elif self._mode is not None:
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def derive(
        self,
        layer: nn.Module,
        keys: Mapping[str, str],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        output: Tensor,
    ) -> None:
        """Follow the output of a layer that was called without samples; `keys` names its parameters in the model."""
        if self._mode is None:
            raise RuntimeError(
                f"{type(layer).__name__} with parameters {', '.join(map(repr, keys.values()))} was called without "
                "samples, which it was not in the first step; say so with batch_axis={its name: None}"
            )
        state = RandomState.now(_tensors((args, kwargs))) if any("dropout" in name for name in vars(layer)) else None
        leaves, spec = tree_flatten((args, dict(kwargs)))
        leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]

        def call(*weights: Tensor) -> Tensor:
            given, named = tree_unflatten(leaves, spec)
            outputs = torch.func.functional_call(layer, dict(zip(keys, weights, strict=True)), given, named)
            return _tensors(outputs)[0]

        _, own_spec = tree_flatten((tuple(keys), {}))
        sources = {slot: _Leaf(key, self._parameters[key]) for slot, key in enumerate(keys.values())}
        self.keys |= set(keys.values())
        self._mode.follow(_Operation(call, tuple(None for _ in keys), own_spec, sources, 0, state), output)

    def meet(self, operation: _Operation, output: Tensor, axis: int | Literal["folded"]) -> None:
        """Note an operation on the samples: its term is received when the gradient of its output comes."""
        micro_batch = self.micro_batch
        assert micro_batch is not None
        for key in operation.keys - self._announced:
            logger.warning(
                "parameter %r has no ghost rule where %r uses it; its operations are differentiated one by one",
                key,
                operation.name,
            )
        self._announced |= operation.keys
        self.keys |= operation.keys
        leaves = list(operation.leaves)
        for slot in operation.written:
            leaves[slot] = leaves[slot].detach().clone()
        tensors = {slot for slot, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
        slots = sorted(tensors - operation.written)
        saved = save([leaves[slot].detach() for slot in slots])
        for slot in slots:
            leaves[slot] = None

        anew = in_backward_pass()

        def backward(b: Tensor) -> None:
            if anew:
                micro_batch.computed_anew()
            given = dict(zip(slots, saved(), strict=True))
            known = tuple(given.get(slot, leaf) for slot, leaf in enumerate(leaves))
            self._receive(OperationTerm(replace(operation, leaves=known), micro_batch, axis, b.detach()))

        output.register_hook(backward)

    def seen(self, key: OperationKey, operation: _Operation, output: Tensor, others: list[Tensor]) -> BatchAxis:
        """Return what numbers the samples in the result of an operation, None where it holds none."""
        assert self.micro_batch is not None
        size = self.micro_batch.size
        if size == 1:  # whatever meets anything else is the one sample's
            return "folded" if output.dim() else 0
        observed = self._seen(key)
        if not isinstance(observed, Unclear):
            return observed
        if observed.by_size and not any(x.requires_grad for x in others) and (output.dim() or not others):
            return None  # a constant, or samples as they are given: the axis shows where it meets what the model made
        axes = candidates(tuple(output.shape), size)
        if observed.by_size and observed.declared in axes:
            return observed.declared
        if observed.by_size and len(axes) == 1 and axes[0] != "folded":
            return axes[0]
        raise ValueError(
            f"{operation.name!r} joins parameter {', '.join(map(repr, sorted(operation.keys)))} with the batch's "
            f"{size} samples, but it is not clear which axis of its result, of shape {list(output.shape)}, numbers "
            f"them: {observed.reason}. A penalty on weights belongs into the optimiser (weight_decay); other layers "
            "need a rule of their own (inrun_bench.attribution.ghost_rule)"
        )


class _Mode(TorchFunctionMode):
    def __init__(self, followed: FollowedOperations, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self._followed = followed
        self._sources: dict[int, _Source] = {id(p): _Leaf(key, p) for key, p in parameters.items()}
        self._alive: list[Tensor] = []  # a followed tensor's id must not pass to another

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            return func(*args, **kwargs)
        if func in BACKWARD:  # which torch runs without this mode
            self._followed.suspended = True
            try:
                return func(*args, **kwargs)
            finally:
                self._followed.suspended = False
        if self._followed.micro_batch is None or self._followed.inside or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        leaves, spec = tree_flatten((args, kwargs))
        sources = {slot: self._sources[id(leaf)] for slot, leaf in enumerate(leaves) if id(leaf) in self._sources}
        if not sources:
            return func(*args, **kwargs)
        function, leaves = _out_of_place(func, leaves)
        name = getattr(func, "__name__", "")
        state = RandomState.now(_tensors(leaves)) if name in DRAWING or "dropout" in name else None
        versions = {slot: leaf._version for slot, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
        result = func(*args, **kwargs)
        written = frozenset(slot for slot, version in versions.items() if leaves[slot]._version != version)
        others = [leaf for slot, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and slot not in sources]
        known = tuple(None if slot in sources else leaf for slot, leaf in enumerate(leaves))
        operation = _Operation(function, known, spec, sources, 0, state, written - sources.keys())
        outputs, result_spec = tree_flatten(result)
        tensors = [slot for slot, output in enumerate(outputs) if isinstance(output, Tensor)]
        for number, slot in enumerate(tensors):
            output = outputs[slot]
            if not output.requires_grad or id(output) in self._sources:
                continue
            own = replace(operation, output=number)
            axis = self._followed.seen(key_of_operation(func, own.keys, output, number), own, output, others)
            if axis is None:
                self.follow(own, output)
                continue
            if len(tensors) > 1:  # one output may be made from another, whose gradient would then hold both
                outputs[slot] = output = output.view_as(output)
            self._followed.meet(own, output, axis)
        return tree_unflatten(outputs, result_spec) if len(tensors) > 1 else result

    def follow(self, operation: _Operation, output: Tensor) -> None:
        """Follow a tensor that is derived from followed ones."""
        self._sources[id(output)] = operation
        self._alive.append(output)


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
