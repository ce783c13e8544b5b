"""Which call of the model is going on, and what was observed of it: the axes that number samples, call by call."""

from __future__ import annotations

import functools
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from inrun_bench.attribution.capture.batch_axis import BatchAxis, DeclaredAxes, Unclear
from inrun_bench.attribution.capture.compiled import announce, expect, graphs_made
from inrun_bench.attribution.capture.hooks import EagerHook, ForwardAsWritten, has_own_forward, plain_forward
from inrun_bench.attribution.capture.links import Links, Numbered
from inrun_bench.attribution.capture.observation import SEVERAL, Call, Observation, Seen, is_looked_at_again
from inrun_bench.attribution.capture.operation_count import OperationCount
from inrun_bench.attribution.capture.operations import FollowedOperations
from inrun_bench.attribution.capture.recorder import OperationKey, tensors_in
from inrun_bench.attribution.capture.saved_tensors import in_backward_pass
from inrun_bench.attribution.capture.trees import flattened, leaves_of, modules_of
from inrun_bench.attribution.layer_terms import LayerSite, MicroBatch
from inrun_bench.attribution.random_state import GENERATORS, RandomState

__all__ = ["MANY", "ObservedCalls"]

SWITCHES = (bool, str, Enum)  # kinds of settings of which few are told apart
NO_SWITCHES = {type(None), dict, OrderedDict, set, list, tuple, int, float, Tensor}  # most that modules hold
SAME = 0.02  # relative, and of the mean size: half precision rounds, but another way leads to other numbers
MANY = 8  # settings under which a call was the same: others are taken to be no switches of its way


