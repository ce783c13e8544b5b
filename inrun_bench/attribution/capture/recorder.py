"""What a pass of a model made of samples and of parameters, noted in projections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from inrun_bench.attribution.capture.batch_axis import BatchAxis, batch_first, candidates
from inrun_bench.attribution.capture.in_place import results_of
from inrun_bench.attribution.capture.operation_count import OperationCount
from inrun_bench.attribution.capture.trees import leaves_of, tensors_of

__all__ = ["Directions", "OperationKey", "Output", "Recorder", "key_of_operation", "tensors_in"]

DETACHED = (Tensor.detach, Tensor.detach_, torch.detach)

FACTS = frozenset(
    [
        getattr(Tensor, name).__get__
        for name in ("shape", "dtype", "device", "requires_grad", "ndim", "layout", "is_cuda")
    ]
    + [Tensor.size, Tensor.dim, Tensor.numel, Tensor.stride, Tensor.is_contiguous, Tensor.is_floating_point]
    + [Tensor.is_complex, Tensor.__len__, torch.is_floating_point, torch.is_complex, torch.numel]
)
"""Functions that tell of a tensor what its numbers have no part in: most of what a model asks for."""

OperationKey: TypeAlias = tuple[str, frozenset[str], int, int]
"""An operation on followed parameters: its name, theirs, the number of its result's axes, and which result it is."""


@dataclass
class Output:
    """One output in one pass.

    Attributes
    ----------
    kind : str, OperationKey or int
        A layer's name, the key of an operation, or the number of an output of the whole model.
    number : int
        Which of its kind.
    shape : tuple of int
        Its shape.
    tainted : bool
        Whether it was computed from arguments that hold samples.
    slices : dict of BatchAxis to Tensor
        Random projections of its slices, by axis that may number samples; of all of it, where none may, by None.
    """

    kind: Any
    number: int
    shape: tuple[int, ...]
    tainted: bool
    slices: dict[BatchAxis, Tensor]


def key_of_operation(function: Callable[..., Any], keys: set[str], output: Tensor, slot: int) -> OperationKey:
    """Return what an operation is known by from one pass to the next."""
    return getattr(function, "__name__", str(function)), frozenset(keys), output.dim(), slot


class Directions:
    """Random directions to project on: as long as any row that was met, one for each type of numbers and device."""

    def __init__(self) -> None:
        self._drawn: dict[tuple[torch.dtype, torch.device], tuple[Tensor, torch.Generator]] = {}

    def projected(self, slices: Tensor) -> Tensor:
        """Return a random projection of each slice: equal slices have equal ones."""
        rows = slices.reshape(len(slices), -1)
        return rows @ self._direction(rows)[: rows.shape[1]]

    def _direction(self, rows: Tensor) -> Tensor:
        key, length = (rows.dtype, rows.device), rows.shape[1]
        if key not in self._drawn:
            self._drawn[key] = rows.new_empty(0), torch.Generator(rows.device).manual_seed(0)
        drawn, generator = self._drawn[key]
        if len(drawn) < length:  # what was drawn before stays as it is
            more = torch.rand(length - len(drawn), generator=generator, dtype=rows.dtype, device=rows.device) + 0.5
            drawn = torch.cat([drawn, more])
            self._drawn[key] = drawn, generator
        return drawn


