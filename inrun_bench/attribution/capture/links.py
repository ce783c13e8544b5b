"""What the loop makes of one call's output before it hands it to the next: whether samples stay in their own rows.

A loop may call parts of a model by itself. What it does between two calls is written nowhere that could be run twice,
but autograd has noted it: where the next call's input is differentiated along some samples, with respect to the output
of the call before, nothing may come back for the other samples. So a part that was called on positions, or on noise,
is told from one that was called on as many samples, and so are samples that the loop mixes. This is looked at once for
each way from one call to the next; hooks that the loop has put on tensors and modules on the way are called by it, with
gradients that are next to nothing, lest what they sum up be changed.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from inrun_bench.attribution.capture.batch_axis import BatchAxis, batch_first
from inrun_bench.attribution.capture.observation import RESOLUTION, is_looked_at_again, masks_of

__all__ = ["Links", "Numbered"]

FAINT = 0.6  # power of the smallest normal number: as large as the gradients are with which it is looked back


@dataclass(frozen=True)
class Numbered:
    """A tensor and the axis that numbers its samples."""

    tensor: Tensor
    axis: BatchAxis


@dataclass(frozen=True)
class _Made:
    """An output: of which call, and where it stands in the graph."""

    call: Any
    name: Callable[[], str]
    tensor: weakref.ref[Tensor]  # a graph may be freed, and memory with it, before the next call
    edge: GradientEdge
    shape: tuple[int, ...]
    axis: BatchAxis


class Links:
    """The calls with one part of the batch, in their order, and which of them are known to be linked soundly.

    Attributes
    ----------
    looking : bool
        Whether autograd is being asked: what its hooks see is no backward pass of the loop's.
    contradicted : str or None
        What was found not to hold of a link that had been sound.
    """

    def __init__(self) -> None:
        self.looking = False
        self.contradicted: str | None = None
        self._made: list[_Made] = []
        self._sound: Counter[tuple[Any, ...]] = Counter()  # how often each was met

    def forget(self) -> None:
        """Begin anew, with other samples."""
        self._made.clear()

    def are_sound_after(self, call: Any) -> bool:
        """Return whether what a call returned has been seen to reach another one row by row."""
        return any(link[0] == call for link in self._sound)

    def enter(self, call: Any, name: Callable[[], str], inputs: Sequence[Numbered], size: int) -> None:
        """Check that each sample's rows of the inputs are made of its own rows of the outputs of calls before.

        Parameters
        ----------
        call : hashable
            What the call is known by: links between calls are looked at once for each way from one to the other.
        name : callable
            Returns that of the module that is called, for messages.
        inputs : sequence of Numbered
            What it is given.
        size : int
            Number of samples.

        Raises
        ------
        ValueError
            Where they are not, or autograd cannot be asked.
        """
        for position, given in enumerate(inputs if self._made else ()):
            nearest, way = self._nearest(given.tensor)
            for one in nearest:
                link = one.call, one.edge.output_nr, one.axis, call, position, given.axis, way
                times = self._sound[link] + 1
                if times == 1 or is_looked_at_again(times):
                    try:
                        self._check(one, given, size, name)
                    except ValueError as error:
                        self.contradicted = str(error) if times > 1 else None
                        raise
                self._sound[link] = times

    def leave(self, call: Any, name: Callable[[], str], outputs: Sequence[Numbered]) -> None:
        """Note what a call returned."""
        for output in outputs:
            if output.tensor.grad_fn is not None:
                edge = get_gradient_edge(output.tensor)
                shape = tuple(output.tensor.shape)
                self._made.append(_Made(call, name, weakref.ref(output.tensor), edge, shape, output.axis))

    def _nearest(self, tensor: Tensor) -> tuple[list[_Made], tuple[str, ...]]:
        """Return the outputs that a tensor was made of, but for those behind others, and the operations on the way."""
        found: list[_Made] = []
        way: list[str] = []
        if tensor.grad_fn is None:
            return found, ()
        made: dict[tuple[Any, int], _Made] = {(one.edge.node, one.edge.output_nr): one for one in self._made}
        waiting: list[tuple[Node, int]] = [(tensor.grad_fn, tensor.output_nr)]
        met = set(waiting)
        while waiting:
            edge = waiting.pop()
            if edge in made:
                found.append(made[edge])
                continue
            way.append(edge[0].name())
            further = [(node, slot) for node, slot in edge[0].next_functions if node is not None]
            further = [each for each in further if each not in met]
            met.update(further)
            waiting += further
        return found, tuple(way)

    def _check(self, one: _Made, given: Numbered, size: int, name: Callable[[], str]) -> None:
        for mask in masks_of(size):
            along = _drawn_like(given.tensor)
            rows = batch_first(along, given.axis)
            rows[~mask.repeat_interleave(len(rows) // size).to(rows.device)] = 0
            try:
                back = self._pulled_back(given.tensor, along, one)
            except Exception as error:  # whatever may lie between the two: compiled code, checkpoints, hooks
                raise ValueError(
                    f"between {one.name()} and {name()} lies something that autograd cannot be asked about before the "
                    f"loop's own backward pass, so that it is not seen whether samples stay apart: {error!r}. Do it "
                    "inside of a module's forward (a reentrant checkpoint: with use_reentrant=False), or say which "
                    "axis numbers the samples in all layers with batch_axis=axis"
                ) from error
            if back is None:
                return
            back = batch_first(back.abs(), one.axis).reshape(one.shape[_number(one.axis)], -1).amax(1)
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
        """Return a gradient at an output, of some size; leave those that the two tensors are told to keep as they are.

        A faint one, lest it be seen where gradients are summed up on the way, unless nothing comes back of that.
        """
        faint = torch.finfo(tensor.dtype).tiny ** FAINT
        keeping = [each for each in (tensor, one.tensor()) if each is not None and each.retains_grad]
        kept = [each.grad for each in keeping]
        self.looking = True
        try:
            for size in (faint, 1.0):
                back: Tensor | None = torch.autograd.grad(
                    tensor, [one.edge], along * size, retain_graph=True, allow_unused=True
                )[0]
                if back is None or bool(back.any()):
                    break
            return None if back is None else back.detach()
        finally:
            self.looking = False
            for each, gradient in zip(keeping, kept, strict=True):
                each.grad = gradient


def _drawn_like(tensor: Tensor) -> Tensor:
    """Return numbers between 0.5 and 1.5, always the same, without touching the generators of others."""
    draw = torch.Generator().manual_seed(tensor.numel())
    drawn = torch.rand(tensor.shape, generator=draw, dtype=torch.promote_types(tensor.dtype, torch.float32)) + 0.5
    return drawn.to(tensor)


def _number(axis: BatchAxis) -> int:
    return axis if isinstance(axis, int) else 0
