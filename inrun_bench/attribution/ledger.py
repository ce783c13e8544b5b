"""The ledger: the account of all scores, by sample and by step, whose books balance.

For each step::

    sum of the batch's scores + optimizer + residual = drop

where `drop` is the measured fall of the validation loss over the step, `optimizer` what the step would have done with
an empty coalition (weight decay, momentum carried over), and `residual` what the approximation lost. The residual
needs no retraining to compute: it is the first thing to look at to know whether the values can be trusted.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Entry", "Ledger"]


@dataclass(frozen=True)
class Entry:
    """One step's page of the ledger; all amounts in nats of validation loss.

    Attributes
    ----------
    index : int64 [batch]
        Samples of the batch.
    scores : float64 [batch]
        Their scores; positive where the sample lowered the validation loss.
    optimizer : float
        What the step does with an empty coalition.
    drop : float
        Measured fall of the validation loss.
    """

    index: NDArray[np.int64]
    scores: NDArray[np.float64]
    optimizer: float
    drop: float

    @property
    def residual(self) -> float:
        """What the approximation lost: drop - optimizer - sum of scores."""
        return self.drop - self.optimizer - float(self.scores.sum())


class Ledger:
    """Scores of a run.

    Parameters
    ----------
    n_samples : int
        Size of the training set.

    Attributes
    ----------
    steps : list of Entry
        One entry a step, in order.
    """

    def __init__(self, n_samples: int) -> None:
        self.steps: list[Entry] = []
        self._values = np.zeros(n_samples)

    def record(self, entry: Entry) -> None:
        """Book one step."""
        self.steps.append(entry)
        self._values[entry.index] += entry.scores  # a batch holds no sample twice

    @property
    def values(self) -> NDArray[np.float64]:
        """Sum of each sample's scores over all steps, float64 [n_samples], in nats."""
        return self._values.copy()

    @property
    def accounts(self) -> dict[str, float]:
        """Totals over the run: samples + optimizer + residual = drop, in nats."""
        return {
            "samples": float(sum(entry.scores.sum() for entry in self.steps)),
            "optimizer": float(sum(entry.optimizer for entry in self.steps)),
            "residual": float(sum(entry.residual for entry in self.steps)),
            "drop": float(sum(entry.drop for entry in self.steps)),
        }

    def groups(self, labels: Sequence[Hashable] | NDArray[np.generic]) -> dict[Hashable, NDArray[np.float64]]:
        """Sum the scores of each group of samples, step by step.

        Parameters
        ----------
        labels : sequence [n_samples]
            The group of each sample: its class, domain, source.

        Returns
        -------
        dict of label to float64 [steps]
            In nats; the sum over groups is the sum of each step's scores.
        """
        array = np.asarray(labels)
        if array.shape != self._values.shape:
            raise ValueError(f"labels must name one group for each of {len(self._values)} samples, got {array.shape}")
        names, codes = np.unique(array, return_inverse=True)
        table = np.zeros((len(names), len(self.steps)))
        for number, entry in enumerate(self.steps):
            np.add.at(table[:, number], codes[entry.index], entry.scores)
        return dict(zip(names.tolist(), table, strict=True))
