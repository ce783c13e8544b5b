"""Terms: what a layer's call adds to the samples' gradients, ready to be dotted with a probe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from inrun_bench.attribution.directions import Direction, Factors, multiplied_out, stacked
from inrun_bench.attribution.families import Rule, find_gradients_of_samples, find_scored_backward
from inrun_bench.attribution.products.backend import Backend

__all__ = [
    "MANY",
    "Aimed",
    "FormedTerm",
    "Joint",
    "LayerSite",
    "LayerTerm",
    "MicroBatch",
    "Rows",
    "Term",
    "each_formed",
    "each_scored",
]

FORMED = 2**26  # numbers of samples' gradients, that may be formed at once
MANY = 4  # probes, for more of which samples' gradients are formed and not projected on each

Rows: TypeAlias = slice | Tensor
"""Some rows of a micro-batch: a stretch of them, or their numbers."""


@dataclass(frozen=True)
class MicroBatch:
    """The samples of one forward pass.

    Attributes
    ----------
    start, size : int
        Where in the step's batch they begin, and how many there are.
    beside : tuple of int
        Sizes of those before that had not been differentiated when these were announced.
    validation : int
        How many of them, the last ones, are validation samples.
    """

    start: int
    size: int
    beside: tuple[int, ...] = ()
    validation: int = 0

    @property
    def rows(self) -> slice:
        """Where they stand in the step's batch."""
        return slice(self.start, self.start + self.size)

    def computed_anew(self) -> None:
        """Refuse, where it matters, what a checkpoint of the reentrant kind computes in the backward pass."""
        if self.beside:
            raise RuntimeError(
                "a checkpoint with use_reentrant=True was differentiated for several parts of the step at once, which "
                "does not tell whose samples it computes; call backward() for each part before the next one's "
                "step.batch(), or use checkpoints with use_reentrant=False"
            )

    def of_a_graph(self) -> None:
        """Refuse, where it matters, what a compiled graph hands over, which does not say whose it is."""
        if self.beside:
            raise RuntimeError(
                "a compiled model was called for several parts of the step before the first of them was "
                "differentiated, and does not tell whose gradients it hands over; call backward() for each part before "
                "the next one's step.batch()"
            )


class Term(Protocol):
    """What one call, of a layer or of an operation, adds to the gradients of a micro-batch's samples."""

    @property
    def where(self) -> str:
        """What was called, for messages."""

    @property
    def keys(self) -> set[str]:
        """Names of the parameters concerned."""

    @property
    def micro_batch(self) -> MicroBatch:
        """The samples."""

    @property
    def b(self) -> Tensor:
        """The gradient of the call's output."""

    @property
    def kind(self) -> torch.dtype:
        """The coarsest precision of what went into it."""

    @property
    def tensors(self) -> list[Tensor]:
        """What is kept in memory."""

    def score(self, probe: Direction) -> Tensor:
        """Return the samples' dot products with `probe`, [micro_batch.size]."""

    def scores(self, probes: Sequence[Direction]) -> Tensor:
        """Return the dot products with several probes, [probes, micro_batch.size]."""

    def gradients(self, groups: Sequence[Rows]) -> list[dict[str, Tensor]]:
        """Return the gradients of groups of rows, by parameter, float32 at least; they add up over rows."""

    def gradients_of_each(self) -> dict[str, Tensor]:
        """Return the gradient of each row, by parameter, [micro_batch.size, *parameter], float32 at least."""

    def rounded(self, dtype: torch.dtype) -> Term:
        """Return the term in another precision."""


