"""The ledger: the account of all scores, by sample, by step and by group, whose books balance.

For each step::

    sum of the batch's scores + unscored + optimizer + residual = drop

where `drop` is the measured fall of the validation loss over the step, `unscored` what parameters brought that make no
scores (0 where all do), `optimizer` what the step would have done with an empty coalition (weight decay, momentum
carried over), and `residual` what the approximation lost. The residual
needs no retraining to compute: it is the first thing to look at to know whether the values can be trusted.

What is small is always kept in memory: the values, one number a sample; the four accounts, a few numbers a step; and,
where the ledger knows its samples' labels, the sum over each group, one number a group and step. The whole entries,
a number for each sample of each step, go to *pages*: a list, or for long runs a folder
(:class:`~inrun_bench.attribution.ledger.pages.ParquetPages`). Sums are carried on in the order of the steps and never
computed anew, so they are the same numbers wherever the pages lie, and whether or not a run was interrupted.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["ACCOUNTS", "Entry", "Ledger", "MemoryPages", "Pages"]

Amount: TypeAlias = Any
"""Nats of validation loss: of one, or of each query, [queries]."""

ACCOUNTS = ("samples", "unscored", "optimizer", "residual", "drop")


@dataclass(frozen=True)
class Entry:
    """One step's page of the ledger; all amounts in nats of validation loss.

    Attributes
    ----------
    index : int64 [batch]
        Samples of the batch; one that the batch holds several times (augmented views) stands there as often.
    scores : float64 [batch]
        Their scores; positive where the sample lowered the validation loss.
    optimizer : float
        What the step does with an empty coalition.
    drop : float
        Measured fall of the validation loss.
    unscored : float
        What the batch brought by parameters that make no scores.

    Where there are several queries, scores are [batch, queries], and each amount is an array [queries].
    """

    index: NDArray[np.int64]
    scores: NDArray[np.float64]
    optimizer: Amount
    drop: Amount
    unscored: Amount = 0.0

    @property
    def residual(self) -> Any:
        """What the approximation lost: drop - optimizer - unscored - sum of scores."""
        return self.drop - self.optimizer - self.unscored - self._total

    @property
    def amounts(self) -> tuple[Amount, ...]:
        """The five accounts, in the order of `ACCOUNTS`."""
        return self._total, self.unscored, self.optimizer, self.residual, self.drop

    @property
    def _total(self) -> Any:
        return float(self.scores.sum()) if self.scores.ndim == 1 else self.scores.sum(0)


class Pages(Protocol):
    """Where a ledger keeps its entries: a sequence of them, that a checkpoint can bring back to where it was."""

    def append(self, entry: Entry, /) -> None:
        """Add the next step, or raise and leave the pages as they were."""

    def flush(self) -> None:
        """Bring to disk, where that is the place, what is still in memory."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Entry]: ...

    def __getitem__(self, number: int, /) -> Entry: ...

    def state_dict(self) -> dict[str, Any]:
        """Return what :meth:`load_state_dict` needs: tensors and plain Python, for ``torch.save``."""

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go back to the steps that `state` was taken after, or raise and keep those that are there."""


class MemoryPages(list[Entry]):
    """All entries in a list; a checkpoint holds all of them."""

    def flush(self) -> None:
        """Do nothing; see :class:`Pages`."""

    def state_dict(self) -> dict[str, Any]:
        """Return all entries, end to end; see :class:`Pages`."""
        return {
            "index": torch.from_numpy(np.concatenate([np.empty(0, np.int64), *(entry.index for entry in self)])),
            "scores": torch.from_numpy(np.concatenate([entry.scores for entry in self] or [np.empty(0)])),
            "lengths": torch.tensor([len(entry.index) for entry in self], dtype=torch.int64),
            "optimizer": torch.from_numpy(np.array([entry.optimizer for entry in self], np.float64)),
            "drop": torch.from_numpy(np.array([entry.drop for entry in self], np.float64)),
            "unscored": torch.from_numpy(np.array([entry.unscored for entry in self], np.float64)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace all entries by those of `state`; see :class:`Pages`."""
        if "index" not in state:
            raise ValueError(
                "the checkpoint's steps were streamed to disk, this ledger keeps its steps in memory; "
                "make it with pages= over the same folder"
            )
        ends = np.cumsum(state["lengths"].tolist(), dtype=np.int64)[:-1]
        parts = (np.split(_array(state[name]), ends) for name in ("index", "scores"))
        nothing = torch.zeros_like(state["drop"])  # of what versions before this one did not know
        amounts = (list(_array(state.get(name, nothing))) for name in ("optimizer", "drop", "unscored"))
        if state["drop"].dim() == 1:
            amounts = ([float(amount) for amount in column] for column in amounts)
        self[:] = [Entry(*page) for page in zip(*parts, *amounts, strict=False)]  # split gives one part for no step


