"""From what a step's backward pass brought to the samples' scores."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from inrun_bench.attribution.directions import Factors, multiplied_out
from inrun_bench.attribution.gradient_scaling import Watcher
from inrun_bench.attribution.probes import Probe, Step, scaled
from inrun_bench.attribution.scoring.route import ROUNDED
from inrun_bench.attribution.scoring.scores import Scores, expect_sum, gradient_dot
from inrun_bench.attribution.step import OpenStep
from inrun_bench.attribution.transfer import gathered
from inrun_bench.attribution.validation import moved_to

FACTORS_CHECKED_EVERY = 100
"""Steps: to check the sum of scores that were made from factors takes the product which they spare."""

__all__ = ["early_scores", "expect_received", "expect_seen", "late_scores"]


def expect_received(opened: OpenStep, watcher: Watcher) -> None:
    """Have it looked at whether the optimiser steps at all, and what was done to the gradients."""
    received, number = opened.received, opened.number
    assert received is not None

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
            _warn_of_unforeseen_change(number)

    if opened.void is not None:
        opened.checks.expect(opened.void, bool)
    if received.differs is not None:
        opened.checks.expect(received.differs, learn)
    if received.uneven is not None:
        opened.checks.expect(received.uneven, check)


def expect_seen(opened: OpenStep, names: Sequence[str]) -> None:
    """Refuse a step in which a parameter has a gradient that no layer reported."""
    unseen = {
        name: gradient.any()
        for name, gradient in zip(names, opened.gradients, strict=True)
        if name not in opened.scores.keys and gradient is not None
    }
    if not unseen:
        return
    number, unseen_names = opened.number, list(unseen)

    def check(found: NDArray[np.float64]) -> None:
        for name, any_gradient in zip(unseen_names, found, strict=True):
            if any_gradient:
                raise ValueError(
                    f"step {number}: parameter {name!r} has a gradient, but nothing was seen of the layer that it "
                    "belongs to. Was its gradient there before the step (zero_grad), or is the model a compiled one "
                    "that ran before InRunShapley was made?"
                )

    opened.checks.expect(gathered(list(unseen.values())), check)


def early_scores(opened: OpenStep) -> Tensor:
    """Return the scores, float64 [validation sets, batch], of a probe that was known in the backward pass.

    They are brought to the gradient that the optimiser receives, which must be the accumulated one times a number.
    """
    assert opened.received is not None
    assert opened.known is not None
    total = opened.scores.total(opened.size)
    opened.scores.expect_finite(opened.checks, total, opened.samples.of_row, opened.number)
    total = _times(total, opened.received.factor, opened.unscaled)
    if not opened.received.known:
        directions = [[multiplied_out(q) for q in known.values()] for known in opened.known]
        return _made_to_sum(opened, total, directions, opened.gradients) * opened.factor
    left_out: set[str] = set()
    if not opened.at_once and opened.number % FACTORS_CHECKED_EVERY:
        left_out = opened.scores.entangled({name for name, q in opened.known[0].items() if isinstance(q, Factors)})
    checked = opened.scores.total(opened.size, without=left_out) if left_out else total
    if left_out:
        checked = _times(checked, opened.received.factor, opened.unscaled)
    names = [name for name in opened.known[0] if name not in left_out]
    gradients = [g for name, g in zip(opened.known[0], opened.gradients, strict=True) if name not in left_out]
    _expect_sums(
        opened, checked, [[multiplied_out(known[name]) for name in names] for known in opened.known], gradients
    )
    return _times(total, opened.factor)


def late_scores(opened: OpenStep, probe: Probe, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Tensor:
    """Return the scores, float64 [validation sets, batch], of a probe that is known only after the step."""
    assert opened.update is not None
    assert opened.received is not None
    gradient = [
        torch.zeros_like(p) if g is None else g for p, g in zip(parameters.values(), opened.gradients, strict=True)
    ]
    steps = [Step(loss, opened.update, opened.before, gradient, opened.after) for loss in opened.losses.values()]
    directions = given = [scaled(probe.direction(step), opened.update.slope) for step in steps]
    if opened.received.ratio is not None:
        given = [scaled(direction, opened.received.ratio) for direction in directions]
    probes = [
        {name: q.to(p.dtype) for (name, p), q in zip(parameters.items(), direction, strict=True)} for direction in given
    ]
    if opened.way == "jvp":
        total = _differentiated_losses(opened, probes, model)
    else:
        total = _kept_scores(opened, probes, list(parameters.values()))
    total = _times(total, opened.received.factor, opened.unscaled)
    opened.scores.expect_finite(opened.checks, total, opened.samples.of_row, opened.number)
    if not opened.received.known:
        return _made_to_sum(opened, total, directions, gradient)
    _expect_sums(opened, total, directions, gradient)
    return total


def _times(total: Tensor, *factors: float | Tensor) -> Tensor:
    for factor in factors:
        total = total * (factor.to(total.device) if isinstance(factor, Tensor) else factor)
    return total


def _made_to_sum(
    opened: OpenStep, total: Tensor, directions: Sequence[Sequence[Tensor]], gradients: Sequence[Tensor | None]
) -> Tensor:
    """Make scores add up to the gradient's dot product with the probe, after a change that nobody could foresee."""
    _warn_of_unforeseen_change(opened.number)
    expected = gathered([gradient_dot(direction, gradients) for direction in directions]).to(total.device)
    return total * (expected / total.sum(1))[:, None]