@dataclass(frozen=True)
class LayerSite:
    """A layer whose parameters have ghost rules; beside each rule, its parameters' names among the model's.

    `kernels` says what runs the products of rules that have kernels (:mod:`~inrun_bench.attribution.products`).
    """

    name: str
    layer: nn.Module
    rules: tuple[tuple[Rule, tuple[str | None, ...]], ...]
    kernels: Backend = "auto"

    @property
    def where(self) -> str:
        """The layer's name, for messages."""
        return f"layer {self.name!r} ({type(self.layer).__name__})"

    @cached_property
    def keys(self) -> set[str]:
        """Names of the parameters that the site covers."""
        return {key for _, keys in self.rules for key in keys if key}

    @property
    def wants_all(self) -> bool:
        """Whether a rule wants all arguments of the layer's forward."""
        return any(rule.inputs == "all" for rule, _ in self.rules)

    @property
    def replays(self) -> bool:
        """Whether a rule runs the layer again, with the random numbers of its call."""
        return any(rule.replays for rule, _ in self.rules)

    @property
    def rule_axis(self) -> int:
        """The axis of the output that numbers samples in the eyes of the rules."""
        return self.rules[0][0].batch_axis(self.layer)

    @property
    def frozen(self) -> bool | None:
        """Whether its trained parameters are frozen at present, for a call of the layer; None where some are."""
        trainable = {p.requires_grad for p in self._trained}
        return not trainable.pop() if len(trainable) == 1 else None

    @cached_property
    def _trained(self) -> list[nn.Parameter]:
        return [self.layer.get_parameter(parameter) for parameter, key in self._key_of.items() if key]

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters, by their names among the model's."""
        return {key: self.layer.get_parameter(name) for name, key in self._key_of.items() if key}

    def key_of(self, parameter: str) -> str | None:
        """Return the name among the model's of the layer's own parameter; None where it is absent or not trained."""
        return self._key_of.get(parameter)

    @cached_property
    def _key_of(self) -> dict[str, str | None]:
        return {p: key for rule, keys in self.rules for p, key in zip(rule.parameters, keys, strict=True)}

    def score(self, a: Any, b: Tensor, probe: Direction) -> Tensor:
        """Return the dot products of the layer's gradients with `probe`, [B]."""
        scores = []
        for rule, keys in self.rules:
            q = [probe.get(key) if key else None for key in keys]
            if isinstance(q[0], Factors):
                scores.append(q[0].score(a, b, self.kernels))
            elif any(direction is not None for direction in q):
                dense = [None if direction is None else multiplied_out(direction) for direction in q]
                scores.append(rule.score(self.layer, a, b, dense, self.kernels))
        total: Tensor = sum(scores[1:], start=scores[0]) if scores else b.new_zeros(b.shape[0])
        return total


Aimed: TypeAlias = tuple[Sequence[Direction], Callable[[LayerSite, MicroBatch, Tensor, torch.dtype], None]]
"""Probes, one a validation set, and who takes scores, [probes, micro_batch.size], and what they are computed in."""


class Joint(Protocol):
    """Who takes what layers bring where the last rows of a batch are validation samples."""

    @property
    def training(self) -> MicroBatch:
        """The training rows."""

    @property
    def rows(self) -> MicroBatch:
        """All rows."""

    @property
    def sets(self) -> Sequence[Rows]:
        """The rows of each validation set."""

    def called(self, keys: Sequence[str], /) -> None:
        """Be told that a layer is run which will bring the gradients of these parameters itself."""

    def looks_away(self, site: LayerSite, b: Tensor, /) -> bool:
        """Whether a layer's gradient, that of its output being b, is asked for in a backward pass that is none."""

    def takes_factors(self, keys: Sequence[str], /) -> bool:
        """Whether the weight's part may be left in factors."""

    def bring(
        self, keys: Sequence[str], of_sets: Sequence[Sequence[Tensor | Factors]], /
    ) -> Sequence[Direction] | None:
        """Take validation gradients, by set and parameter; return the probes, if they are known and asked for now."""

    def take_scores(self, site: LayerSite, scores: Tensor, kind: torch.dtype, /) -> None:
        """Take the scores of training rows, [sets, rows], and what they are computed in."""

    def receive_training(self, term: LayerTerm, gradients: Mapping[str, Tensor], /) -> None:
        """Take a term of training rows, and the gradients that the layer has formed of them."""


