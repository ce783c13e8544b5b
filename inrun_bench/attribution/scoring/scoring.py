"""From what a step's backward pass brought to the samples' scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from inrun_bench.attribution.directions import Direction, Factors, multiplied_out
from inrun_bench.attribution.probes import Probe, Step, scaled
from inrun_bench.attribution.scoring.checks import expect_sums, gradient_dot, warn_of_unforeseen_change
from inrun_bench.attribution.scoring.route import ROUNDED
from inrun_bench.attribution.scoring.scores import Scores, TermSums
from inrun_bench.attribution.step import OpenStep
from inrun_bench.attribution.transfer import gathered
from inrun_bench.attribution.validation import moved_to

__all__ = ["early_scores", "late_scores"]


def early_scores(opened: OpenStep) -> Tensor:
    """Return the scores, float64 [validation sets, batch], of a probe that was known in the backward pass.

    They are brought to the gradient that the optimiser receives, which must be the accumulated one times a number.
    """
    assert opened.received is not None
    assert opened.known is not None
    total, terms = opened.scores.total(opened.size)
    opened.scores.expect_finite(opened.checks, total, opened.samples.of_row, opened.number)
    names = list(opened.known[0])
    factor = _product(opened.received.factor, opened.unscaled, device=total.device)
    total = total * factor
    if not opened.received.known:
        directions = [[multiplied_out(q) for q in known.values()] for known in opened.known]
        return _made_to_sum(opened, total, directions, opened.gradients) * opened.factor
    gradients = dict(zip(names, opened.gradients, strict=True))
    uneven = opened.received.uneven
    opened.seen.expect_gradients(opened.checks, gradients, factor, opened.number, uneven)
    factored = [] if opened.at_once else [name for name, q in opened.known[0].items() if isinstance(q, Factors)]
    seen = {name: magnitude * factor.abs() for name, magnitude in opened.seen.magnitudes.items()}
    _expect_sums(opened, terms, factor, opened.known, gradients, but=factored, magnitudes=seen)
    return total * _product(opened.factor, device=total.device)


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
        total, terms = _differentiated_losses(opened, probes, model)
    else:
        total, terms = _kept_scores(opened, probes, list(parameters.values()))
    factor = _product(opened.received.factor, opened.unscaled, device=total.device)
    total = total * factor
    opened.scores.expect_finite(opened.checks, total, opened.samples.of_row, opened.number)
    if not opened.received.known:
        return _made_to_sum(opened, total, directions, gradient)
    names = list(parameters)
    by_name = [dict(zip(names, direction, strict=True)) for direction in directions]
    _expect_sums(opened, terms, factor, by_name, dict(zip(names, gradient, strict=True)))
    return total


def _product(*factors: float | Tensor, device: torch.device) -> Tensor:
    product = torch.ones((), dtype=torch.float64, device=device)
    for factor in factors:
        product = product * (factor.to(device) if isinstance(factor, Tensor) else factor)
    return product


def _made_to_sum(
    opened: OpenStep, total: Tensor, directions: Sequence[Sequence[Tensor]], gradients: Sequence[Tensor | None]
) -> Tensor:
    """Make scores add up to the gradient's dot product with the probe, after a change that nobody could foresee."""
    warn_of_unforeseen_change(opened.number)
    expected = gathered([gradient_dot(direction, gradients) for direction in directions]).to(total.device)
    return total * (expected / total.sum(1))[:, None]


def _expect_sums(
    opened: OpenStep,
    terms: TermSums,
    factor: Tensor,
    directions: Sequence[Direction],
    gradients: Mapping[str, Tensor | None],
    **options: Any,
) -> None:
    assert opened.received is not None
    terms = replace(terms, sums=terms.sums * factor, magnitudes=terms.magnitudes * factor.abs())
    expect_sums(opened.checks, terms, directions, gradients, opened.number, unless=opened.received.uneven, **options)


def _kept_scores(
    opened: OpenStep, probes: list[dict[str, Tensor]], parameters: Sequence[nn.Parameter]
) -> tuple[Tensor, TermSums]:
    known = None
    if opened.known is not None:  # what the backward pass has scored need not be scored again
        known = opened.scores.total(opened.size)
        probes = [
            {name: q - opened.factor * multiplied_out(done[name]) for name, q in probe.items()}
            for probe, done in zip(probes, opened.known, strict=True)
        ]
    device = parameters[0].device
    rounding = [max(map(_rounding, parameters))] if opened.way == "split" else []
    rest = Scores(len(probes), device, *rounding)
    with moved_to(parameters, opened.before), torch.no_grad():  # rules may read weights
        while opened.kept:
            rest.add(opened.kept.pop(0), probes)
    opened.scores = rest
    total, terms = rest.total(opened.size)
    if known is None:
        return total, terms
    factor = _product(opened.factor, device=device)
    return factor * known[0] + total, known[1].joined(terms, factor)


def _differentiated_losses(
    opened: OpenStep, probes: list[dict[str, Tensor]], model: nn.Module
) -> tuple[Tensor, TermSums]:
    """Return the derivatives of the samples' losses at w in the probes' directions, and what they add up to."""
    assert opened.per_sample is not None
    closure = _Closure(model, opened.per_sample)
    rows, precision = [], 0.0
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
        precision = max(precision, torch.finfo(losses.dtype).eps)
        rows.append(derivatives.detach().double())
    total = torch.stack(rows)
    return total, TermSums([set(probes[0])], [precision], total.sum(1)[None], total.abs().sum(1)[None])


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
