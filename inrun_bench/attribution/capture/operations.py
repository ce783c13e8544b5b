"""Parameters that no ghost rule covers, followed operation by operation.

Positional embeddings and scales that a model adds or multiplies itself, layers without a rule, a tied weight that is
used as a function's argument: wherever such a parameter takes part in an operation, one of two things holds.

- All that it meets is the same for every sample (a slice, a transpose, a norm of the weight): the result is *derived*
  from the parameter and followed in its place.
- It meets the samples. Then the result y has a batch axis, and the scores of the operation are
  ``sum over the elements of y_i of b_i * dy_i``, with b the gradient of the loss with respect to y and dy the
  derivative of the operation in the direction of the probe (forward mode; the chain rule through what is derived). An
  operation without a forward mode is differentiated backwards instead, once a sample.

A layer with rules is one operation. Called without samples it is derived from its own parameters and from what it is
called on; called on the samples and on followed tensors (learned queries in attention), its rules score its parameters,
and the operation what came in. What happens inside of it is its own affair.

Both are exact. Which of the two it is, and which axis numbers the samples, is observed
(:mod:`~inrun_bench.attribution.capture.observation`); an operation outside of any module's call, which cannot be, is
accepted where only one axis of its result can number samples. Operations that draw random numbers draw the same again,
and those that write in place write into a copy of what was there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import takewhile
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from inrun_bench.attribution.capture.batch_axis import BatchAxis, Unclear, candidates
from inrun_bench.attribution.capture.followed_tensors import FollowedTensors
from inrun_bench.attribution.capture.in_place import hook_on_value, results_of, works_in_place
from inrun_bench.attribution.capture.observation import Seen
from inrun_bench.attribution.capture.operation_terms import (
    FollowedParameter,
    LayerCall,
    Operation,
    OperationTerm,
    Source,
    without_tensors,
)
from inrun_bench.attribution.capture.recorder import OperationKey, key_of_operation
from inrun_bench.attribution.capture.saved_tensors import hold, hooks_on_saved_tensors, in_backward_pass, save
from inrun_bench.attribution.capture.trees import leaves_of
from inrun_bench.attribution.layer_terms import MicroBatch
from inrun_bench.attribution.precision import Autocast
from inrun_bench.attribution.random_state import RandomState

__all__ = ["FollowedOperations"]

BACKWARD = (Tensor.backward, torch.autograd.backward)

logger = logging.getLogger(__name__)


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
    keys : set of str
        Parameters that no rule covers, or that are used outside of their layers.
    inside : int
        How many layers with rules are being run; their operations are not looked at.
    suspended : bool
        Whether a backward pass is going on, in which torch looks away.
    asked : bool
        Whether the mode is being asked by torch, which has taken it off meanwhile.
    where : set of Module
        Those in which parameters are followed, or layers called, of which a compiled graph shows nothing.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        receive: Callable[[OperationTerm], None],
        seen: Callable[[OperationKey], Seen],
        uncovered: set[str],
    ) -> None:
        self.inside = 0
        self.watched = 0  # operations, whose terms a backward pass will bring if it reaches them
        self.suspended = self.asked = False
        self._micro_batch: MicroBatch | None = None
        self.keys = set(uncovered)
        self._receive, self._seen = receive, seen
        self._parameters = dict(parameters)
        self._names = set(parameters)
        self._announced: set[str] = set()
        self._memory: set[int] = set()  # where parameters lie
        self.where: set[nn.Module] = set()
        self._hidden: set[str] = set()  # parameters of which a compiled graph shows nothing
        self._entered: list[tuple[nn.Module, Any]] = []  # modules that are being run, and what governed saved tensors
        self._mode: _Mode | None = None
        self._on = False  # whether the mode is among those that torch asks
        self._below: Any = None  # the one that it asks before ours, or when ours is not among them

    def __enter__(self) -> None:
        self.inside = 0
        self._entered.clear()
        self._memory = {p.untyped_storage().data_ptr() for p in self._parameters.values()}
        if self._names:
            self._mode = _Mode(self, {name: self._parameters[name] for name in self._names})
            self._below = next(_modes(), None)

    def begin(self) -> None:
        """Look at what is done from now on in the block of a step, before modes are entered in it."""
        self._switch(True)

    def __exit__(self, *error: Any) -> None:
        mode, self._mode, self._on = self._mode, None, False
        above = list(takewhile(lambda one: one is not mode, _modes()))
        if len(above) < torch._C._len_torch_function_stack():  # a mode that is open still, or a default device that was
            for _ in range(len(above) + 1):  # set in the step, stays where it is
                torch._C._pop_torch_function_stack()
            for one in reversed(above):
                torch._C._push_on_torch_function_stack(one)
        if error[0] is None:
            self._names = set(self.keys)  # what the first step has not found is not looked for again

    @property
    def micro_batch(self) -> MicroBatch | None:
        """The samples of the operations to come; None: look away."""
        return self._micro_batch

    @micro_batch.setter
    def micro_batch(self, micro_batch: MicroBatch | None) -> None:
        self._micro_batch = micro_batch
        self._switch(micro_batch is not None)

    def _switch(self, on: bool) -> None:
        """Have torch ask the mode, or not: whatever is asked costs a few microseconds, the optimiser's work, too.

        A mode of the user's that was entered in the meantime (``torch.device`` as a context) is left where it is, and
        ours beneath it; so is what torch has switched off itself, in a backward pass.

        Raises
        ------
        RuntimeError
            If a mode that was entered before the step was left inside of it: torch has taken ours off in its place.
        """
        mode = self._mode
        if mode is None or on is self._on:
            return
        top = next(_modes(), None)
        if on and top is self._below:
            mode.__enter__()  # type: ignore[no-untyped-call]
            self._on = True
        elif not on and top is mode:
            top.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._on = False
        elif not on and mode not in _modes() and not (self.suspended or self.asked or in_backward_pass()):
            self._on = False
            raise RuntimeError(
                "a torch function mode (torch.device as a context, for instance) that was entered before the step was "
                "left inside of it, so that torch has taken off the engine's in its place, and goes on with yours; "
                "enter and leave it on one side of the step"
            )

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
            self._mode.followed.follow_copies()
            self._mode.__enter__()  # type: ignore[no-untyped-call]
        elif self._mode is not None:
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def enter_module(self, module: nn.Module) -> None:
        """Be told that a module is entered, whose operations are seen as well where a checkpoint runs it again."""
        self._entered.append((module, hooks_on_saved_tensors()))

    @property
    def depth(self) -> int:
        """How many modules are being run, one inside of the other."""
        return len(self._entered)

    def leave_module(self) -> None:
        """Be told that it is left."""
        if self._entered:
            self._entered.pop()

    def note(self, operation: Operation) -> None:
        """Note an operation on followed tensors, outside of layers."""
        self._hidden |= {source.key for source in operation.sources.values() if isinstance(source, FollowedParameter)}
        self._note_place(operation)

    def _note_place(self, operation: Operation, layer: nn.Module | None = None) -> None:
        """Note the module in which an operation happens, or a layer is called, if a compiled graph would hide it."""
        if not operation.keys.isdisjoint(self._hidden):
            self.note_caller(layer)

    def note_caller(self, layer: nn.Module | None) -> None:
        """Note the module that calls a layer of which a compiled graph shows nothing."""
        self.where |= set([module for module, _ in self._entered if module is not layer][-1:])

    def holds_no_samples(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter, or was made of parameters alone."""
        return self._mode is not None and bool(self._mode.followed.sources_of([tensor]))

    def takes_part(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether anything that is followed is among the arguments of a layer that is entered."""
        if self._mode is None or self.inside:
            return False
        return bool(self._mode.followed.sources_of(leaves_of(args, kwargs)))

    def derive(
        self,
        layer: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
        state: RandomState | None,
        *,
        shown: bool,
    ) -> None:
        """Follow the output of a layer that was called without samples; a compiled graph would have `shown` it."""
        names = {id(p): key for key, p in self._parameters.items()}
        keys = {name: names[id(p)] for name, p in layer.named_parameters() if id(p) in names and p.requires_grad}
        if self._mode is None:
            raise RuntimeError(
                f"{type(layer).__name__} with parameters {', '.join(map(repr, keys.values()))} was called without "
                "samples, which it was not in the first step; say so with batch_axis={its name: None}"
            )
        operation = self._call_of(layer, keys, args, kwargs, state)
        self.keys |= operation.keys
        if not shown:
            self._hidden |= operation.keys
        self._note_place(operation, layer)
        self._mode.followed.follow(operation, output)

    def through(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], state: RandomState | None
    ) -> Operation | None:
        """Return what followed arguments do in a layer that sees samples, whose own parameters are its rules' affair.

        Its leaves are to be those of ``((), args, kwargs)``.
        """
        if not self.takes_part(args, kwargs):
            return None
        operation = self._call_of(layer, {}, args, kwargs, state)
        self._announce(operation)
        self._note_place(operation, layer)
        return without_tensors(operation)

    def _call_of(
        self,
        layer: nn.Module,
        keys: Mapping[str, str],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        state: RandomState | None,
    ) -> Operation:
        """Return a layer's call as an operation on those parameters of its own, and on followed arguments."""
        assert self._mode is not None
        leaves, spec = tree_flatten(((tuple(keys), args, kwargs), {}))
        sources: dict[int, Source] = {
            slot: FollowedParameter(key, self._parameters[key]) for slot, key in enumerate(keys.values())
        }
        sources |= self._mode.followed.sources_of(leaves)
        autocast = Autocast.now(_tensors(leaves))
        return Operation(LayerCall(layer, tuple(keys)), self.kept(leaves, sources), spec, sources, autocast, 0, state)

    def apart(self, tensor: Tensor) -> Tensor:
        """Return a tensor as it is to be kept: a copy where the optimiser would write into it."""
        return tensor.detach().clone() if self.is_of_parameter(tensor) else tensor.detach()

    def is_of_parameter(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in the memory of a parameter."""
        return tensor.layout == torch.strided and tensor.untyped_storage().data_ptr() in self._memory

    def kept(self, leaves: list[Any], sources: Collection[int]) -> tuple[Any, ...]:
        """Return an operation's arguments as they are to be kept, None in place of what is followed."""
        return tuple(
            None if slot in sources else self.apart(leaf) if isinstance(leaf, Tensor) else leaf
            for slot, leaf in enumerate(leaves)
        )

    def meet(
        self,
        operation: Operation,
        output: Tensor,
        axis: int | Literal["folded"],
        hook: Callable[[Tensor, Callable[[Tensor], None]], Any] = Tensor.register_hook,
    ) -> None:
        """Note an operation on the samples: its term is received when the gradient of its output comes."""
        micro_batch = self.micro_batch
        assert micro_batch is not None
        self._announce(operation)
        self.watched += 1
        tensors = {slot: leaf for slot, leaf in enumerate(operation.leaves) if isinstance(leaf, Tensor)}
        seen_again = hooks_on_saved_tensors() is (self._entered[-1][1] if self._entered else None)
        saved = (save if seen_again else hold)(list(tensors.values()), repr(operation.name))
        slots, operation = list(tensors), without_tensors(operation)
        anew = in_backward_pass()
        del tensors

        def backward(b: Tensor) -> None:
            if anew:
                micro_batch.computed_anew()
            leaves = list(operation.leaves)
            for slot, tensor in zip(slots, saved(), strict=True):
                leaves[slot] = tensor
            self._receive(OperationTerm(replace(operation, leaves=tuple(leaves)), micro_batch, axis, b.detach()))

        hook(output, backward)

    def _announce(self, operation: Operation) -> None:
        for key in operation.keys - self._announced:
            logger.warning(
                "parameter %r has no ghost rule where %r uses it; its operations are differentiated one by one",
                key,
                operation.name,
            )
        self._announced |= operation.keys
        self.keys |= operation.keys

    def seen(self, key: OperationKey, operation: Operation, output: Tensor, others: list[Tensor]) -> BatchAxis:
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
    def __init__(self, operations: FollowedOperations, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self._operations = operations
        self.followed = FollowedTensors(parameters, operations.keys, operations.is_of_parameter)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            return func(*args, **kwargs)
        if func in BACKWARD:  # which torch runs without this mode
            self.followed.sources_of(leaves_of(args, kwargs))
            self._operations.suspended = True
            try:
                return func(*args, **kwargs)
            finally:
                self._operations.suspended = False
        if self._operations.micro_batch is None or self._operations.inside or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if not self.followed.sources_of(leaves_of(args, kwargs)):
            return func(*args, **kwargs)
        leaves, spec = tree_flatten((args, kwargs))
        sources = self.followed.sources_of(leaves)
        tensors = {slot: leaf for slot, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
        before = leaves[0].detach().clone() if works_in_place(func) and 0 not in sources else None
        state, autocast = RandomState.now(list(tensors.values())), Autocast.now(list(tensors.values()))
        versions = {slot: tensor._version for slot, tensor in tensors.items()}
        result = func(*args, **kwargs)
        written = frozenset(slot for slot, tensor in tensors.items() if tensor._version != versions[slot])
        others = [tensor for slot, tensor in tensors.items() if slot not in sources]
        known = list(self._operations.kept(leaves, sources))
        for slot in written - sources.keys():
            known[slot] = known[slot].clone() if slot or before is None else before
        drawn = state if state.drawn_from() else None
        operation = Operation(func, tuple(known), spec, sources, autocast, 0, drawn, written)
        self._operations.note(operation)
        places, result_spec = tree_flatten(result)
        slots = [slot for slot, place in enumerate(places) if isinstance(place, Tensor)]
        outputs = results_of(result, [leaves[slot] for slot in sorted(written)])
        for number, output in enumerate(outputs):
            in_place = any(output is leaves[slot] for slot in written)
            if not output.requires_grad or (output in self.followed and not in_place):
                continue
            own = replace(operation, output=number)
            self._operations.asked = True  # torch has taken the mode off for this long
            try:
                axis = self._operations.seen(key_of_operation(func, own.keys, output, number), own, output, others)
            finally:
                self._operations.asked = False
            if axis is None:
                self.followed.follow(own, output, in_place=in_place)
                continue
            self.followed.forget(output)
            if len(slots) > 1:  # one output may be made from another, whose gradient would then hold both
                places[slots[number]] = output = output.view_as(output)
            self._operations.meet(own, output, axis, hook_on_value if in_place else Tensor.register_hook)
        return tree_unflatten(places, result_spec) if len(slots) > 1 else result


def _modes() -> Iterator[Any]:
    """Yield the modes that torch asks, the innermost first."""
    for place in range(torch._C._len_torch_function_stack() - 1, -1, -1):
        yield torch._C._get_function_stack_at(place)


def _tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor)]
