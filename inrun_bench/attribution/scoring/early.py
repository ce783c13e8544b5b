"""The probe is known before the backward pass, which scores samples on the way: exact, and no tensor is kept for it.

So it is for a first-order probe and an update whose slope is known in time (SGD).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from inrun_bench.attribution.directions import Direction, Factors, Stacked
from inrun_bench.attribution.layer_terms import Aimed, LayerSite, MicroBatch, Term
from inrun_bench.attribution.probes import Step, scaled
from inrun_bench.attribution.scoring.as_received import as_received
from inrun_bench.attribution.scoring.checks import SeenGradients
from inrun_bench.attribution.scoring.first_order import first_order_empty
from inrun_bench.attribution.scoring.scores import Scores
from inrun_bench.attribution.step import StepBegun, StepReceived, StepTaken
from inrun_bench.attribution.transfer import gathered
from inrun_bench.attribution.updates import Update

__all__ = ["EarlyRoute", "KnownProbes", "joint_probes", "known_probes", "query_probes"]


@dataclass(frozen=True)
class KnownProbes:
    """Probes that are known before the backward pass.

    Attributes
    ----------
    directions : sequence of mappings
        One a validation set.
    factor : float
        What scores are to be multiplied with: the slope, where it is one for all parameters, and 1 where directions
        hold it.
    slopes : list of float or Tensor
        Of the update, by parameter, as they were when the step began.
    scaling : mapping of str to callable
        What makes the direction of a parameter of v, for those that become known in the backward pass; v itself where
        there is none.
    """

    directions: Sequence[Direction]
    factor: float
    slopes: list[float | Tensor]
    scaling: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)


def known_probes(
    begun: StepBegun,
    update: Update,
    names: Sequence[str],
    direction: Callable[[Step], Sequence[Tensor | Factors]],
) -> KnownProbes:
    """Return the probes of a step whose update is read before its gradient is there.

    Parameters
    ----------
    begun : StepBegun
        The step.
    update : Update
        A linear one.
    names : sequence of str
        The parameters'.
    direction : callable
        Given what a probe may know, returns q / D, one direction a parameter.
    """
    factor = _common(update)
    directions: list[Direction] = []
    for loss in begun.losses.values():
        q = direction(Step(loss, update, begun.weights))
        q = q if factor is not None else scaled(q, update.slope)
        directions.append(dict(zip(names, q, strict=True)))
    return KnownProbes(directions, 1.0 if factor is None else factor, update.slope)


def query_probes(begun: StepBegun, update: Update, names: Sequence[str]) -> KnownProbes:
    """Return the probes of such a step for the queries of its validation, all of them together."""
    assert begun.queries is not None
    factor, gradients = _common(update), begun.queries.gradients().tensors
    if factor is None:
        slopes = zip(names, update.slope, strict=True)
        gradients = {name: gradients[name] * slope for name, slope in slopes}
    return KnownProbes(Stacked(gradients), 1.0 if factor is None else factor, update.slope)


def joint_probes(begun: StepBegun, update: Update, names: Sequence[str]) -> KnownProbes:
    """Return the probes of such a step whose directions are to come, parameter by parameter, as its rows bring them."""
    factor = _common(update)
    scaling: dict[str, Callable[[Tensor], Tensor]] = {}
    if factor is None:
        scaling = {name: partial(_times, slope) for name, slope in zip(names, update.slope, strict=True)}
    return KnownProbes([{} for _ in begun.losses], 1.0 if factor is None else factor, update.slope, scaling)


def _times(slope: float | Tensor, v: Tensor) -> Tensor:
    return v * slope


def _common(update: Update) -> float | None:
    """Return the slope, where it is one number for all parameters."""
    numbers = {slope for slope in update.slope if isinstance(slope, float)}
    return numbers.pop() if len(numbers) == 1 and not any(isinstance(slope, Tensor) for slope in update.slope) else None


class EarlyRoute:
    """Scores terms as they come.

    Parameters
    ----------
    probes : KnownProbes
        What they are scored with.
    begun : StepBegun
        The step.
    """

    late = by_element = False
    samples_slopes = False
    sees_layers = True
    slope_errors: Tensor | None = None
    empty: Tensor | None = None

    def __init__(self, probes: KnownProbes, begun: StepBegun) -> None:
        self._probes = probes
        self._scores = Scores(len(begun.losses), begun.device, begun.scored)
        self._seen = SeenGradients()
        self._total: Tensor | None = None

    @property
    def aimed(self) -> Aimed:
        """The probes, for layers that score samples in their own backward pass, and who takes what they bring."""
        return self._probes.directions, self._scores.add_scores

    @property
    def keys(self) -> set[str]:
        """Parameters of which something has been seen."""
        return self._scores.keys

    @property
    def micro_batches(self) -> set[MicroBatch]:
        """Those of which something has been seen."""
        return self._scores.micro_batches

    @property
    def directions(self) -> Sequence[Direction]:
        """The probes, as far as they are known."""
        return self._probes.directions

    @property
    def scales_alike(self) -> bool:
        """Whether the slope is one number for all parameters."""
        return not self._probes.scaling

    def aim_at(self, name: str, gradients: Sequence[Any] | Tensor) -> None:
        """Learn of one parameter what v is, by validation set."""
        make = self._probes.scaling.get(name)
        if isinstance(self._probes.directions, Stacked):
            assert isinstance(gradients, Tensor)
            assert isinstance(self._probes.directions.tensors, dict)
            self._probes.directions.tensors[name] = gradients if make is None else make(gradients)
            return
        for direction, v in zip(self._probes.directions, gradients, strict=True):
            assert isinstance(direction, dict)
            direction[name] = v if make is None else make(v)

    def order(self, names: Sequence[str]) -> None:
        """Bring directions that became known one by one into the order of the parameters."""
        for direction in self._probes.directions:
            assert isinstance(direction, dict)
            ordered = {name: direction[name] for name in names}
            direction.clear()
            direction.update(ordered)

    def take_scores(self, site: LayerSite, micro_batch: MicroBatch, scores: Tensor, kind: torch.dtype) -> None:
        """Take scores that a layer made in its own backward pass, computed in `kind`."""
        self._scores.add_scores(site, micro_batch, scores, kind)

    def receive(self, term: Term) -> None:
        """Score a term."""
        self._scores.add(term, self._probes.directions)
        if not isinstance(self._probes.directions, Stacked):
            self._seen.add(term, self._probes.directions[0])

    def before_step(self, begun: StepBegun, received: StepReceived) -> None:
        """Add terms up, while gradients are there to be compared with."""
        directions, factor = self._probes.directions, self._factor(begun, received)
        kept = begun.samples.kept
        total, terms = self._scores.total(begun.samples.rows, kept)
        gradients = dict(zip(directions[0], received.gradients, strict=True))
        if received.changes.known and kept is None:
            own = received.factor(total.device)
            self._seen.expect_gradients(begun.checks, gradients, own, begun.number, received.changes.uneven)
        looked_at = begun.waited_for or kept is not None
        factored = [name for name, q in directions[0].items() if isinstance(q, Factors) and not looked_at]
        total = as_received(
            begun,
            received,
            self._scores,
            total,
            terms,
            directions,
            but=factored,
            magnitudes=self._seen.magnitudes if kept is None else {},
        )
        self._total = total * (factor.to(total.device) if isinstance(factor, Tensor) else factor)
        if begun.joint is not None:
            self._total = self._total / begun.joint.scale.to(total.device)
        if begun.joint is not None or begun.queries is not None:
            self.empty = first_order_empty(begun, received)

    def scores_so_far(self, begun: StepBegun, _received: Callable[[], StepReceived]) -> Tensor:
        """Return what terms add up to by now, with the slopes as they were when the step began."""
        total = self._scores.total(begun.samples.rows)[0] * self._probes.factor
        return total if begun.joint is None else total / begun.joint.scale.to(total.device)

    def scores(self, _begun: StepBegun, _taken: StepTaken) -> Tensor:
        """Return what was added up."""
        assert self._total is not None
        return self._total

    def finite(self) -> list[Tensor]:
        """Return of each term whether its scores are finite."""
        return self._scores.finite()

    def _factor(self, begun: StepBegun, received: StepReceived) -> float | Tensor:
        """Return what brings scores to the present learning rates, which may all have been changed alike."""

        def refuse(differ: Any) -> None:
            if differ:
                raise RuntimeError(
                    f"step {begun.number}: learning rates of some parameters were changed inside of the step, after "
                    "their scores had been made; change them between steps"
                )

        moved = [gradient is not None for gradient in received.gradients]
        old, new = (list(compress(slopes, moved)) for slopes in (self._probes.slopes, received.update.slope))
        if all(isinstance(slope, float) for slope in new) and old == new:
            return self._probes.factor
        before, after = (
            gathered([torch.as_tensor(slope, dtype=torch.float64, device=begun.device) for slope in slopes])
            for slopes in (old, new)
        )
        ratio = torch.where(before == after, 1.0, after / before)
        begun.checks.expect(~torch.isclose(ratio, ratio[0], rtol=1e-9, atol=0.0).all(), refuse)
        return self._probes.factor * ratio[0]
