"""What the loop makes of one call's output before it hands it to the next: whether samples stay in their own rows.

A loop may call parts of a model by itself. What it does between two calls is written nowhere that could be run twice,
but autograd has noted it: where the next call's input is differentiated along some samples, with respect to the output
of the call before, nothing may come back for the other samples. So a part that was called on positions, or on noise,
is told from one that was called on as many samples, and so are samples that the loop mixes. This is looked at once for
each pair of calls; hooks that the loop has put on tensors between the two are called by it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from inrun_bench.attribution.capture.batch_axis import BatchAxis, batch_first
from inrun_bench.attribution.capture.observation import RESOLUTION, masks_of

__all__ = ["Links", "Numbered"]


@dataclass(frozen=True)
class Numbered:
    """A tensor and the axis that numbers its samples."""

    tensor: Tensor
    axis: BatchAxis


@dataclass(frozen=True)
class _Made:
    """An output: of which call, where it stands in the graph, and the numbers of the calls that it was made of."""

    number: int
    call: Any
    name: Callable[[], str]
    tensor: weakref.ref[Tensor]  # a graph may be freed, and memory with it, before the next call
    edge: GradientEdge
    shape: tuple[int, ...]
    axis: BatchAxis
    before: frozenset[int]


class Links:
    """The calls with one part of the batch, in their order, and which of them are known to be linked soundly.

    Attributes
    ----------
    looking : bool
        Whether autograd is being asked: what its hooks see is no backward pass of the loop's.
    """

    def __init__(self) -> None:
        self.looking = False
        self._made: list[_Made] = []
        self._sound: set[tuple[Any, ...]] = set()
        self._before: frozenset[int] = frozenset()

    def forget(self) -> None:
        """Begin anew, with other samples."""
        self._made.clear()
        self._before = frozenset()

    def enter(self, call: Any, name: Callable[[], str], inputs: Sequence[Numbered], size: int) -> None:
        """Check that each sample's rows of the inputs are made of its own rows of the outputs of calls before.

        Parameters
        ----------
        call : hashable
            What the call is known by: links between calls are looked at once.
        name : callable
            Returns that of the module that is called, for messages.
        inputs : sequence of Numbered
            What it is given.
        size : int
            Number of samples.

        Raises
        ------
        ValueError
            Where they are not.
        """
        self._before = frozenset()
        for position, given in enumerate(inputs if self._made else ()):
            nearest = list(self._nearest(given.tensor))
            further: frozenset[int] = frozenset().union(*(one.before for one in nearest))
            self._before |= further.union(one.number for one in nearest)
            for one in nearest:
                link = one.call, one.edge.output_nr, one.axis, call, position, given.axis
                if one.number not in further and link not in self._sound:  # else a detour, told by the calls on the way
                    self._check(one, given, size, name)
                    self._sound.add(link)

    def leave(self, call: Any, name: Callable[[], str], outputs: Sequence[Numbered]) -> None:
        """Note what a call returned."""
        number = len(self._made)
        for output in outputs:
            if output.tensor.grad_fn is not None:
                edge = get_gradient_edge(output.tensor)
                shape = tuple(output.tensor.shape)
                made = _Made(number, call, name, weakref.ref(output.tensor), edge, shape, output.axis, self._before)
                self._made.append(made)

    def _nearest(self, tensor: Tensor) -> Iterator[_Made]:
        """Yield the outputs that a tensor was made of, but for those behind others."""
        if tensor.grad_fn is None:
            return
        made: dict[tuple[Any, int], _Made] = {(one.edge.node, one.edge.output_nr): one for one in self._made}
        waiting: list[tuple[Node, int]] = [(tensor.grad_fn, tensor.output_nr)]
        met = set(waiting)
        while waiting:
            edge = waiting.pop()
            if edge in made:
                yield made[edge]
                continue
            further = [(node, slot) for node, slot in edge[0].next_functions if node is not None]
            further = [each for each in further if each not in met]
            met.update(further)
            waiting += further

    def _check(self, one: _Made, given: Numbered, size: int, name: Callable[[], str]) -> None:
        for mask in masks_of(size):
            along = torch.rand(given.tensor.shape, dtype=given.tensor.dtype, device=given.tensor.device) + 0.5
            rows = batch_first(along, given.axis)
            rows[~mask.repeat_interleave(len(rows) // size).to(rows.device)] = 0
            back = self._pulled_back(given.tensor, along, one)
            if back is None:
                return
            back = batch_first(back.detach().abs(), one.axis).reshape(one.shape[_number(one.axis)], -1).amax(1)
            others = back[~mask.repeat_interleave(len(back) // size).to(back.device)]
            if bool((others > RESOLUTION * back.max()).any()):
                raise ValueError(
                    f"what {one.name()} returned, of shape {list(one.shape)}, was taken for {size} samples along axis "
                    f"{one.axis}, but what was made of it and handed to {name()}, of shape {list(given.tensor.shape)}, "
                    "does not keep them apart: the loop mixes them, or it called the part on something else "
                    "(positions, noise, a table). In the second case say so with batch_axis={'': axis, layer: None}: "
                    "the axis of the samples elsewhere, and None for the part's layers"
                )

    def _pulled_back(self, tensor: Tensor, along: Tensor, one: _Made) -> Tensor | None:
        """Return a gradient at an output, and leave those that tensors are told to keep as they are."""
        keeping = [each for each in (tensor, one.tensor()) if each is not None and each.retains_grad]
        kept = [each.grad for each in keeping]
        self.looking = True
        try:
            return torch.autograd.grad(tensor, [one.edge], along, retain_graph=True, allow_unused=True)[0]
        finally:
            self.looking = False
            for each, gradient in zip(keeping, kept, strict=True):
                each.grad = gradient


def _number(axis: BatchAxis) -> int:
    return axis if isinstance(axis, int) else 0