def _expect_sums(
    opened: OpenStep, total: Tensor, directions: Sequence[Sequence[Tensor]], gradients: Sequence[Tensor | None]
) -> None:
    """Have it checked that scores add up to the gradient's dot product with the probe."""
    assert opened.received is not None
    for row, direction in zip(total, directions, strict=True):
        precision = opened.scores.precision
        expect_sum(opened.checks, row, direction, gradients, precision, opened.number, unless=opened.received.uneven)


def _kept_scores(opened: OpenStep, probes: list[dict[str, Tensor]], parameters: Sequence[nn.Parameter]) -> Tensor:
    known = None
    if opened.known is not None:  # what the backward pass has scored need not be scored again
        known = opened.factor * opened.scores.total(opened.size)
        probes = [
            {name: q - opened.factor * multiplied_out(done[name]) for name, q in probe.items()}
            for probe, done in zip(probes, opened.known, strict=True)
        ]
    rest = Scores(len(probes), parameters[0].device)
    rest.precision = max(map(_rounding, parameters)) if opened.way == "split" else rest.precision
    with moved_to(parameters, opened.before), torch.no_grad():  # rules may read weights
        while opened.kept:
            rest.add(opened.kept.pop(0), probes)
    opened.scores = rest
    return rest.total(opened.size) if known is None else known + rest.total(opened.size)


def _differentiated_losses(opened: OpenStep, probes: list[dict[str, Tensor]], model: nn.Module) -> Tensor:
    """Return the derivatives of the samples' losses at w in the probes' directions."""
    assert opened.per_sample is not None
    closure = _Closure(model, opened.per_sample)
    rows = []
    for probe in probes:
        weights = {f"model.{name}": w for name, w in zip(probe, opened.before, strict=True)}
        along = {f"model.{name}": q for name, q in probe.items()}
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward mode
            losses, derivatives, *_ = torch.func.jvp(
                lambda w: torch.func.functional_call(closure, w, ()), (weights,), (along,)
            )
        if losses.shape != (opened.size,):
            raise ValueError(
                f"losses must return one loss a sample of the step, {opened.size} in all, "
                f"got a tensor of shape {list(losses.shape)}"
            )
        opened.scores.precision = max(opened.scores.precision, torch.finfo(losses.dtype).eps)
        rows.append(derivatives.detach().double())
    return torch.stack(rows)


class _Closure(nn.Module):
    """A closure over a model as a module, so that ``functional_call`` can put other weights into the model."""

    def __init__(self, model: nn.Module, closure: Callable[[], Tensor]) -> None:
        super().__init__()
        self.model, self._closure = model, closure

    def forward(self) -> Tensor:
        """Call the closure."""
        return self._closure()


def _rounding(parameter: Tensor) -> float:
    return torch.finfo(ROUNDED.get(parameter.dtype, parameter.dtype)).eps


def _warn_of_unforeseen_change(number: int) -> None:
    warnings.warn(
        f"step {number}: gradients were changed between the backward pass and optimizer.step() in a way that could not "
        "be foreseen; this step's scores are scaled by one number, later ones are exact",
        RuntimeWarning,
        stacklevel=2,
    )
