"""From what a step's backward pass brought to the samples' scores."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from inrun_bench.attribution.late import ROUNDED
from inrun_bench.attribution.probes import Probe, Step, scaled
from inrun_bench.attribution.rules.factors import multiplied_out
from inrun_bench.attribution.scores import Scores, check_sum, gradient_dot
from inrun_bench.attribution.step import OpenStep
from inrun_bench.attribution.validation import moved_to

__all__ = ["check_seen", "early_scores", "late_scores"]


def check_seen(opened: OpenStep, names: Sequence[str]) -> None:
    """Refuse a step in which a parameter has a gradient that no layer reported."""
    for name, gradient in zip(names, opened.gradients, strict=True):
        if name not in opened.scores.keys and gradient is not None and bool(gradient.any()):
            raise ValueError(
                f"step {opened.number}: parameter {name!r} has a gradient, but nothing was seen of the layer that it "
                "belongs to. Was its gradient there before the step (zero_grad), or is the model a compiled one that "
                "ran before InRunShapley was made?"
            )


def early_scores(opened: OpenStep) -> Tensor:
    """Return the scores, float64 [validation sets, batch], of a probe that was known in the backward pass.

    They are brought to the gradient that the optimiser receives, which must be the accumulated one times a number.
    """
    assert opened.received is not None
    assert opened.known is not None
    total = opened.scores.total(len(opened.index))
    opened.scores.check_finite(total, opened.index, opened.number)
    ratio = opened.received.common
    exact = ratio is not None and opened.received.known
    if ratio is None and opened.number == 0:
        raise ValueError(
            "gradients were changed element by element between the backward pass and optimizer.step() (clipped by "
            "value?), which scores that were made in the backward pass cannot follow; pass late='keep'"
        )
    if not exact or opened.checked:
        directions = [[multiplied_out(q) for q in known.values()] for known in opened.known]
        if not exact:
            ratio = gradient_dot(directions[0], opened.gradients) / float(total[0].sum()) / opened.unscaled
            _warn_of_unforeseen_change(opened.number)
    assert ratio is not None
    total *= ratio * opened.unscaled
    if exact and opened.checked:
        for row, direction in zip(total, directions, strict=True):
            check_sum(float(row.sum()), direction, opened.gradients, opened.scores.precision, opened.number)
    return total * opened.factor


def late_scores(opened: OpenStep, probe: Probe, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Tensor:
    """Return the scores, float64 [validation sets, batch], of a probe that is known only after the step."""
    assert opened.update is not None
    assert opened.received is not None
    gradient = [
        torch.zeros_like(p) if g is None else g for p, g in zip(parameters.values(), opened.gradients, strict=True)
    ]
    steps = [Step(loss, opened.update, opened.before, gradient, opened.after) for loss in opened.losses.values()]
    directions = [scaled(probe.direction(step), opened.update.slope) for step in steps]
    common = opened.received.common  # kept out of the probe: a loss scale would drown it in half precision
    given = directions
    if common is None:
        common, ratios = 1.0, [0.0 if ratio is None else ratio for ratio in opened.received.ratio]
        given = [scaled(direction, ratios) for direction in directions]
    probes = [
        {name: q.to(p.dtype) for (name, p), q in zip(parameters.items(), direction, strict=True)} for direction in given
    ]
    if opened.way == "jvp":
        total = _differentiated_losses(opened, probes, model)
    else:
        total = _kept_scores(opened, probes, list(parameters.values()))
    total *= common * opened.unscaled
    opened.scores.check_finite(total, opened.index, opened.number)
    if not opened.received.known:
        expected = torch.tensor([gradient_dot(direction, gradient) for direction in directions], dtype=torch.float64)
        total *= (expected / total.sum(1))[:, None]
        _warn_of_unforeseen_change(opened.number)
    elif opened.checked:
        for row, direction in zip(total, directions, strict=True):
            check_sum(float(row.sum()), direction, gradient, opened.scores.precision, opened.number)
    return total


def _kept_scores(opened: OpenStep, probes: list[dict[str, Tensor]], parameters: Sequence[nn.Parameter]) -> Tensor:
    size = len(opened.index)
    known = torch.zeros(len(probes), size, dtype=torch.float64)
    if opened.known is not None:  # what the backward pass has scored need not be scored again
        known = opened.factor * opened.scores.total(size)
        probes = [
            {name: q - opened.factor * multiplied_out(done[name]) for name, q in probe.items()}
            for probe, done in zip(probes, opened.known, strict=True)
        ]
    rest = Scores(len(probes))
    rest.precision = max(map(_rounding, parameters)) if opened.way == "split" else rest.precision
    with moved_to(parameters, opened.before), torch.no_grad():  # rules may read weights
        while opened.kept:
            rest.add(opened.kept.pop(0), probes)
    opened.scores = rest
    return known + rest.total(size)


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
        if losses.shape != (len(opened.index),):
            raise ValueError(
                f"losses must return one loss a sample of the step, {len(opened.index)} in all, "
                f"got a tensor of shape {list(losses.shape)}"
            )
        opened.scores.precision = max(opened.scores.precision, torch.finfo(losses.dtype).eps)
        rows.append(derivatives.detach().double().cpu())
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
