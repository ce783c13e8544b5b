"""The books of a run: one ledger a validation set, and the step that waits for the loss to which it led."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inrun_bench.attribution.ledger.ledger import Amount, Entry, Ledger, Pages

__all__ = ["ONLY", "Books", "StepAccount"]

logger = logging.getLogger(__name__)

DROWNING = 10.0
"""How many times the median step's scores those of another may be before somebody is told."""

LOOKED_AT = (20, 50, 100, 200, 500, 1000)
"""After how many steps it is looked at."""

ONLY = "validation"  # the name of the one validation set, where it has none


@dataclass(frozen=True)
class StepAccount:
    """What a step did to one validation loss, but for the loss to which it led; in nats.

    `slope_error` is how far scores are off, relative to their size, for slopes that were lagged, `unscored` what
    parameters brought that make no scores, `measured` whether the loss to which it led will be known.
    """

    scores: NDArray[np.float64]
    optimizer: Amount
    loss_before: Amount
    slope_error: float = 0.0
    unscored: Amount = 0.0
    measured: bool = True


@dataclass(frozen=True)
class _Waiting:
    index: NDArray[np.int64]
    accounts: Mapping[str, StepAccount]


class Books:
    """Ledgers by validation set.

    Parameters
    ----------
    n_samples : int
        Size of the training set.
    names : iterable of str
        The validation sets.
    labels, pages, queries
        See :class:`~inrun_bench.attribution.ledger.ledger.Ledger`; several validation sets need a mapping of pages.
    """

    def __init__(
        self,
        n_samples: int,
        names: Iterable[str],
        labels: Sequence[Any] | NDArray[Any] | None,
        pages: Pages | Mapping[str, Pages] | None,
        queries: int | None = None,
    ) -> None:
        names = list(names)
        if pages is not None and not isinstance(pages, Mapping):
            if len(names) > 1:
                raise ValueError("with several validation sets, pages must be a mapping of their names to pages")
            pages = {names[0]: pages}
        self.ledgers = {
            name: Ledger(n_samples, labels=labels, pages=(pages or {}).get(name), queries=queries) for name in names
        }
        self.queries = queries
        self._waiting: _Waiting | None = None
        self._spread: array[float] = array("d")  # of the first validation set's scores, step by step
        self._told = False

    def values(self, name: str) -> NDArray[np.float64]:
        """Return the values by one validation set, float64 [n_samples], the waiting step included."""
        values = self.ledgers[name].values
        if self._waiting is not None:
            np.add.at(values, self._waiting.index, self._waiting.accounts[name].scores)
        return values

    def hold(self, index: NDArray[np.int64], accounts: Mapping[str, StepAccount]) -> None:
        """Note a step that has been taken, until the losses to which it led are known."""
        self._waiting = _Waiting(index, accounts)
        self._spread.append(float(np.abs(next(iter(accounts.values())).scores).max()))
        if not self._told and len(self._spread) in LOOKED_AT:
            self._warn_of_a_step_that_drowns_the_others()

    def _warn_of_a_step_that_drowns_the_others(self) -> None:
        median, largest = float(np.median(self._spread)), max(self._spread)
        if largest > DROWNING * median > 0.0:
            self._told = True
            step = self._spread.index(largest)
            logger.warning(
                "scores of step %d are %.0f times those of the median step, so that its batch decides the values "
                "(Adam's first steps do this without a warm-up of the learning rate). Warm up, or leave steps out: "
                "values(steps=slice(%d, None))",
                step,
                largest / median,
                step + 1,
            )

    def settle(self, losses: Mapping[str, Amount]) -> None:
        """Book the waiting step, if there is one, now that the losses to which it led are known.

        Raises
        ------
        FloatingPointError
            If one is not finite; the step is not booked then.
        """
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return
        for name, account in waiting.accounts.items():
            after = [losses[name]] if account.measured else []
            if not all(np.isfinite(amount).all() for amount in (*after, account.loss_before, account.optimizer)):
                raise FloatingPointError(
                    f"the validation loss {name!r} went from {account.loss_before} to {losses[name]} in a step that is "
                    "not booked: training has diverged, or the validation data hold what is not finite"
                )
        for name, account in waiting.accounts.items():
            drop = account.loss_before - losses[name]
            self.ledgers[name].record(
                Entry(waiting.index, account.scores, account.optimizer, drop, account.unscored),
                slope_error=account.slope_error,
            )

    def only(self) -> str:
        """Return the name of the one validation set; refuse to choose among several."""
        if len(self.ledgers) > 1:
            names = ", ".join(map(repr, self.ledgers))
            raise ValueError(f"there are several validation sets, {names}: name one with values(...) or ledgers[...]")
        return next(iter(self.ledgers))

    def state_dict(self) -> dict[str, Any]:
        """Return all ledgers' states; no step may be waiting."""
        return {name: ledger.state_dict() for name, ledger in self.ledgers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all ledgers."""
        if state.keys() != self.ledgers.keys():
            raise ValueError(
                f"the state is of validation sets {', '.join(map(repr, state))}; "
                f"this engine has {', '.join(map(repr, self.ledgers))}"
            )
        for name, ledger in self.ledgers.items():
            ledger.load_state_dict(state[name])
        self._waiting = None
