"""What must hold of every step: the gradient is the sum of what was seen of its samples.

Scores of a layer's calls add up to its gradient's dot product with the probe, by definition; anything else means that
part of the gradient was not seen, or seen twice. It is looked at layer by layer, lest a large one hide a small one, and
takes a pass over weights and gradients, on their device. Where a probe is in factors, whose product is what they spare,
gradients are compared along a fixed direction instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inrun_bench.attribution.directions import Direction, Factors, Stacked, multiplied_out
from inrun_bench.attribution.gradient_scaling import Received, Watcher
from inrun_bench.attribution.layer_terms import LayerTerm, Term
from inrun_bench.attribution.precision import norms, own_precision
from inrun_bench.attribution.scoring.first_order import dots_of_each
from inrun_bench.attribution.scoring.scores import TermSums
from inrun_bench.attribution.transfer import Numbers, at_hand, gathered

__all__ = [
    "SeenGradients",
    "expect_received",
    "expect_seen",
    "expect_sums",
    "gradient_dot",
    "warn_of_unforeseen_change",
]

OF_ROUNDING = 32  # in units of the precision: what rounding may do to a sum, relative to its terms
OF_NOTHING = 16  # in units of its square: what is left where gradient and probe are both nothing but rounding


def expect_received(numbers: Numbers, received: Received, void: Tensor | None, watcher: Watcher, number: int) -> None:
    """Have it looked at whether the optimiser steps at all, and what was done to the gradients."""

    def learn(differs: NDArray[np.float64]) -> None:
        watcher.differed = bool(differs)

    def check(uneven: NDArray[np.float64]) -> None:
        if uneven and number == 0:
            raise ValueError(
                "gradients were changed element by element between the backward pass and optimizer.step() (clipped by "
                "value?), which scores that were made in the backward pass cannot follow; pass late='keep'"
            )
        if uneven:
            watcher.by_element = True
            warn_of_unforeseen_change(number)

    if void is not None:
        numbers.expect(void, bool)
    if received.differs is not None:
        numbers.expect(received.differs, learn)
    if received.uneven is not None:
        numbers.expect(received.uneven, check)


def expect_seen(numbers: Numbers, seen: Collection[str], gradients: Mapping[str, Tensor | None], number: int) -> None:
    """Refuse a step in which a parameter has a gradient that no layer reported."""
    unseen = {name: gradient.any() for name, gradient in gradients.items() if name not in seen and gradient is not None}
    if not unseen:
        return
    unseen_names = list(unseen)

    def check(found: NDArray[np.float64]) -> None:
        for name, any_gradient in zip(unseen_names, found, strict=True):
            if any_gradient:
                raise ValueError(
                    f"step {number}: parameter {name!r} has a gradient, but nothing was seen of the layer that it "
                    "belongs to. Was its gradient there before the step (zero_grad), or is the model a compiled one "
                    "that ran before InRunShapley was made? A compiled graph shows layers with rules, and around what "
                    "else the first step has met it is broken up; what is met later is to be left uncompiled"
                )

    numbers.expect(gathered(list(unseen.values())), check)


def expect_sums(
    numbers: Numbers,
    terms: TermSums,
    directions: Sequence[Direction],
    gradients: Mapping[str, Tensor | None],
    number: int,
    *,
    but: Collection[str] = (),
    magnitudes: Mapping[str, Tensor] = MappingProxyType({}),
    unless: Tensor | None = None,
) -> None:
    """Have ValueError raised unless scores add up to the gradient's dot product with the probe, layer by layer.

    Parameters
    ----------
    numbers : Numbers
        With which the answer travels.
    terms : TermSums
        What was seen, brought to the gradients as given.
    directions : sequence of mappings
        Probes by parameter, one mapping a validation set.
    gradients : mapping of str to Tensor
        By parameter; None counts as zero.
    number : int
        The step's.
    but : collection of str
        Parameters that are left out, with all that share a term with them.
    magnitudes : mapping of str to Tensor
        What terms of weights whose probes are in factors may add up to, cancellation apart.
    unless : bool scalar Tensor, optional
        Where true, nothing is checked.
    """
    given = tuple([name for name, g in gradients.items() if g is not None])
    layout = _layout(tuple(map(frozenset, terms.keys)), tuple(gradients), given, frozenset(but))
    n_probes, n_groups = len(directions), len(layout.groups)
    received = [g for name in layout.names if (g := gradients[name]) is not None]
    if isinstance(directions, Stacked):
        stacks = [directions.tensors[name] for name in layout.names]
        of_probes: list[list[Tensor | Factors]] = []
        dots = _stacked_dots(stacks, received, n_probes)
        of_factors = torch.zeros_like(dots)
    else:
        stacks = None
        of_probes = [[probe[name] for name in layout.names] for probe in directions]
        dots, of_factors = _dots(of_probes, received, [magnitudes.get(name) for name in layout.names])
    flag = terms.sums.new_zeros(1) if unless is None else unless.double().reshape(1)
    precision = np.zeros(n_groups)
    np.maximum.at(precision, layout.of_term, terms.precision)
    split = 1 + 2 * len(layout.of_term) * n_probes

    def compared(of_terms: NDArray[np.float64], of_names: NDArray[np.float64]) -> tuple[NDArray[Any], ...]:
        got, size = (_by_group(part, layout.of_term, n_groups) for part in of_terms)
        wanted, scales, own = (_by_group(part, layout.of_name, n_groups) for part in of_names)
        eps = precision[:, None]
        share = np.sqrt(eps) / 4
        rounding = np.minimum(OF_ROUNDING * eps, share) * (size + own)
        allowed = share * scales + rounding + OF_NOTHING * eps**2 * scales.sum(0)
        with np.errstate(invalid="ignore"):
            wrong = (np.abs(got - wanted) > allowed) & np.isfinite(scales) & layout.kept[:, None]
        return got, wanted, wrong

    def check(found: NDArray[np.float64]) -> None:
        if found[0]:
            return
        of_terms, of_names = found[1:split].reshape(2, -1, n_probes), found[split:].reshape(3, -1, n_probes)
        got, wanted, wrong = compared(of_terms, of_names)
        if wrong.any():
            worst = np.unravel_index(np.argmax(np.where(wrong, np.abs(got - wanted), -1.0)), wrong.shape)
            own_names = sorted(layout.groups[worst[0]])
            more = f" and {len(own_names) - 2} more" if len(own_names) > 2 else ""
            raise ValueError(
                f"step {number}: the samples' scores add up to {got[worst]:.6g}, but the gradient's dot product with "
                f"the probe is {wanted[worst]:.6g}, in parameters {', '.join(map(repr, own_names[:2]))}{more}"
                f"{WHAT_TO_DO}"
            )

    device = terms.sums.device
    seen = [terms.sums, terms.magnitudes]
    found = None if unless is not None else at_hand([*seen, dots, of_factors])
    if found is not None:  # two passes fewer, of four: a dot product is no more than its vectors' norms
        sums, sizes, of_names, own = found
        at_least = np.stack([of_names, np.abs(of_names), own])
        if np.isfinite(at_least).all() and not compared(np.stack([sums, sizes]), at_least)[-1].any():
            return
    at_most = _at_most(of_probes, received) if stacks is None else _stacked_at_most(stacks, received, n_probes)
    together = [*seen, dots, at_most, of_factors]
    numbers.expect(torch.cat([flag.to(device), *(part.to(device).reshape(-1) for part in together)]), check)


WHAT_TO_DO = (
    ", so that part of the gradient is not the sum of its samples' contributions. Look for gradients that were there "
    "before the step (zero_grad), a second backward pass (sharpness-aware training, gradient penalties), something "
    "else that changed them in the step, or parts of the model that drew random numbers anew"
)


class SeenGradients:
    """Gradients, along a fixed direction, of weights whose probe is in factors: as they are seen, call by call.

    The gradient of a weight and a bias, applied to a vector r and 1, is ``sum_t b_t (a_t . r + 1)``: as little work as
    reading inputs and output gradients once.
    """

    def __init__(self) -> None:
        self._seen: dict[str, Tensor] = {}
        self._magnitudes: dict[str, Tensor] = {}
        self._bias: dict[str, str | None] = {}
        self._transposed: dict[str, bool] = {}
        self._precision: dict[str, float] = {}

    def add(self, term: Term, probe: Direction) -> None:
        """Add a call, if it is that of a linear map whose weight has its probe in factors."""
        key = term.site.key_of("weight") if isinstance(term, LayerTerm) else None
        factors = None if key is None else probe.get(key)
        if key is None or not isinstance(term, LayerTerm) or not isinstance(factors, Factors):
            return
        with own_precision(term.b.device):
            self._add(term, key, factors)

    def _add(self, term: LayerTerm, key: str, factors: Factors) -> None:
        a, b = (x.flatten(0, -2).to(torch.promote_types(x.dtype, torch.float32)) for x in (term.a, term.b))
        bias = term.site.key_of("bias")
        along = a @ _fixed(a.shape[1], a.dtype, a.device) + (0.0 if bias is None else 1.0)
        along = along.to(b.dtype)
        seen, magnitude = along @ b, along.norm() * b.norm()
        self._bias[key], self._transposed[key] = bias, factors.transposed
        self._seen[key] = self._seen[key] + seen if key in self._seen else seen
        self._magnitudes[key] = self._magnitudes[key] + magnitude if key in self._magnitudes else magnitude
        precision = max(torch.finfo(x.dtype).eps for x in (term.a, term.b))
        self._precision[key] = max(self._precision.get(key, 0.0), precision)

    @property
    def magnitudes(self) -> dict[str, Tensor]:
        """What the gradient of each weight is a sum of, cancellation apart."""
        return self._magnitudes

    def expect_gradients(
        self,
        numbers: Numbers,
        gradients: Mapping[str, Tensor | None],
        factor: float | Tensor,
        number: int,
        unless: Tensor | None,
    ) -> None:
        """Have ValueError raised unless the gradients, that factor apart, are those that were seen."""
        keys = [key for key in self._seen if gradients[key] is not None]
        rows = []
        for key in keys:
            seen, received, bias = self._seen[key], gradients[key], self._bias[key]
            assert received is not None
            received = received.to(seen.dtype)
            received = received.t() if self._transposed[key] else received
            with own_precision(seen.device):
                along = received @ _fixed(received.shape[1], seen.dtype, seen.device)
            bias_gradient = None if bias is None else gradients[bias]
            along = along if bias_gradient is None else along + bias_gradient
            own = factor.to(seen.device) if isinstance(factor, Tensor) else factor
            numbers_of_key = [(seen.double() * own - along).norm(), along.norm(), self._magnitudes[key] * own]
            rows.append(gathered([x.double() for x in numbers_of_key]))
        if not rows:
            return
        flag = rows[0].new_zeros(1) if unless is None else unless.double().reshape(1)
        precision = np.array([self._precision[key] for key in keys])

        def check(found: NDArray[np.float64]) -> None:
            off, size, magnitude = found[1:].reshape(len(keys), 3).T
            share = np.sqrt(precision) / 4
            wrong = off > share * size + np.minimum(OF_ROUNDING * precision, share) * np.abs(magnitude)
            if wrong.any() and not found[0]:
                key = keys[int(wrong.argmax())]
                raise ValueError(
                    f"step {number}: the gradient of {key!r} is not what its layer was seen to make{WHAT_TO_DO}"
                )

        device = rows[0].device
        numbers.expect(torch.cat([flag.to(device), *(row.to(device) for row in rows)]), check)


def gradient_dot(direction: Direction, gradients: Mapping[str, Tensor | None]) -> Tensor:
    """Return the dot product of a probe and a gradient, by parameter; None counts as zero."""
    dots = [_dot(multiplied_out(direction[name]), g) for name, g in gradients.items() if g is not None]
    return gathered(dots).double().sum()


def warn_of_unforeseen_change(number: int) -> None:
    """Say that a step's scores are an approximation."""
    warnings.warn(
        f"step {number}: gradients were changed between the backward pass and optimizer.step() in a way that could not "
        "be foreseen; this step's scores are scaled by one number, later ones are exact",
        RuntimeWarning,
        stacklevel=2,
    )


