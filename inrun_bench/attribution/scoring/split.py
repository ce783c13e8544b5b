"""What is known of a late probe in time is scored in the backward pass, and only the rest with rounded terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from inrun_bench.attribution.directions import multiplied_out
from inrun_bench.attribution.layer_terms import MicroBatch, Term
from inrun_bench.attribution.probes import Probe
from inrun_bench.attribution.scoring.as_received import as_received
from inrun_bench.attribution.scoring.early import KnownProbes
from inrun_bench.attribution.scoring.keep import KeepRoute
from inrun_bench.attribution.scoring.late import late_probes
from inrun_bench.attribution.scoring.scores import Scores
from inrun_bench.attribution.step import StepBegun, StepReceived, StepTaken

__all__ = ["SplitRoute"]

ROUNDED = {torch.float64: torch.float32, torch.float32: torch.bfloat16}
"""What terms are kept in; others stay as they are."""


class SplitRoute(KeepRoute):
    """Scores terms as they come with the probes that are known, and keeps them, rounded, for the rest.

    Parameters
    ----------
    probe, parameters, count
        See :class:`~inrun_bench.attribution.scoring.keep.KeepRoute`.
    first : KnownProbes
        The part that is known.
    begun : StepBegun
        The step.
    """

    def __init__(
        self,
        probe: Probe,
        parameters: Mapping[str, nn.Parameter],
        count: Callable[[Term], None],
        first: KnownProbes,
        begun: StepBegun,
    ) -> None:
        super().__init__(probe, parameters, count)
        self.late = True
        self._first = first
        self._of_first = Scores(len(first.directions), begun.device, begun.scored)

    @property
    def micro_batches(self) -> set[MicroBatch]:
        """Those of which something has been seen."""
        return self._of_first.micro_batches

    def receive(self, term: Term) -> None:
        """Score a term with what is known, and keep it rounded."""
        self._of_first.add(term, self._first.directions)
        self._count(term)
        dtype = ROUNDED.get(term.b.dtype)
        self._keep(term if dtype is None else term.rounded(dtype))

    def before_step(self, begun: StepBegun, received: StepReceived) -> None:
        """Do nothing: terms are apart from gradients."""

    def scores(self, begun: StepBegun, taken: StepTaken) -> Tensor:
        """Score the rest of the probe with what was kept, and add what is known."""
        probes = late_probes(begun, taken.received, self._probe, self._parameters, taken)
        factor = self._first.factor
        rest = [
            {name: multiplied_out(q) - factor * multiplied_out(done[name]) for name, q in probe.items()}
            for probe, done in zip(probes.accumulated, self._first.directions, strict=True)
        ]
        known, of_known = self._of_first.total(begun.samples.rows, begun.samples.kept)
        scores, total, terms = self._scored(begun, taken.before, rest, max(map(_rounding, self._parameters.values())))
        terms = of_known.times(factor).joined(terms)
        return as_received(begun, taken.received, scores, factor * known + total, terms, probes.received)

    def finite(self) -> list[Tensor]:
        """Return of all terms whether they are finite."""
        return [*self._of_first.finite(), *super().finite()]


def _rounding(parameter: Tensor) -> float:
    return torch.finfo(ROUNDED.get(parameter.dtype, parameter.dtype)).eps
