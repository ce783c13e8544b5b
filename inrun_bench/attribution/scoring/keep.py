"""Terms are kept until the probe is known, after the step: exact, at the price of the memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from inrun_bench.attribution.directions import Direction
from inrun_bench.attribution.layer_terms import MicroBatch, Term
from inrun_bench.attribution.probes import Probe
from inrun_bench.attribution.scoring.as_received import as_received
from inrun_bench.attribution.scoring.late import late_probes
from inrun_bench.attribution.scoring.scores import Scores, TermSums
from inrun_bench.attribution.step import StepBegun, StepReceived, StepTaken
from inrun_bench.attribution.validation import moved_to

__all__ = ["KeepRoute"]

EXACT = torch.finfo(torch.float64).eps  # of terms that were not rounded before they came


class KeepRoute:
    """Keeps terms and scores them after the step.

    Parameters
    ----------
    probe : Probe
        What they will be scored with.
    parameters : mapping of str to Parameter
        The trained parameters by name.
    count : callable
        Told each term that is kept.
    """

    late = True
    sees_layers = True
    aimed = None

    def __init__(self, probe: Probe, parameters: Mapping[str, nn.Parameter], count: Callable[[Term], None]) -> None:
        self.keys: set[str] = set()
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
        """Do nothing: terms are apart from gradients."""

    def scores(self, begun: StepBegun, taken: StepTaken) -> Tensor:
        """Score what was kept."""
        probes = late_probes(begun, taken, self._probe, self._parameters)
        scores, total, terms = self._scored(begun, taken, probes.accumulated)
        return as_received(begun, taken.received, scores, total, terms, probes.received)

    def finite(self) -> list[Tensor]:
        """Return of each kept gradient whether it is finite."""
        return [torch.isfinite(term.b).all() for term in self._kept]

    def _keep(self, term: Term) -> None:
        self.keys |= term.keys
        self._kept.append(term)
        self._versions.append(_versions(term))

    def _scored(
        self, begun: StepBegun, taken: StepTaken, probes: Sequence[Direction], precision: float = EXACT
    ) -> tuple[Scores, Tensor, TermSums]:
        """Return the scores of what was kept, which is let go of, and what they add up to.

        Raises
        ------
        RuntimeError
            If a tensor of it was overwritten meanwhile.
        """
        scores = Scores(len(probes), begun.device, precision)
        with moved_to(list(self._parameters.values()), taken.before), torch.no_grad():  # rules may read weights
            while self._kept:
                term = self._kept.pop(0)
                if _versions(term) != self._versions.pop(0):
                    raise RuntimeError(
                        f"step {begun.number}: what went into {term.where} is needed until the end of the step's "
                        "block, and was overwritten in place after the backward pass; fill such a buffer after the "
                        "block, or give the model a copy of it"
                    )
                scores.add(term, probes)
        return scores, *scores.total(begun.samples.rows)


def _versions(term: Term) -> list[int]:
    return [tensor._version for tensor in term.tensors if not tensor.is_inference()]