class ObservedCalls:
    """Observes each outermost call of the model, or of a part of it, once for each form of its arguments.

    Parameters
    ----------
    model : torch.nn.Module
        The model in training.
    sites : sequence of LayerSite
        Its layers with rules.
    parameters : mapping of str to Parameter
        The trained parameters by name.
    declared : DeclaredAxes
        What the user says; what is declared is not observed.
    operations : FollowedOperations
        Looks away in the meantime, and looks again at what a checkpoint computes anew.

    Attributes
    ----------
    micro_batch : MicroBatch or None
        Of the forward passes to come; None while nobody watches.
    count : OperationCount
        Of the call that is going on; to be paused in layers with rules.
    compiled : bool
        Whether any layer was met in a compiled graph, whose random numbers and rounding are its own.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: list[LayerSite],
        parameters: Mapping[str, nn.Parameter],
        declared: DeclaredAxes,
        operations: FollowedOperations,
    ) -> None:
        self.micro_batch: MicroBatch | None = None
        self.count = OperationCount()
        self.compiled = False
        self._contradicted: str | None = None
        self._looking = False  # whether twins are being run
        self._declared, self._operations, self._parameters = declared, operations, parameters
        self._layers = {site.layer: site.name for site in sites}
        self._model = model
        self._observations: dict[_Form, Observation] = {}
        self._ways: dict[_Form, set[int]] = {}  # in which calls have gone, by the number of their operations
        self._times: Counter[_Form] = Counter()  # that calls were made, and differentiated
        self._called: set[_Form] = set()  # with the present part of the batch
        self._alone: set[_Form] = set()  # called with a part of a batch that the model was called with in no other way
        # what a part of the model was called on, and with which samples, while it is new
        self._first_numbers: dict[_Form, tuple[MicroBatch | None, list[Tensor]]] = {}
        self._links = Links()
        self._observed_modules: dict[nn.Module, bool] = {}
        self._modes: list[tuple[nn.Module, bool]] = []  # of all modules, when one was called last, and nobody watched
        self._number = announce(self)
        self._outermost: nn.Module | None = None
        self._form: _Form | None = None  # of the present call, or of the last
        self._in_graph = False  # whether the outermost is compiled, or a part of a graph that is run as it is written
        self._graphs = 0  # that had been made when the present call began
        self._again: nn.Module | None = None  # the outermost module that a backward pass computes anew
        self._observation: Observation | None = None  # of the present call, or of the last
        self._generators: list[Any] = []  # of random numbers, that modules hold
        self._going: _Going | None = None  # the present call, which may have to be observed once more
        self._latest: MicroBatch | None = None  # that were called
        self._waiting: list[Observation] = []  # of calls that may be computed anew, by a checkpoint
        self._calls: Counter[str] = Counter()
        self._handles: list[Any] = []
        self._written: list[nn.Module] = []
        trained = {id(p) for p in parameters.values()}
        for module in model.modules():
            if any(id(p) in trained for p in module.parameters()):
                enter, leave = EagerHook(module, self._enter), EagerHook(module, self._leave)
                self._handles.append(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True))
                self._handles.append(module.register_forward_hook(leave, always_call=True))

    @property
    def switches(self) -> tuple[Any, ...]:
        """Settings of the model that may change the way it goes."""
        return _settings(self._model)

    @property
    def looking_back(self) -> bool:
        """Whether hooks are being called that no backward pass of the loop calls."""
        return self._links.looking

    @property
    def contradicted(self) -> str | None:
        """What was found not to hold that values were counted by; None while all of it does."""
        return self._contradicted or self._links.contradicted

    def remove(self) -> None:
        """Take all hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for module in self._written:
            if isinstance(vars(module).get("forward"), ForwardAsWritten):  # and not what a user has put over it
                del vars(module)["forward"]
        self._written.clear()

    def of_layer(self, site: LayerSite) -> Seen:
        """Return what numbers the samples in the call of a layer that begins now."""
        if self._looking:
            raise RuntimeError(
                f"the twin of the model calls the layer {site.name!r} of the model itself, by a function, a reference "
                "or an object among its attributes that cannot be copied; call it in a method of the module instead"
            )
        call = self._calls[site.name]
        self._calls[site.name] += 1
        declared = self._declared.of(site.name)
        if declared != "observed":
            return declared
        assert self.micro_batch is not None
        if self.micro_batch.size == 1:  # every row is the one sample's
            return site.rule_axis if site.wants_all else "folded"
        if in_backward_pass():
            return self._recalled(lambda observation: observation.of_layer(site.name, None))
        if self._observation is None:
            return Unclear("it was called where nothing could be observed")
        if site.name in self._observation.missing:
            self._observe_again()
        return self._observation.of_layer(site.name, None if self._outermost is None or self._in_graph else call)

    def of_operation(self, key: OperationKey) -> Seen:
        """Return what numbers the samples in the result of an operation; Unclear where it was not observed."""
        if in_backward_pass():
            return self._recalled(lambda observation: observation.of_operation(key))
        if self._observation is None or self._outermost is None:
            reason = "it happens outside of the model's modules, where nothing is observed"
            return Unclear(reason, by_size=True, declared=self._declared.axis)
        if not key[1].isdisjoint(self._observation.missing):
            self._observe_again()
        return self._observation.of_operation(key)

    def of_compiled_layer(self, site: LayerSite) -> Seen:
        """Return what numbers the samples of a layer in a graph that is being compiled."""
        declared = self._declared.of(site.name)
        if declared != "observed":
            return declared
        answers = {one.of_layer(site.name, None) for one in self._observations.values() if site.name in one.layers}
        seen = {each for each in answers if not isinstance(each, Unclear)}
        if len(seen) == 1 and len(answers) == 1:
            return seen.pop()
        return SEVERAL if answers else Unclear("it was not observed before it was compiled", by_size=True)

    def _recalled(self, ask: Callable[[Observation], Seen]) -> Seen:
        """Return what was seen of what is computed anew, in whichever call it was."""
        answers = [ask(observation) for observation in self._waiting]
        clear = {seen for seen in answers if not isinstance(seen, Unclear)}
        if len(clear) == 1:
            return clear.pop()
        return next(
            (seen for seen in answers if isinstance(seen, Unclear) and not clear),
            Unclear("it was called in several ways, and it is not known which of them is computed anew"),
        )

    def run_as_written(self, modules: Collection[nn.Module]) -> None:
        """Have compiled graphs leave modules alone from now on; what was observed of the whole model holds in them."""
        for module in modules:
            if has_own_forward(module):
                vars(module)["forward"] = ForwardAsWritten(module, partial(self._run, module))
                self._written.append(module)

    def _run(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        in_graph = self.micro_batch is not None and self._outermost is None and not in_backward_pass()
        if in_graph:
            self._outermost, self._in_graph, self._observation = module, True, self._of_whole_model()
        self._operations.enter_module(module)
        try:
            return plain_forward(module, *args, **kwargs)
        finally:
            self._operations.leave_module()
            if in_graph:
                self._outermost, self._in_graph = None, False

    def _of_whole_model(self) -> Observation | None:
        seen = [one for form, one in self._observations.items() if form.module is self._model]
        return functools.reduce(Observation.joined, seen) if seen else None

    def _enter(self, module: nn.Module, compiled: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            if module is self._model and self.micro_batch is not None and self.micro_batch.size > 1:
                leaves = leaves_of(args, kwargs)
                expect(self._number, "expect_known", *[None if isinstance(leaf, Tensor) else leaf for leaf in leaves])
            return
        self._operations.enter_module(module)
        if self.micro_batch is None and self._operations.depth == 1 and not in_backward_pass():
            self._modes = [(each, each.training) for each in modules_of(self._model)]
        if self.micro_batch is None or self._outermost is not None or self.looking_back:
            return
        if in_backward_pass():  # what a checkpoint computes anew is known
            if any(size != self.micro_batch.size for size in self.micro_batch.beside):
                raise RuntimeError(
                    "parts of the step of different sizes were differentiated at once, and a checkpoint computes anew "
                    "what it does not say is whose; call backward() for each part before the next one's step.batch()"
                )
            if self._operations.suspended and self._again is None:
                self._again = module
                self._operations.follow_again(True)
            return
        if self.contradicted is not None:
            raise ValueError(self.contradicted)
        self._outermost, self._in_graph = module, compiled
        if self._latest is not self.micro_batch:
            if len(self._called) == 1:
                self._alone |= self._called
            self._called.clear()
            self._links.forget()
        self._observation = self._observed(module, args, kwargs, self.micro_batch.size)
        if not self.micro_batch.beside and self._latest is not self.micro_batch:
            self._waiting.clear()
        self._latest = self.micro_batch
        if self._observation is not None and not any(one is self._observation for one in self._waiting):
            self._waiting.append(self._observation)
        linked = self._linked(module)
        if linked is not None:
            inputs = _numbered(leaves_of(args, kwargs), linked.arguments)
            with self._operations.paused():
                self._links.enter(self._form, partial(self._name_of, module), inputs, self.micro_batch.size)
        self._calls.clear()
        self._graphs = graphs_made()
        self.count.begin()

    @contextmanager
    def as_called_last(self) -> Iterator[None]:
        """Put the modules back in this block into the modes, train or eval, in which they were called last.

        What a checkpoint computes anew would be another function in another mode.
        """
        others = [(module, module.training) for module, training in self._modes if module.training != training]
        for module, training in others:
            module.training = not training
        try:
            yield
        finally:
            for module, training in others:
                module.training = training

    def expect_known(self, *leaves: Any) -> None:
        """Refuse a graph of a call of the model, with such arguments beside tensors, that has never been observed."""
        arguments = [_form(leaf) for leaf in leaves if leaf is not None]
        known = [form.but_for_tensors for form in self._observations if form.module is self._model]
        if self._declared.everywhere == "observed" and arguments not in known:
            raise ValueError(
                f"the compiled model is called with {arguments} beside tensors, which it was not before it was "
                "compiled, and a compiled graph does not show where its samples are. Take one step of each way under "
                "torch.compiler.set_stance('force_eager'), or say which axis numbers the samples with batch_axis=axis"
            )

    def forget(self) -> None:
        """End a step: let go of the graphs of its calls, and of a call that was interrupted."""
        self._outermost = self._going = self._again = None
        self._links.forget()

    def _leave(self, module: nn.Module, _compiled: bool, _args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            self._operations.leave_module()
        if self.looking_back:  # a checkpoint on the way is computed anew
            return
        if module is self._outermost:
            going, self._going = self._going, None
            self._outermost = None
            if going is not None and output is not None:  # else it raised
                self._expect_known_way(going, output)
            linked = self._linked(module)
            if linked is not None:
                outputs = _numbered(tensors_in(output), linked.outputs)
                self._links.leave(self._form, partial(self._name_of, module), outputs)
        if module is self._again:
            self._again = None
            self._operations.follow_again(False)

    def _observed(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], size: int
    ) -> Observation | None:
        if size == 1 or self._declared.everywhere != "observed":
            return None
        leaves, tree = flattened(args, kwargs)
        arguments = (tree, *map(_form, leaves))
        axes = tuple(_axes_of_length(leaf, size) for leaf in leaves)
        self._form = form = _Form(module, arguments, axes, _settings(module))
        self._called.add(form)
        if module is not self._model:  # which may hold no samples at all
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            tensors = [tensor for tensor in tensors if not self._operations.holds_no_samples(tensor)]
            if not any(_may_hold_samples(tensor, size) for tensor in tensors):
                return Observation(without_samples=True)
            reason = self._why_not_samples(form, [tensor for tensor in tensors if size in tensor.shape], size)
            if reason is not None:
                return Observation(failure=Unclear(reason))
        known = self._observations.get(form) or self._whatever_the_settings(form)
        if torch.is_grad_enabled():
            given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            state = RandomState.now(given, others=True, generators=self._generators)
            self._going = _Going(form, args, kwargs, size, state, new=known is None)
        if known is not None:
            if torch.is_grad_enabled():
                self._look_again(form, args, kwargs, size, known)
            return known
        held = (each for part in modules_of(self._model) for each in vars(part).values())
        self._generators = [each for each in held if isinstance(each, GENERATORS)]
        with self._look():
            observation = self._call_of(module, args, kwargs, size).observe()
        if all(self._declared.of(name) != "observed" for name in observation.unclear_layers):
            self._observations[form] = observation  # another batch may tell what this one does not
            return observation
        alike = (one for one in self._alone if form.coincides_more_than(one))
        told = [self._observations[one] for one in alike if one in self._observations]
        return told[0] if len(told) == 1 else observation

    @contextmanager
    def _look(self) -> Iterator[None]:
        """Let twins be run in this block, which are no calls of the model."""
        self._looking = True
        try:
            with self._operations.paused():
                yield
        finally:
            self._looking = False

    def _call_of(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], size: int) -> Call:
        return Call.of(module, args, kwargs, size, self._layers, self._parameters)

    def _look_again(
        self, form: _Form, args: tuple[Any, ...], kwargs: dict[str, Any], size: int, known: Observation
    ) -> None:
        """Refuse a call that contradicts what is known of it, and what was counted before, too."""
        key = form if form in self._observations else form.bare
        self._times[key] += 1
        times = self._times[key] + 1  # the first was observed
        if not is_looked_at_again(times):
            return
        call = self._call_of(form.module, args, kwargs, size)
        believed = [name for name in self._layers.values() if self._declared.of(name) != "observed"]
        with self._look():
            reason = call.contradiction(known, believed)
        if reason is not None:
            self._contradicted = (
                f"what was seen in the first call of {self._name_of(form.module)} does not hold in call {times}: "
                f"{reason}. What was counted up to now may be wrong, too: begin anew, with samples that stay apart and "
                "in their order, or with batch_axis=axis, the axis that numbers them in all layers, if nothing mixes "
                "them"
            )
            raise ValueError(self._contradicted)

    def _whatever_the_settings(self, form: _Form) -> Observation | None:
        """Return what was seen of a call under many settings, if it was always the same."""
        seen = [one for other, one in self._observations.items() if other.bare == form.bare]
        return seen[0] if len(seen) >= MANY and all(one == seen[0] for one in seen) else None

    def _linked(self, module: nn.Module) -> Observation | None:
        """Return where the present call is known to hold samples; None where it does not, or is not differentiated."""
        known = self._observation
        if known is None or known.without_samples or self._in_graph or not torch.is_grad_enabled():
            return None
        return known if self._is_observed(module) else None

    def _is_observed(self, module: nn.Module) -> bool:
        """Whether a module holds layers of which nobody has said where their samples are."""
        if module not in self._observed_modules:
            layers = [self._layers[each] for each in modules_of(module) if each in self._layers]
            self._observed_modules[module] = any(self._declared.of(name) == "observed" for name in layers)
        return self._observed_modules[module]

    def _name_of(self, module: nn.Module) -> str:
        name = next(name for name, each in self._model.named_modules() if each is module)
        return f"{name!r} ({type(module).__name__})" if name else f"the model ({type(module).__name__})"

    def _observe_again(self) -> None:
        """Observe the present call once more, which goes another way than the one that was observed."""
        going, known = self._going, self._observation
        if going is None or known is None:
            return
        self._going = replace(going, new=True)
        self._joined(known, self._observed_again(going))

    def _expect_known_way(self, going: _Going, output: Any) -> None:
        """Observe a call that ends if it went another way than any before, and refuse it where that is not the same."""
        known, counted = self._observation, self.count.counted
        form = going.form if going.form in self._observations else going.form.bare
        ways = self._ways.get(form)
        if ways is None:
            ways = self._ways[form] = self._ways_whatever_the_settings(form)
        made = graphs_made() != self._graphs  # and with them, operations
        if known is None or (counted in ways and not made):
            return
        if not made:
            ways.add(counted)
        found = known if going.new or known.failure is not None else self._observed_again(going)
        returned, found.returned = found.returned, []
        if not (made or self.compiled or self._in_graph or _was_compiled(output)) and not _repeated(returned, output):
            raise ValueError(
                f"{self._name_of(going.form.module)} did not return the same when it was run beside training, to "
                "observe where its samples are: something that cannot be repeated decides on it (a hook that changes "
                "what a module returns, a counter). Do it in a module's forward, or say which axis numbers the samples "
                "in all layers with batch_axis=axis, if nothing mixes samples"
            )
        if found is known:
            return
        unclear = self._joined(known, found).unclear_names - known.unclear_names
        if found.failure is not None or any(self._declared.of(name) == "observed" for name in unclear):
            reason = "its layers or operations have other axes" if found.failure is None else found.failure.reason
            raise ValueError(
                f"{self._name_of(going.form.module)} went another way than in any call before, where it cannot be told "
                f"which axes number the samples: {', '.join(sorted(unclear))}: {reason}"
            )

    def _observed_again(self, going: _Going) -> Observation:
        with self.count.paused(), self._look(), going.state.again():
            return self._call_of(going.form.module, going.args, going.kwargs, going.size).observe()

    def _joined(self, known: Observation, found: Observation) -> Observation:
        """Put what was found of the present call beside what is known, wherever that stands."""
        self._observation = joined = known.joined(found)
        self._observations = {form: joined if one is known else one for form, one in self._observations.items()}
        self._waiting = [joined if one is known else one for one in self._waiting]
        return joined

    def _ways_whatever_the_settings(self, form: _Form) -> set[int]:
        """Return in which ways calls under other settings have gone, if the present ones are not told apart."""
        return set().union(*(ways for other, ways in self._ways.items() if form.bare == form == other.bare))

    def _why_not_samples(self, form: Any, tensors: list[Tensor], size: int) -> str | None:
        """Return what speaks against samples in a call of a part of the model, which is all that is seen of them."""
        if form in self._observations and form not in self._first_numbers:
            return None
        if any(tensor.requires_grad for tensor in tensors):  # made by another part of the model
            return None
        if any(_counts(tensor, size) for tensor in tensors):
            return f"it was called on 0 .. {size - 1} outside of the model's forward, which may be samples or positions"
        of, before = self._first_numbers.get(form, (None, None))
        if before is None and form not in self._observations:
            self._first_numbers[form] = self.micro_batch, [tensor.detach().clone() for tensor in tensors]
        elif before is not None and of is not self.micro_batch:  # with the same samples once more, they tell nothing
            del self._first_numbers[form]
            if self._links.are_sound_after(form) or not all(map(_same, before, tensors)):
                return None
            del self._observations[form]
            return (
                "it was called twice on the same numbers outside of the model's forward, which may be samples or a "
                "constant of as many rows"
            )
        return None


@dataclass(frozen=True)
class _Going:
    """A call that is going on, the random numbers with which it began, and whether it is being observed itself."""

    form: _Form
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    size: int
    state: RandomState
    new: bool


class _TensorForm(NamedTuple):
    dimensions: int
    floating: bool


@dataclass(frozen=True)
class _Form:
    """What a call is known by: module, arguments but for sizes, which axes have the batch's length, and switches."""

    module: nn.Module
    arguments: tuple[Any, ...]
    axes: tuple[frozenset[int], ...]
    settings: tuple[Any, ...]

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.module, self.arguments, self.axes, self.settings))

    @property
    def but_for_tensors(self) -> list[Any]:
        """What is known of arguments that are no tensors."""
        return [each for each in self.arguments[1:] if each is not None and not isinstance(each, _TensorForm)]

    @property
    def bare(self) -> _Form:
        """The same under no settings, whatever is handed over beside tensors."""
        arguments = tuple(each for each in self.arguments[1:] if each is None or isinstance(each, _TensorForm))
        return replace(self, settings=(), arguments=(self.arguments[0], *arguments))

    def coincides_more_than(self, other: _Form) -> bool:
        """Whether it is the same call but for axes that have the batch's length here, and there have not."""
        alike = (self.module, self.arguments, self.settings) == (other.module, other.arguments, other.settings)
        return alike and all(theirs <= own for own, theirs in zip(self.axes, other.axes, strict=True))