class Recorder(TorchFunctionMode):
    """Follows what is computed from samples and from parameters, and notes projections of what comes of them.

    Parameters
    ----------
    parameters : mapping of int to str
        Names of the parameters to follow, by their ids.
    size : int
        Number of samples.
    constants : set
        Kind and number of outputs that are known to hold no samples, whatever they were computed from.
    directions : Directions
        What outputs are projected on: the same in all passes that are compared.

    Attributes
    ----------
    outputs : list of Output
        What was noted.
    count : OperationCount
        Of the operations of the pass.
    """

    def __init__(
        self, parameters: Mapping[int, str], size: int, constants: set[tuple[Any, int]], directions: Directions
    ) -> None:
        super().__init__()
        self.outputs: list[Output] = []
        self.count = OperationCount()
        self._size, self._constants, self._directions = size, constants, directions
        self._noting = False
        self._inside = 0
        self._samples: dict[int, Tensor] = {}  # what holds samples, by id; kept alive, lest an id pass to another
        self._followed: dict[int, set[str]] = {number: {key} for number, key in parameters.items()}
        self._alive: list[Tensor] = []
        self._numbers: Counter[Any] = Counter()

    def taint(self, tensor: Tensor) -> None:
        """Note that a tensor holds samples."""
        self._samples[id(tensor)] = tensor

    def enter(self, *_: Any) -> None:
        """Be told that a layer is entered, whose operations are its own affair."""
        self._inside += 1
        self.count.pause()

    def leave(self, name: str, keys: set[str]) -> Callable[..., None]:
        """Return the forward hook of a layer."""

        def hook(_layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._inside -= 1
            self.count.go_on()
            given = tensors_of(args, kwargs)
            results = tensors_of((output,), {})
            tainted = any(id(each) in self._samples for each in given)
            for result in results if tainted else []:
                self.taint(result)
            if self._inside or not results:
                return
            followed = keys.union(*(self._followed.get(id(each), ()) for each in given))
            if not self._note(name, results[0], tainted):
                self._follow([each for each in results if _may_be_differentiated(each)], followed)

        return hook

    def leave_model(self, output: Any) -> None:
        """Note what comes of the whole model, where it can number samples; if nothing can, all but single numbers."""
        results = {slot: each for slot, each in enumerate(tensors_in(output)) if each.is_floating_point()}
        numbering = {slot: each for slot, each in results.items() if candidates(tuple(each.shape), self._size)}
        for slot, result in (numbering or results).items():
            if result.numel() > 1:
                self._note(slot, result, id(result) in self._samples)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._noting or func in FACTS:
            return func(*args, **kwargs)
        given = tensors_of(args, kwargs)
        versions = [each._version for each in given]
        result = func(*args, **kwargs)
        written = [each for each, version in zip(given, versions, strict=True) if each._version != version]
        results = results_of(result, written)
        if not results:
            return result
        tainted = any(id(each) in self._samples for each in given)
        if tainted:
            for each in results:
                self.taint(each)
        keys: set[str] = set().union(*(self._followed.get(id(each), ()) for each in given))
        if not keys or self._inside:
            return result
        for slot, each in enumerate(results):
            if not each.is_floating_point() or func in DETACHED or not _may_be_differentiated(each):
                continue
            holds = tainted
            if id(each) not in self._followed or any(each is one for one in written):
                holds = self._note(key_of_operation(func, keys, each, slot), each, tainted)
            if holds:
                self._followed.pop(id(each), None)
            else:
                self._follow([each], keys)
        return result

    def _follow(self, tensors: list[Tensor], keys: set[str]) -> None:
        for tensor in tensors:
            self._samples.pop(id(tensor), None)
            self._followed[id(tensor)] = keys
            self._alive.append(tensor)

    def _note(self, kind: Any, output: Tensor, tainted: bool) -> bool:
        """Note an output and return whether it may hold samples."""
        number = self._numbers[kind]
        self._numbers[kind] += 1
        tainted = tainted and (kind, number) not in self._constants
        self._noting = True
        try:
            with torch.no_grad(), torch.autocast(output.device.type, enabled=False):
                self.outputs.append(Output(kind, number, tuple(output.shape), tainted, self._slices(output.detach())))
        finally:
            self._noting = False
        return tainted

    def _slices(self, output: Tensor) -> dict[BatchAxis, Tensor]:
        values, axes = _tamed(output), candidates(tuple(output.shape), self._size)
        slices = {axis: self._directions.projected(batch_first(values, axis)) for axis in axes}
        return slices or {None: self._directions.projected(values[None])}


def _may_be_differentiated(result: Tensor) -> bool:
    """Whether a result is no constant to autograd; a checkpoint of the older kind does not say before it runs again."""
    return result.requires_grad or not torch.is_grad_enabled()


def _tamed(values: Tensor) -> Tensor:
    """Return real numbers that are equal where the values are, none so large that it drowns all others.

    A mask's -inf, or -1e9, would.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    values = (torch.view_as_real(values) if values.is_complex() else values).nan_to_num()
    return torch.copysign(values.abs().log1p(), values)


def tensors_in(output: Any) -> list[Tensor]:
    """Return the tensors that a module returned: in trees, and in objects whose attributes they are."""
    found: list[Tensor] = []
    waiting, met = leaves_of((output,), {}), set()
    while waiting:
        leaf = waiting.pop(0)
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif id(leaf) not in met and not isinstance(leaf, (type, nn.Module)):
            met.add(id(leaf))  # objects may hold each other
            waiting = leaves_of((), getattr(leaf, "__dict__", {})) + waiting
    return found