@dataclass(frozen=True)
class LayerTerm:
    """One call of a layer: its input a and the gradient b of its output, batch first."""

    site: LayerSite
    micro_batch: MicroBatch
    a: Any
    b: Tensor

    @property
    def where(self) -> str:
        """The layer's name, for messages."""
        return self.site.where

    @property
    def keys(self) -> set[str]:
        """Names of the parameters concerned."""
        return self.site.keys

    @property
    def kind(self) -> torch.dtype:
        """The coarsest precision of what went into it."""
        return self.b.dtype

    @property
    def tensors(self) -> list[Tensor]:
        """What is kept in memory."""
        return [leaf for leaf in tree_flatten((self.a, self.b))[0] if isinstance(leaf, Tensor)]

    def score(self, probe: Direction) -> Tensor:
        """Return the samples' dot products with `probe`; rows that number positions, too, are added up."""
        if self.b.dtype == torch.float16:  # a probe's numbers may be too small for it
            return self.rounded(torch.float32).score(probe)
        scores = self.site.score(self.a, self.b, probe)
        return scores if scores.shape[0] == self.micro_batch.size else scores.reshape(self.micro_batch.size, -1).sum(1)

    def scores(self, probes: Sequence[Direction]) -> Tensor:
        """Return the dot products with several probes, [probes, micro_batch.size]; with many, gradients are formed."""
        if len(probes) > MANY and isinstance(self.a, Tensor) and len(self.b) == self.micro_batch.size:
            how, key, bias = find_scored_backward(self.site.layer), self.site.key_of("weight"), self.site.key_of("bias")
            if how is not None and key is not None and self.b.dtype != torch.float16:
                q_bias = None if bias is None else stacked(probes, bias)
                a = self.a.to(self.b.dtype)
                return how.gradients(self.site.layer, a, self.b, stacked(probes, key), q_bias, self.site.kernels)[2]
            formed = self.formed(FORMED)
            if isinstance(formed, FormedTerm):
                return formed.scores(probes)
        return each_scored(self, probes)

    def gradients_of_each(self) -> dict[str, Tensor]:
        """Return the gradient of each row."""
        size = self.micro_batch.size
        formed = self.formed(FORMED)
        if isinstance(formed, FormedTerm):
            return dict(formed.of_samples)
        how, key, bias = find_scored_backward(self.site.layer), self.site.key_of("weight"), self.site.key_of("bias")
        if how is None or key is None or len(self.b) != size or how.transposed is None:
            return each_formed(self)
        kind = torch.promote_types(self.b.dtype, torch.float32)
        a, b = (x.to(kind).reshape(size, -1, x.shape[-1]) for x in (self.a, self.b))
        found = {key: a.transpose(1, 2) @ b if how.transposed else b.transpose(1, 2) @ a}
        return found if bias is None else {**found, bias: b.sum(1)}

    def gradients(self, groups: Sequence[Rows]) -> list[dict[str, Tensor]]:
        """Return the gradients of groups of rows: scores are linear in the probe, and these their derivatives by it."""
        term = replace(self, site=replace(self.site, kernels="torch"))  # kernels have no derivatives
        term = term.rounded(torch.promote_types(self.b.dtype, torch.float32))
        with torch.enable_grad():
            probe = {
                key: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)).requires_grad_()
                for key, p in self.site.parameters.items()
            }
            if isinstance(self.a, Tensor):
                sums = [term.part(group).score(probe).sum() for group in groups]
            else:
                scores = term.score(probe)
                sums = [scores[group].sum() for group in groups]
        if not all(one.requires_grad for one in sums):
            raise TypeError(
                f"the rule of {self.where} is not differentiable in its probe, so that gradients of some rows cannot "
                "be had of it: write it in torch operations, without no_grad() and detach()"
            )
        wanted = list(probe.values())
        found = [torch.autograd.grad(one, wanted, retain_graph=True, allow_unused=True) for one in sums]
        return [
            {key: torch.zeros_like(q) if g is None else g for (key, q), g in zip(probe.items(), of_group, strict=True)}
            for of_group in found
        ]

    def part(self, rows: Rows | MicroBatch) -> LayerTerm:
        """Return the term of some rows; for layers of one input."""
        size = self.micro_batch.size
        where = rows.rows if isinstance(rows, MicroBatch) else rows
        own = rows if isinstance(rows, MicroBatch) else MicroBatch(0, _count(rows, size))
        a, b = (_some(x, where, size) for x in (self.a, self.b))
        return replace(self, micro_batch=own, a=a, b=b)

    def formed(self, limit: int | None = None) -> Term:
        """Return the term with its samples' gradients in the place of input and output gradient, if they are small.

        `limit` is how many numbers they may be; those of the output where None.
        """
        form = find_gradients_of_samples(self.site.layer)
        if form is None or not isinstance(self.a, Tensor) or len(self.b) != self.micro_batch.size:
            return self
        names = self.site.parameters
        size = self.micro_batch.size * sum(p.numel() for p in names.values())
        if size > (self.b.numel() if limit is None else limit):
            return self
        own = form(self.site.layer, self.a, self.b)
        if own is None:
            return self
        by_key = {key: own[name] for name in own if (key := self.site.key_of(name)) is not None and key in names}
        return FormedTerm(self.where, self.keys, self.micro_batch, self.b.dtype, by_key)

    def rounded(self, dtype: torch.dtype) -> LayerTerm:
        """Return the term with its floating-point tensors in another precision."""
        leaves, spec = tree_flatten((self.a, self.b))
        floating = [isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in leaves]
        a, b = tree_unflatten([x.to(dtype) if f else x for x, f in zip(leaves, floating, strict=True)], spec)
        return replace(self, a=a, b=b)


