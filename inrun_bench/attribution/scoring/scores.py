"""The scores of one step while they come in, term by term."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inrun_bench.attribution.directions import Direction
from inrun_bench.attribution.layer_terms import LayerSite, MicroBatch, Term
from inrun_bench.attribution.precision import own_precision
from inrun_bench.attribution.transfer import Numbers, gathered

__all__ = ["Scores", "TermSums"]


@dataclass(frozen=True)
class _ScoredTerm:
    where: str
    micro_batch: MicroBatch
    scores: Tensor  # [probes, micro_batch.size]
    keys: set[str]
    precision: float  # of the coarsest of what went into them


@dataclass(frozen=True)
class TermSums:
    """What terms add up to.

    Attributes
    ----------
    keys : list of set of str
        The parameters concerned, by term.
    precision : list of float
        Of the coarsest of what went into each term.
    sums, magnitudes : float64 Tensor [terms, probes]
        Sums over the samples of scores, and of their absolute values.
    """

    keys: list[set[str]]
    precision: list[float]
    sums: Tensor
    magnitudes: Tensor

    def times(self, factor: float | Tensor) -> TermSums:
        """Return these of scores that were multiplied with a factor."""
        size = factor.abs() if isinstance(factor, Tensor) else abs(factor)
        return TermSums(self.keys, self.precision, self.sums * factor, self.magnitudes * size)

    def joined(self, other: TermSums) -> TermSums:
        """Return these and others."""
        return TermSums(
            self.keys + other.keys,
            self.precision + other.precision,
            torch.cat([self.sums, other.sums]),
            torch.cat([self.magnitudes, other.magnitudes]),
        )


class Scores:
    """Sums of terms' scores, for one or several probes.

    Parameters
    ----------
    n_probes : int
        Number of validation sets.
    device : torch.device
        Where the sums are taken.
    scored : collection of str, optional
        Parameters whose terms make scores; all where None.
    precision : float, optional
        Of what terms were rounded to before they came.
    """

    def __init__(
        self,
        n_probes: int,
        device: torch.device,
        scored: Collection[str] | None = None,
        precision: float = torch.finfo(torch.float64).eps,
    ) -> None:
        self._scored = scored
        self.keys: set[str] = set()  # parameters of which something has been seen
        self._n_probes, self._device, self._precision = n_probes, device, precision
        self._terms: list[_ScoredTerm] = []

    def add(self, term: Term, probes: Sequence[Direction]) -> None:
        """Score a term with each probe."""
        with own_precision(term.b.device):
            scores = term.scores(probes)
        self._add(term.where, term.micro_batch, scores, term.keys, term.kind)

    def add_scores(self, site: LayerSite, micro_batch: MicroBatch, scores: Tensor, kind: torch.dtype) -> None:
        """Add scores, [probes, micro_batch.size], that a layer's own backward pass brought, computed in `kind`."""
        self._add(site.where, micro_batch, scores, site.keys, kind)

    def _add(self, where: str, micro_batch: MicroBatch, scores: Tensor, keys: set[str], kind: torch.dtype) -> None:
        if self._scored is not None and 0 < len(keys & set(self._scored)) < len(keys):
            named, other = (min(each) for each in (keys & set(self._scored), keys - set(self._scored)))
            raise ValueError(
                f"score= names {named!r} and not {other!r}, which {where} uses together, so that their scores are one; "
                "name all parameters of a layer, or none"
            )
        precision = max(self._precision, torch.finfo(scores.dtype).eps, torch.finfo(kind).eps)
        self._terms.append(_ScoredTerm(where, micro_batch, scores, keys, precision))
        self.keys |= keys

    @property
    def micro_batches(self) -> set[MicroBatch]:
        """Those of which anything has come."""
        return {term.micro_batch for term in self._terms}

    def total(self, size: int, kept: Tensor | None = None) -> tuple[Tensor, TermSums]:
        """Return the sums over terms, float64 [probes, size], and those over samples.

        Where some parameters make no scores, what theirs would add up to is one column more.

        Parameters
        ----------
        size : int
            Rows of the batch.
        kept : float64 Tensor [size], optional
            What scores are multiplied with, by row.
        """
        by_micro_batch: dict[MicroBatch, list[_ScoredTerm]] = {}
        for term in self._terms:
            by_micro_batch.setdefault(term.micro_batch, []).append(term)
        tables = {
            part: gathered([term.scores for term in terms]).to(self._device, torch.float64)
            for part, terms in by_micro_batch.items()
        }
        if kept is not None:
            tables = {part: table * kept[part.rows].to(table.device) for part, table in tables.items()}
        whole = next((table for part, table in tables.items() if part.size == size), None)
        if whole is not None and len(tables) == 1:
            total = whole.sum(0)
        else:
            total = torch.zeros(self._n_probes, size, dtype=torch.float64, device=self._device)
            for part, table in tables.items():
                total[:, part.rows] += table.sum(0)
        if self._scored is not None:
            total = self._without_unscored(total, by_micro_batch, tables)
        none = [] if tables else [total.new_zeros(0, self._n_probes)]
        sums = none + [table.sum(2) for table in tables.values()]
        magnitudes = none + [table.abs().sum(2) for table in tables.values()]
        ordered = [term for terms in by_micro_batch.values() for term in terms]
        keys, precision = [term.keys for term in ordered], [term.precision for term in ordered]
        return total, TermSums(keys, precision, torch.cat(sums), torch.cat(magnitudes))

    def _without_unscored(
        self,
        total: Tensor,
        terms: Mapping[MicroBatch, Sequence[_ScoredTerm]],
        tables: Mapping[MicroBatch, Tensor],
    ) -> Tensor:
        """Return sums over the terms that make scores, and in one column more the sum of what all others would be."""
        assert self._scored is not None
        rest = torch.zeros_like(total)
        for part, table in tables.items():
            others = [not term.keys <= set(self._scored) for term in terms[part]]
            rest[:, part.rows] += table[others].sum(0)
        return torch.cat([total - rest, rest.sum(1, keepdim=True)], 1)

    def expect_finite(self, numbers: Numbers, total: Tensor, samples_of_row: Callable[[int], str], step: int) -> None:
        """Have FloatingPointError raised if a sum is not finite, with the step, the sample, and where it came from.

        Parameters
        ----------
        numbers : Numbers
            With which the answer travels.
        total : float64 Tensor [probes, batch]
            The sums.
        samples_of_row : callable
            Names the samples of a row of the batch.
        step : int
            The step's number.
        """

        def check(sums: NDArray[np.float64]) -> None:
            bad = np.flatnonzero(~np.isfinite(sums).all(0))
            if not len(bad):
                return
            row = int(bad[0])
            of_row = (term for term in self._terms if row in range(size)[term.micro_batch.rows])
            sources = (term.where for term in of_row if not torch.isfinite(term.scores).all())
            if row >= rows:
                raise FloatingPointError(f"step {step}: what parameters bring that make no scores is not finite")
            raise FloatingPointError(
                f"step {step}: the score of sample {samples_of_row(row)} is not finite, "
                f"first in {next(sources, 'the sum of terms')}"
            )

        size = total.shape[1]
        rows = size if self._scored is None else size - 1
        numbers.expect(total, check)

    def finite(self) -> list[Tensor]:
        """Return of each term whether all its scores are finite."""
        return [torch.isfinite(term.scores).all() for term in self._terms]