def _dot(q: Tensor, g: Tensor) -> Tensor:
    g = g if g.dtype == q.dtype else g.to(q.dtype)
    return torch.dot(q, g) if q.dim() == 1 else torch.dot(q.reshape(-1), g.reshape(-1))


def _dots(
    probes: Sequence[Sequence[Tensor | Factors]], gradients: Sequence[Tensor], magnitudes: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Return dot products, and what rounding is relative to for probes in factors, float64 [gradients, probes]."""
    if not gradients:
        none = torch.zeros(0, len(probes), dtype=torch.float64)
        return none, none
    dots, terms = [], []
    for probe in probes:
        of_probe = gathered([_dot(multiplied_out(q), g) for q, g in zip(probe, gradients, strict=True)]).double()
        none = of_probe.new_zeros(())
        of_terms = [
            q.magnitude() * magnitude if isinstance(q, Factors) and magnitude is not None else none
            for q, magnitude in zip(probe, magnitudes, strict=True)
        ]
        dots.append(of_probe)
        terms.append(
            torch.zeros_like(of_probe) if all(term is none for term in of_terms) else gathered(of_terms).double()
        )
    return torch.stack(dots, 1), torch.stack(terms, 1)


def _stacked_dots(stacks: Sequence[Tensor], gradients: Sequence[Tensor], n_probes: int) -> Tensor:
    """Return dot products with probes that are held together, float64 [gradients, probes]."""
    dots = [dots_of_each(q, g) for q, g in zip(stacks, gradients, strict=True)]
    return gathered(dots) if dots else torch.zeros(0, n_probes, dtype=torch.float64)


def _stacked_at_most(stacks: Sequence[Tensor], gradients: Sequence[Tensor], n_probes: int) -> Tensor:
    sizes = [
        q.reshape(len(q), -1).norm(dim=1).double() * g.norm().double() for q, g in zip(stacks, gradients, strict=True)
    ]
    return gathered(sizes) if sizes else torch.zeros(0, n_probes, dtype=torch.float64)


def _at_most(probes: Sequence[Sequence[Tensor | Factors]], gradients: Sequence[Tensor]) -> Tensor:
    """Return what dot products could be at most, by their vectors' norms, float64 [gradients, probes]."""
    if not gradients:
        return torch.zeros(0, len(probes), dtype=torch.float64)
    sizes = norms(gradients).double()
    return torch.stack([norms([multiplied_out(q) for q in probe]).double() * sizes for probe in probes], 1)


@dataclass(frozen=True)
class _Layout:
    """What is compared with what: parameters that share a term are one group.

    Attributes
    ----------
    groups : list of set of str
        All parameters, group by group.
    names : list of str
        Those that are compared.
    of_term, of_name : int arrays
        The group of each term, and of each of `names`.
    kept : bool array
        Which groups are compared.
    """

    groups: list[set[str]]
    names: list[str]
    of_term: NDArray[np.intp]
    of_name: NDArray[np.intp]
    kept: NDArray[np.bool_]


@lru_cache(maxsize=64)
def _layout(
    terms: tuple[frozenset[str], ...], names: tuple[str, ...], given: tuple[str, ...], but: frozenset[str]
) -> _Layout:
    """Lay out a check of terms by the parameters concerned; `given` have a gradient, `but` are left out."""
    joined: dict[str, set[str]] = {name: {name} for name in names}
    for keys in set(terms):
        group = set().union(*(joined[key] for key in keys))
        joined |= dict.fromkeys(group, group)
    groups = list({id(group): group for group in joined.values()}.values())
    number = {name: position for position, group in enumerate(groups) for name in group}
    left_out = {number[name] for name in but}
    compared = [name for name in given if number[name] not in left_out]
    return _Layout(
        groups,
        compared,
        np.array([number[next(iter(keys))] for keys in terms], dtype=np.intp),
        np.array([number[name] for name in compared], dtype=np.intp),
        np.array([position not in left_out for position in range(len(groups))], dtype=bool),
    )


def _by_group(values: NDArray[np.float64], group: NDArray[np.intp], n_groups: int) -> NDArray[np.float64]:
    """Return sums of rows by group, [n_groups, columns]."""
    sums = np.empty((n_groups, values.shape[1]))
    for column in range(values.shape[1]):
        sums[:, column] = np.bincount(group, values[:, column], n_groups)
    return sums


@lru_cache(maxsize=64)
def _fixed(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a direction that no gradient has reason to be orthogonal to."""
    return torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=dtype).to(device)
