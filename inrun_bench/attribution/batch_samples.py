"""Which training samples the rows of a step's batch are, and who is credited with what they contribute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inrun_bench.attribution.transfer import Numbers

__all__ = ["BatchSamples", "Index", "Weights"]

Index: TypeAlias = Sequence[int] | NDArray[np.int64] | Tensor
Weights: TypeAlias = Sequence[Sequence[float]] | NDArray[np.floating[Any]] | Tensor


class BatchSamples:
    """The samples of a batch, micro-batch by micro-batch.

    Parameters
    ----------
    n_samples : int
        Size of the training set.

    Attributes
    ----------
    kept : float64 Tensor [rows], or None
        What the contribution of each row was multiplied with before the optimiser got their sum; 1 where None.
    """

    def __init__(self, n_samples: int) -> None:
        self._n_samples = n_samples
        self._index: list[NDArray[np.int64]] = []  # one that lies on a device is known with the step's checks
        self._shares: list[NDArray[np.float64] | None] = []  # of samples in rows that are made of several
        self.kept: Tensor | None = None  # what rows' contributions are multiplied with, float64 [rows]; 1 where None

    def add(self, index: Index, weights: Weights | None, checks: Numbers, where: str) -> None:
        """Add the samples of a micro-batch; see :meth:`inrun_bench.attribution.step.OpenStep.batch`.

        An index on a device travels with `checks`; `where` begins the messages of errors that are found then.
        """
        slot = len(self._index)
        if isinstance(index, Tensor) and index.device.type != "cpu":
            shape = tuple(index.shape)
            _check_form(np.broadcast_to(torch.empty((), dtype=index.dtype).numpy(), shape), weights)

            def note(numbers: NDArray[np.float64]) -> None:
                self._index[slot] = _checked(numbers.astype(np.int64), self._n_samples, where)

            self._index.append(np.zeros(shape, np.int64))
            checks.expect(index.clone(), note)
        else:
            array = np.asarray(index)
            _check_form(array, weights)
            self._index.append(_checked(array.astype(np.int64), self._n_samples))
        self._shares.append(None if weights is None else _shares(weights, self._index[slot].shape))

    @property
    def rows(self) -> int:
        """How many rows the batch has so far."""
        return sum(map(len, self._index))

    def credited(self, scores: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return samples and their scores, for scores by row [..., rows]; a row of several samples is shared out."""
        start, index, credited = 0, [], []
        for samples, shares in zip(self._index, self._shares, strict=True):
            own = scores[..., start : start + len(samples)]
            start += len(samples)
            index.append(samples.reshape(-1))
            credited.append(own if shares is None else (own[..., None] * shares).reshape(*own.shape[:-1], -1))
        return np.concatenate(index), np.concatenate(credited, -1)

    def of_row(self, row: int) -> str:
        """Return the sample, or samples, of a row of the batch, for messages."""
        for samples in self._index:
            if row < len(samples):
                return " and ".join(map(str, np.atleast_1d(samples[row])))
            row -= len(samples)
        raise IndexError(f"the step has no row {row}")


def _check_form(array: NDArray[np.generic], weights: Weights | None) -> None:
    if array.ndim not in (1, 2) or array.size == 0 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            "index must be a non-empty array of integers, one for each row of the batch or, with weights, several; "
            f"got {array.dtype} of shape {array.shape}"
        )
    if (array.ndim == 2) != (weights is not None):
        raise ValueError(
            f"index of shape {array.shape} "
            + ("needs weights, the share of each sample in a row" if weights is None else "takes no weights")
            + "; both are [rows, k] where each row is made of k samples, and index is [rows] otherwise"
        )


def _checked(array: NDArray[np.int64], n_samples: int, where: str = "") -> NDArray[np.int64]:
    outside = array[(array < 0) | (array >= n_samples)]
    if len(outside):
        raise ValueError(f"{where}index {outside[0]} is out of range: samples are numbered 0 .. {n_samples - 1}")
    return array


def _shares(weights: Weights, shape: tuple[int, ...]) -> NDArray[np.float64]:
    array = np.asarray(weights.detach().cpu() if isinstance(weights, Tensor) else weights, np.float64)
    if array.shape != shape:
        raise ValueError(f"weights must be {list(shape)}, as index is, got shape {array.shape}")
    if not np.allclose(array.sum(1), 1.0, atol=1e-3):
        raise ValueError(f"weights of each row must add up to 1, got {array.sum(1)[~np.isclose(array.sum(1), 1.0)][0]}")
    return array