def _numbered(leaves: list[Any], axes: Mapping[int, BatchAxis]) -> list[Numbered]:
    """Return the differentiated tensors among leaves that hold samples; `axes` by their place."""
    return [
        Numbered(leaves[slot], axis)
        for slot, axis in axes.items()
        if slot < len(leaves) and isinstance(leaves[slot], Tensor) and leaves[slot].requires_grad
    ]


def _repeated(returned: list[Tensor], output: Any) -> bool:
    """Whether a twin has returned what training has, but for rounding."""
    own = [each.detach() for each in tensors_in(output) if each.requires_grad]
    if not returned or not own:
        return True
    if [each.shape for each in returned] != [each.shape for each in own]:
        return False
    return all(_close(x, y) for x, y in zip(returned, own, strict=True))


def _close(one: Tensor, other: Tensor) -> bool:
    kind = torch.promote_types(other.dtype, torch.float32)
    one, other = one.to(kind), other.to(kind)
    size = float(other.nan_to_num(0, 0, 0).abs().mean())
    return bool(torch.isclose(one, other, rtol=SAME, atol=SAME * size, equal_nan=True).all())


def _was_compiled(output: Any) -> bool:
    """Whether compiled code is behind an output, of which nothing is counted."""
    waiting = [tensor.grad_fn for tensor in tensors_in(output) if tensor.grad_fn is not None]
    met = set(waiting)
    while waiting:
        node = waiting.pop()
        if "Compiled" in node.name():
            return True
        further = {each for each, _ in node.next_functions if each is not None} - met
        met |= further
        waiting += further
    return False