@dataclass(frozen=True)
class FormedTerm:
    """One call of a layer whose parameters are few: the gradients of its samples, [size, *parameter] by name."""

    where: str
    keys: set[str]
    micro_batch: MicroBatch
    kind: torch.dtype
    of_samples: Mapping[str, Tensor]

    @property
    def b(self) -> Tensor:
        """A gradient, for its device and for whether it is finite."""
        return next(iter(self.of_samples.values()))

    @property
    def tensors(self) -> list[Tensor]:
        """What is kept in memory."""
        return list(self.of_samples.values())

    def score(self, probe: Direction) -> Tensor:
        """Return the samples' dot products with `probe`."""
        given = {key: own for key, own in self.of_samples.items() if probe.get(key) is not None}
        dots = [
            own.reshape(len(own), -1) @ multiplied_out(probe[key]).to(own.dtype).flatten() for key, own in given.items()
        ]
        total: Tensor = sum(dots[1:], start=dots[0]) if dots else self.b.new_zeros(self.micro_batch.size)
        return total

    def scores(self, probes: Sequence[Direction]) -> Tensor:
        """Return the dot products with several probes, [probes, micro_batch.size]."""
        given = {key: own.reshape(len(own), -1) for key, own in self.of_samples.items() if key in probes[0]}
        dots = [stacked(probes, key).to(own.dtype).reshape(len(probes), -1) @ own.t() for key, own in given.items()]
        return sum(dots[1:], start=dots[0])

    def gradients_of_each(self) -> dict[str, Tensor]:
        """Return the gradient of each row."""
        return dict(self.of_samples)

    def gradients(self, groups: Sequence[Rows]) -> list[dict[str, Tensor]]:
        """Return the gradients of groups of rows."""
        return [{key: own[group].sum(0) for key, own in self.of_samples.items()} for group in groups]

    def part(self, rows: MicroBatch) -> FormedTerm:
        """Return the term of some rows."""
        return replace(self, micro_batch=rows, of_samples={k: own[rows.rows] for k, own in self.of_samples.items()})

    def rounded(self, dtype: torch.dtype) -> FormedTerm:
        """Return the term in another precision."""
        return replace(self, of_samples={key: own.to(dtype) for key, own in self.of_samples.items()})


def each_scored(term: Term, probes: Sequence[Direction]) -> Tensor:
    """Return the dot products of a term with one probe after the other."""
    scores = [term.score(probe) for probe in probes]
    return scores[0][None] if len(scores) == 1 else torch.stack(scores)


def each_formed(term: Term) -> dict[str, Tensor]:
    """Return the gradients of a term's rows, one after the other."""
    rows = term.gradients([slice(row, row + 1) for row in range(term.micro_batch.size)])
    return {key: torch.stack([own[key] for own in rows]) for key in rows[0]}


def _some(x: Tensor, rows: Rows, size: int) -> Tensor:
    """Return some rows of what numbers samples, or samples and positions, along its first axis."""
    return x[rows] if len(x) == size else x.unflatten(0, (size, -1))[rows].flatten(0, 1)


def _count(rows: Rows, size: int) -> int:
    return len(rows) if isinstance(rows, Tensor) else len(range(size)[rows])
