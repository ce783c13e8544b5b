"""A step that has been taken, and whose numbers nobody on the host has seen yet."""

from __future__ import annotations

import logging

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inrun_bench.attribution.ledger.books import ONLY, Books, StepAccount
from inrun_bench.attribution.step import StepBegun, StepTaken
from inrun_bench.attribution.transfer import Numbers

__all__ = ["Pending"]

logger = logging.getLogger(__name__)


class Pending:
    """A step on its way into the books, in the order: the loss before it, its checks, itself.

    It holds nothing of the size of the weights or of the batch's activations.

    Parameters
    ----------
    begun, taken : StepBegun, StepTaken
        The step.
    scores : float64 Tensor [validation sets, rows, or rows + 1]
        Its samples', and what parameters brought that make none.
    books : Books
        Where it is booked.
    before : float64 Tensor [validation sets]
        Losses at the weights before the step.
    empty : float64 Tensor [validation sets]
        What the step does with an empty coalition.
    after : float64 Tensor [validation sets], or None
        Losses to which it led, where they are known.
    slope_errors : float64 Tensor [validation sets], or None
        How far scores are off for slopes that were lagged; None where none was.
    """

    def __init__(
        self,
        begun: StepBegun,
        taken: StepTaken,
        scores: Tensor,
        books: Books,
        before: Tensor,
        empty: Tensor,
        after: Tensor | None,
        slope_errors: Tensor | None = None,
    ) -> None:
        self.number, void = begun.number, taken.received.void
        self._books, self._names, self._samples = books, list(begun.losses), begun.samples
        self._of_queries = begun.queries is not None
        self._measured = all(loss.closure is not None for loss in begun.losses.values())
        self._numbers = Numbers()
        self._numbers.expect(before, self._settle)  # that of the step before, whatever became of this one
        if void is not None:
            self._numbers.expect(void, self._stop)
        self._numbers.join(begun.checks)
        errors = torch.zeros_like(before) if slope_errors is None else slope_errors
        columns = [before[:, None], empty[:, None], errors[:, None], scores]
        self._numbers.expect(torch.cat([column.to(scores.device) for column in columns], 1), self._hold)
        if after is not None:
            self._numbers.expect(after, self._settle)
        self._numbers.send()

    def look(self) -> None:
        """Wait for the numbers, check them and book the step.

        Raises
        ------
        ValueError, FloatingPointError
            If a check fails; the step is not booked then.
        """
        try:
            self._numbers.read()
        except Exception as error:
            error.add_note(f"Found in the numbers of step {self.number}, which is not booked.")
            raise

    def _settle(self, losses: NDArray[np.float64]) -> None:
        if self._of_queries:
            self._books.settle({ONLY: losses.copy()})
        else:
            self._books.settle(dict(zip(self._names, losses.tolist(), strict=True)))

    def _stop(self, void: NDArray[np.float64]) -> bool:
        if void:
            logger.info("step %d: gradients overflowed and the optimiser did not step; not booked", self.number)
        return bool(void)

    def _hold(self, table: NDArray[np.float64]) -> None:
        index, scores = self._samples.credited(table[:, 3:])
        unscored = table[:, 3 + self._samples.rows :].sum(1)
        if self._of_queries:
            error = float(table[:, 2].max())
            account = StepAccount(scores.T.copy(), table[:, 1].copy(), table[:, 0].copy(), error, unscored)
            self._books.hold(index, {ONLY: account})
            return
        rows = zip(self._names, scores, table, unscored, strict=True)
        accounts = {
            name: StepAccount(own, row[1], row[0], row[2], rest, measured=self._measured)
            for name, own, row, rest in rows
        }
        self._books.hold(index, accounts)
