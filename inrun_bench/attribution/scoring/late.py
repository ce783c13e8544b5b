"""What routes share whose probe is known only after the step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inrun_bench.attribution.probes import Probe, Step, scaled
from inrun_bench.attribution.step import StepBegun, StepTaken

__all__ = ["LateProbes", "late_probes"]


@dataclass(frozen=True)
class LateProbes:
    """Probes of a step that has been taken, one mapping of parameters' names a validation set.

    Attributes
    ----------
    received : list of mappings
        For the gradient that the optimiser received.
    accumulated : list of mappings
        For the one that was accumulated, but for a factor that is common to all; in the dtypes of the parameters.
    """

    received: list[dict[str, Tensor]]
    accumulated: list[dict[str, Tensor]]


def late_probes(begun: StepBegun, taken: StepTaken, probe: Probe, parameters: Mapping[str, nn.Parameter]) -> LateProbes:
    """Return the probes of a step that has been taken."""
    update, ratio = taken.received.update, taken.received.changes.ratio
    gradient = [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(parameters.values(), taken.received.gradients, strict=True)
    ]
    received, accumulated = [], []
    for loss in begun.losses.values():
        step = Step(loss, update, taken.before, gradient, taken.after)
        q = scaled(probe.direction(step), update.slope)
        received.append(dict(zip(parameters, q, strict=True)))
        q = q if ratio is None else scaled(q, ratio)
        accumulated.append({name: x.to(p.dtype) for (name, p), x in zip(parameters.items(), q, strict=True)})
    return LateProbes(received, accumulated)
