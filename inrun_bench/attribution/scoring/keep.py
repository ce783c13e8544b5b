"""Terms are kept until the probe is known, when the gradient is or after the step: exact, at the price of memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from inrun_bench.attribution.directions import Direction
from inrun_bench.attribution.layer_terms import MicroBatch, Term
from inrun_bench.attribution.probes import Probe
from inrun_bench.attribution.scoring.as_received import as_received
from inrun_bench.attribution.scoring.first_order import first_order_empty, validation_gradients
from inrun_bench.attribution.scoring.lagged import SlopeLag
from inrun_bench.attribution.scoring.late import late_probes
from inrun_bench.attribution.scoring.scores import Scores, TermSums
from inrun_bench.attribution.step import StepBegun, StepReceived, StepTaken
from inrun_bench.attribution.updates.expected import ExpectedSlope
from inrun_bench.attribution.validation import moved_to

__all__ = ["KeepRoute"]

EXACT = torch.finfo(torch.float64).eps  # of terms that were not rounded before they came


class KeepRoute:
    """Keeps terms, and scores them as soon as their probe is known: before the step, or after it.

    Parameters
    ----------
    probe : Probe
        What they will be scored with.
    parameters : mapping of str to Parameter
        The trained parameters by name.
    count : callable
        Told each term that is kept.
    lag : SlopeLag, optional
        Told how far the slopes that were expected are off.
    expected : sequence of ExpectedSlope, optional
        Those slopes, by parameter.
    """

    by_element = True
    samples_slopes = False
    sees_layers = True
    aimed = None
    slope_errors = None
    empty: Tensor | None = None

    def __init__(
        self,
        probe: Probe,
        parameters: Mapping[str, nn.Parameter],
        count: Callable[[Term], None],
        lag: SlopeLag | None = None,
        expected: Sequence[ExpectedSlope] | None = None,
    ) -> None:
        self.keys: set[str] = set()
        self.late = probe.late
        self._lag, self._expected = lag, expected
        self._directions: list[list[Tensor]] = []  # of the probes, where they are known already
        self._total: Tensor | None = None  # where they are scored before the step
        self._probe, self._parameters, self._count = probe, parameters, count
        self._kept: list[Term] = []
        self._versions: list[list[int]] = []  # of the tensors of each, as they were kept

    @property
    def micro_batches(self) -> set[MicroBatch]:
        """Those of which something is kept."""
        return {term.micro_batch for term in self._kept}

    def receive(self, term: Term) -> None:
        """Keep a term."""
        self._count(term)
        self._keep(term)

    def before_step(self, begun: StepBegun, received: StepReceived) -> None:
        """Score what was kept, unless the probe asks where the step leads."""
        if not self.late:
            self._total = self._scores_of(begun, received, begun.weights)

    def scores_so_far(self, begun: StepBegun, received: Callable[[], StepReceived]) -> Tensor:
        """Score what is kept, and keep it."""
        if self.late:
            raise RuntimeError(
                f"the scores of {self._probe.name!r} are known only after the step by this route; make the engine with "
                "order='first' and late='auto' to have them before it"
            )
        probes = late_probes(begun, received(), self._probe, self._parameters, known=self._directions)
        self._directions = probes.directions
        return self._scores_of_kept(begun, begun.weights, probes.accumulated).total(begun.samples.rows)[0]

    def scores(self, begun: StepBegun, taken: StepTaken) -> Tensor:
        """Score what was kept, where that is not done yet."""
        if self._total is None:
            self._total = self._scores_of(begun, taken.received, taken.before, taken)
        return self._total

    def _scores_of(
        self, begun: StepBegun, received: StepReceived, weights: Sequence[Tensor], taken: StepTaken | None = None
    ) -> Tensor:
        probes = late_probes(begun, received, self._probe, self._parameters, taken, self._directions)
        self._directions = []
        if self._lag is not None:
            gradients = validation_gradients(begun)
            self._lag.check(begun, received, gradients, self._expected)
            self.empty = self._lag.remember(begun, received, gradients)
        elif begun.joint is not None or begun.queries is not None:
            self.empty = first_order_empty(begun, received)
        scores, total, terms = self._scored(begun, weights, probes.accumulated)
        return as_received(begun, received, scores, total, terms, probes.received)

    def finite(self) -> list[Tensor]:
        """Return of each kept gradient whether it is finite."""
        return [torch.isfinite(term.b).all() for term in self._kept]

    def _keep(self, term: Term) -> None:
        self.keys |= term.keys
        self._kept.append(term)
        self._versions.append(_versions(term))

    def _scored(
        self, begun: StepBegun, weights: Sequence[Tensor], probes: Sequence[Direction], precision: float = EXACT
    ) -> tuple[Scores, Tensor, TermSums]:
        """Return the scores of what was kept, which is let go of, and what they add up to."""
        scores = self._scores_of_kept(begun, weights, probes, precision, let_go=True)
        return scores, *scores.total(begun.samples.rows, begun.samples.kept)

    def _scores_of_kept(
        self,
        begun: StepBegun,
        weights: Sequence[Tensor],
        probes: Sequence[Direction],
        precision: float = EXACT,
        *,
        let_go: bool = False,
    ) -> Scores:
        """Return the scores of what was kept.

        Raises
        ------
        RuntimeError
            If a tensor of it was overwritten meanwhile.
        """
        scores = Scores(len(probes), begun.device, begun.scored, precision)
        kept = self._kept if let_go else list(self._kept)
        versions = self._versions if let_go else list(self._versions)
        with moved_to(list(self._parameters.values()), weights), torch.no_grad():  # rules may read weights
            while kept:
                term = kept.pop(0)
                if _versions(term) != versions.pop(0):
                    raise RuntimeError(
                        f"step {begun.number}: what went into {term.where} is needed until "
                        f"{'the end of the step' if self.late else 'optimizer.step()'}, and was overwritten in place "
                        "after the backward pass; fill such a buffer after the step's block, or give the model a copy "
                        "of it"
                    )
                scores.add(term, probes)
        return scores


def _versions(term: Term) -> list[int]:
    return [tensor._version for tensor in term.tensors if not tensor.is_inference()]