class Ledger:
    """Scores of a run.

    Parameters
    ----------
    n_samples : int
        Size of the training set.
    labels : sequence [n_samples], optional
        The group of each sample: its class, domain, source; anything that numpy can sort. Given here, the sums over
        groups are kept while the run goes on, 8 bytes a group and step, and :meth:`groups` need not read the pages.
    queries : int, optional
        How many validation losses each score is of, where they are kept in one ledger: scores are [batch, queries],
        and every amount is an array [queries].
    pages : Pages, optional
        Where whole entries go; a list in memory where None. For long runs give
        :class:`~inrun_bench.attribution.ledger.pages.ParquetPages`.

    Attributes
    ----------
    steps : sequence of Entry
        One entry a step, in order: the pages.

    Examples
    --------
    >>> ledger = Ledger(3, labels=["cat", "dog", "cat"])
    >>> ledger.record(Entry(np.array([0, 1]), np.array([0.5, 0.25]), optimizer=0.0, drop=1.0))
    >>> ledger.record(Entry(np.array([2, 2]), np.array([-0.5, 0.125]), optimizer=0.125, drop=-0.25))
    >>> ledger.values
    array([ 0.5  ,  0.25 , -0.375])
    >>> ledger.accounts
    {'samples': 0.375, 'unscored': 0.0, 'optimizer': 0.125, 'residual': 0.25, 'drop': 0.75}
    >>> ledger.groups()["cat"]
    array([ 0.5  , -0.375])

    A checkpoint takes the ledger along with model and optimiser; the resumed run's numbers are those of a run that was
    never interrupted, to the last bit::

        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                    "ledger": ledger.state_dict()}, path)
        ...
        ledger = Ledger(n_samples, pages=ParquetPages(folder))      # the same arguments, the same folder
        ledger.load_state_dict(torch.load(path)["ledger"])
    """

    def __init__(
        self,
        n_samples: int,
        *,
        labels: Sequence[Hashable] | NDArray[np.generic] | None = None,
        pages: Pages | None = None,
        queries: int | None = None,
    ) -> None:
        self.steps: Pages = MemoryPages() if pages is None else pages
        self._of_queries: tuple[int, ...] = () if queries is None else (queries,)
        self._values = np.zeros((n_samples, *self._of_queries))
        self._totals: dict[str, Any] = {name: self._nothing() for name in ACCOUNTS}
        self._by_step = {name: array("d") for name in ACCOUNTS}  # compact, and cheap to add to
        self._grouping = None if labels is None else _Grouping(labels, n_samples)
        self._shares = array("d")  # [steps, groups], end to end
        self._slope_errors = array("d")

    def record(self, entry: Entry, *, slope_error: float = 0.0) -> None:
        """Book one step, whole or not at all; the ledger keeps copies of the arrays.

        Parameters
        ----------
        entry : Entry
            The step.
        slope_error : float
            See :attr:`slope_errors`.

        Raises
        ------
        ValueError
            If there is not one score for each sample of the batch, or a sample is out of range.
        """
        entry = self._checked(entry)
        shares = None if self._grouping is None else self._grouping.split(entry)
        self.steps.append(entry)  # first: it alone may fail, for the lack of space on disk
        np.add.at(self._values, entry.index, entry.scores)
        for name, amount in zip(ACCOUNTS, entry.amounts, strict=True):
            self._totals[name] = self._totals[name] + amount
            if isinstance(amount, float):
                self._by_step[name].append(amount)
            else:
                self._by_step[name].frombytes(amount.tobytes())
        self._slope_errors.append(slope_error)
        if shares is not None:
            self._shares.frombytes(shares.tobytes())

    @property
    def values(self) -> NDArray[np.float64]:
        """Sum of each sample's scores over all steps, float64 [n_samples] or [n_samples, queries], in nats; a copy."""
        return self._values.copy()

    @property
    def accounts(self) -> dict[str, Any]:
        """Totals over the run: samples + unscored + optimizer + residual = drop, in nats; of each query, [queries]."""
        return dict(self._totals)

    @property
    def by_step(self) -> dict[str, NDArray[np.float64]]:
        """The accounts of each step, float64 [steps] or [steps, queries] each, in nats; copies.

        samples + unscored + optimizer + residual = drop
        """
        return {name: self._table(amounts) for name, amounts in self._by_step.items()}

    @property
    def slope_errors(self) -> NDArray[np.float64]:
        """How far each step's scores are off, relative to their size, for lagged slopes of the optimiser; a copy.

        float64 [steps]; 0 where slopes were exact (:mod:`inrun_bench.attribution.scoring.lagged`).
        """
        return np.array(self._slope_errors)

    def groups(
        self, labels: Sequence[Hashable] | NDArray[np.generic] | None = None
    ) -> dict[Hashable, NDArray[np.float64]]:
        """Sum the scores of each group of samples, step by step.

        Parameters
        ----------
        labels : sequence [n_samples], optional
            The group of each sample; reads all pages, one after the other. The ledger's own labels where None.

        Returns
        -------
        dict of label to float64 [steps] or [steps, queries]
            In nats; the sum over groups is the sum of each step's scores.

        Raises
        ------
        ValueError
            If there are no labels, or not one for each sample.
        """
        if labels is None and self._grouping is None:
            raise ValueError("the ledger has no labels of its own; pass labels= to groups(), or to Ledger()")
        if labels is None:
            grouping, shares = self._grouping, np.array(self._shares)
        else:
            grouping = _Grouping(labels, len(self._values))
            shares = np.array([grouping.split(entry) for entry in self.steps])
        assert grouping is not None
        by_step = shares.reshape(-1, len(grouping.names), *self._of_queries)
        table = np.ascontiguousarray(np.moveaxis(by_step, 1, 0))  # [groups, steps]
        return dict(zip(grouping.names, table, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return the whole ledger as tensors and plain Python, for ``torch.save``.

        Entries in memory are part of it; entries in a folder are written there before this returns, and only their
        number is part of it.
        """
        return {
            "n_samples": len(self._values),
            "values": torch.from_numpy(self.values),
            "accounts": {
                name: total if isinstance(total, float) else torch.from_numpy(total.copy())
                for name, total in self._totals.items()
            },
            "by_step": {name: torch.from_numpy(amounts) for name, amounts in self.by_step.items()},
            "codes": None if self._grouping is None else torch.from_numpy(self._grouping.codes),
            "shares": torch.from_numpy(np.array(self._shares)),
            "slope_errors": torch.from_numpy(self.slope_errors),
            "pages": self.steps.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to where :meth:`state_dict` returned `state`; steps recorded since are dropped.

        Raises
        ------
        ValueError
            If the ledger was made with another `n_samples`, other labels or another kind of pages than that of the
            checkpoint, or the folder lacks steps that the checkpoint counts. The ledger stays as it was.
        """
        theirs_of = tuple(state["values"].shape[1:])
        if theirs_of != self._of_queries:
            raise ValueError(
                f"the checkpoint's ledger is of {theirs_of or 'no'} queries, this one of {self._of_queries or 'no'}; "
                "resume with the same ones"
            )
        if state["n_samples"] != len(self._values):
            raise ValueError(
                f"the checkpoint's ledger has {state['n_samples']} samples, this one {len(self._values)}; "
                "resume with the same training set"
            )
        mine, theirs = None if self._grouping is None else self._grouping.codes, state["codes"]
        if (mine is None) != (theirs is None) or (mine is not None and not np.array_equal(mine, _array(theirs))):
            raise ValueError(
                "the checkpoint's ledger groups its samples in another way than this one; "
                "resume with the same labels= that the run began with"
            )
        self.steps.load_state_dict(state["pages"])
        self._values = _array(state["values"])
        self._totals = {name: self._nothing() for name in ACCOUNTS} | {
            name: _array(total) if isinstance(total, Tensor) else total for name, total in state["accounts"].items()
        }
        nothing = torch.zeros_like(state["by_step"]["drop"])  # of what versions before this one did not know
        self._by_step = {name: array("d", _array(state["by_step"].get(name, nothing)).tobytes()) for name in ACCOUNTS}
        self._shares = array("d", _array(state["shares"]).tobytes())
        earlier = nothing if nothing.dim() == 1 else nothing[:, 0]
        self._slope_errors = array("d", _array(state.get("slope_errors", earlier)).tobytes())

    def _nothing(self) -> Any:
        return np.zeros(self._of_queries) if self._of_queries else 0.0

    def _table(self, amounts: array[float]) -> NDArray[np.float64]:
        """Return amounts that stand end to end, [steps] or [steps, queries]."""
        return np.array(amounts).reshape(-1, *self._of_queries) if self._of_queries else np.array(amounts)

    def _checked(self, entry: Entry) -> Entry:
        """Return the entry as own arrays of the types that it promises."""
        index = np.asarray(entry.index).astype(np.int64, casting="same_kind")
        scores = np.asarray(entry.scores).astype(np.float64, casting="same_kind")
        if index.ndim != 1 or (*index.shape, *self._of_queries) != scores.shape:
            each = f", and of {self._of_queries[0]} queries" if self._of_queries else ""
            raise ValueError(
                f"an entry has one score a sample{each}: got index {index.shape} and scores {scores.shape}"
            )
        outside = index[(index < 0) | (index >= len(self._values))]
        if len(outside):
            raise ValueError(f"index {outside[0]} is out of range: samples are numbered 0 .. {len(self._values) - 1}")
        if self._of_queries:
            optimizer, drop, unscored = (
                np.broadcast_to(np.asarray(amount, np.float64), self._of_queries).copy()
                for amount in (entry.optimizer, entry.drop, entry.unscored)
            )
            return Entry(index, scores, optimizer, drop, unscored)
        return Entry(index, scores, float(entry.optimizer), float(entry.drop), float(entry.unscored))


class _Grouping:
    """A partition of the samples into named groups."""

    def __init__(self, labels: Sequence[Hashable] | NDArray[np.generic], n_samples: int) -> None:
        by_sample = np.asarray(labels)
        if by_sample.shape != (n_samples,):
            raise ValueError(f"labels must name one group for each of {n_samples} samples, got {by_sample.shape}")
        names, self.codes = np.unique(by_sample, return_inverse=True)
        self.names: list[Hashable] = names.tolist()

    def split(self, entry: Entry) -> NDArray[np.float64]:
        """Return the sum of the entry's scores over each group, float64 [groups] or [groups, queries]."""
        shares = np.zeros((len(self.names), *entry.scores.shape[1:]))
        np.add.at(shares, self.codes[entry.index], entry.scores)
        return shares


def _array(tensor: Tensor) -> NDArray[Any]:
    """Return a copy, wherever ``torch.load`` put the tensor."""
    return tensor.numpy(force=True).copy()
