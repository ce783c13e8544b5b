"""What routes share whose probe is known only when the gradient is, or after the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inrun_bench.attribution.directions import Direction, Stacked
from inrun_bench.attribution.probes import Probe, Step, scaled
from inrun_bench.attribution.step import StepBegun, StepReceived, StepTaken

__all__ = ["LateProbes", "late_probes"]


@dataclass(frozen=True)
class LateProbes:
    """Probes of a step that has been taken, one mapping of parameters' names a validation set.

    Attributes
    ----------
    directions : list of lists of Tensor
        q / D, by parameter.
    received : list of mappings
        For the gradient that the optimiser received.
    accumulated : list of mappings
        For the one that was accumulated, but for a factor that is common to all; in the dtypes of the parameters.
    """

    directions: list[list[Tensor]]
    received: Sequence[Direction]
    accumulated: Sequence[Direction]


def late_probes(
    begun: StepBegun,
    received: StepReceived,
    probe: Probe,
    parameters: Mapping[str, nn.Parameter],
    taken: StepTaken | None = None,
    known: Sequence[list[Tensor]] = (),
) -> LateProbes:
    """Return the probes of a step that has been taken, or of one that is about to be, for those that ask no more.

    `known` are their directions, q / D, by validation set, where they have been computed before.
    """
    update, ratio = received.update, received.changes.ratio
    before, after = (begun.weights, None) if taken is None else (taken.before, taken.after)
    gradient = [
        torch.zeros_like(p) if g is None else g for p, g in zip(parameters.values(), received.gradients, strict=True)
    ]
    if begun.queries is not None:
        found = begun.queries.gradients().tensors
        of_queries = {name: found[name] * slope for name, slope in zip(parameters, update.slope, strict=True)}
        shares: Sequence[float | Tensor] = [1.0] * len(of_queries) if ratio is None else ratio
        given = zip(of_queries.items(), shares, parameters.values(), strict=True)
        own = Stacked({name: (x * share).to(p.dtype) for (name, x), share, p in given})
        return LateProbes([], Stacked(of_queries), own)
    directions, for_received, accumulated = [], [], []
    for number, loss in enumerate(begun.losses.values()):
        direction = known[number] if known else probe.direction(Step(loss, update, before, gradient, after))
        q = scaled(direction, update.slope)
        directions.append(direction)
        for_received.append(dict(zip(parameters, q, strict=True)))
        q = q if ratio is None else scaled(q, ratio)
        accumulated.append({name: x.to(p.dtype) for (name, p), x in zip(parameters.items(), q, strict=True)})
    return LateProbes(directions, for_received, accumulated)