def _axes_of_length(leaf: Any, size: int) -> frozenset[int]:
    return (
        frozenset(axis for axis, length in enumerate(leaf.shape) if length == size)
        if isinstance(leaf, Tensor)
        else frozenset()
    )


def _may_hold_samples(tensor: Tensor, size: int) -> bool:
    return size in tensor.shape or (tensor.dim() > 0 and tensor.shape[0] > size and tensor.shape[0] % size == 0)


def _counts(tensor: Tensor, size: int) -> bool:
    if tensor.is_floating_point() or tensor.dim() != 1 or tensor.is_meta:
        return False
    return bool((tensor == torch.arange(size, device=tensor.device)).all())


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _form(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return _TensorForm(leaf.dim(), leaf.is_floating_point())
    if leaf is None or isinstance(leaf, (int, *SWITCHES)):
        return leaf
    return type(leaf), _switches(leaf)


def _settings(module: nn.Module) -> tuple[Any, ...]:
    """Return what the code of a module may ask for its way: the switches of all its parts, ``training`` among them."""
    return tuple(_switches(each) for each in modules_of(module))


def _switches(thing: Any) -> tuple[Any, ...]:
    held: Mapping[str, Any] = getattr(thing, "__dict__", {})
    return tuple([pair for pair in held.items() if type(pair[1]) not in NO_SWITCHES and isinstance(pair[1], SWITCHES)])
