"""Pages of the ledger on disk, for runs whose steps do not fit into memory.

A folder holds part files ``part-000000.parquet``, ``part-000001.parquet``, ... with one row a step:

=========  =============  ==========================================================================
column     type           content
=========  =============  ==========================================================================
step       int64          number of the step, from 0
sample     list<int64>    samples of the batch
score      list<float64>  their scores, in nats
optimizer  float64        what the step does with an empty coalition, in nats
drop       float64        measured fall of the validation loss, in nats
unscored   float64        what parameters brought that make no scores, in nats; files of older versions have none
=========  =============  ==========================================================================

Of an engine with ``per_query=True``, each score and each amount is a list, one number a query.

Any change of a bit is found when a part is read (:mod:`inrun_bench.attribution.ledger.parquet`).

A step lies in one part, and a part in one file that appears whole or not at all: whatever moment a run is killed at,
the folder holds the first so many steps of it. Which steps share a part depends on their sizes alone, not on when
checkpoints were taken, so a run that was interrupted and resumed leaves the files of one that never was.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from inrun_bench.attribution.ledger.ledger import Entry
from inrun_bench.attribution.ledger.parquet import read_footer, read_table, sealed

__all__ = ["SCHEMA", "ParquetPages"]

SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("sample", pa.list_(pa.int64())),
        ("score", pa.list_(pa.float64())),
        ("optimizer", pa.float64()),
        ("drop", pa.float64()),
        ("unscored", pa.float64()),
    ]
)
OLDER = SCHEMA.names[:-1]
OF_QUERIES = pa.schema(
    [
        ("step", pa.int64()),
        ("sample", pa.list_(pa.int64())),
        ("score", pa.list_(pa.list_(pa.float64()))),
        ("optimizer", pa.list_(pa.float64())),
        ("drop", pa.list_(pa.float64())),
        ("unscored", pa.list_(pa.float64())),
    ]
)


class ParquetPages(Sequence[Entry]):
    """Entries in a folder of Parquet files; a checkpoint holds only their number.

    The present part stays in memory until it is full. Call :meth:`flush` when the run ends;
    ``Ledger.state_dict`` does so for checkpoints. Reading back holds one more part in memory, never all.

    Parameters
    ----------
    folder : path
        Made where it does not exist. Where it holds the pages of an earlier run, they can be read; to write, go on
        after them by ``Ledger.load_state_dict``, or begin anew by ``truncate(0)``.
    rows_per_part : int
        How many scores a part holds at most, unless a single step has more; a row takes 16 bytes in memory, and each
        step some 400 more.

    Attributes
    ----------
    buffered : int
        Scores in memory.

    Raises
    ------
    ValueError
        If the folder holds something else, or a part is missing, damaged or without a checksum; the message names it.

    Examples
    --------
    >>> import tempfile, numpy as np, pandas as pd
    >>> from inrun_bench.attribution.ledger.ledger import Ledger
    >>> folder = tempfile.TemporaryDirectory()
    >>> pages = ParquetPages(folder.name)
    >>> ledger = Ledger(3, pages=pages)
    >>> ledger.record(Entry(np.array([0, 2]), np.array([0.5, 0.25]), optimizer=0.0, drop=0.75))
    >>> ledger.record(Entry(np.array([2, 1]), np.array([-0.5, 0.125]), optimizer=0.25, drop=-0.125))
    >>> pages.flush()

    Anything that reads Parquet reads the folder; one line of pandas gives a row a score, or a row a step:

    >>> pd.read_parquet(folder.name).explode(["sample", "score"])[["step", "sample", "score"]]
       step sample  score
    0     0      0    0.5
    0     0      2   0.25
    1     1      2   -0.5
    1     1      1  0.125
    >>> pd.read_parquet(folder.name, columns=["step", "optimizer", "drop"])
       step  optimizer   drop
    0     0       0.00  0.750
    1     1       0.25 -0.125
    >>> folder.cleanup()
    """

    def __init__(self, folder: str | Path, *, rows_per_part: int = 1_000_000) -> None:
        if rows_per_part < 1:
            raise ValueError(f"rows_per_part must be at least 1, got {rows_per_part}")
        self.folder = Path(folder)
        self.rows_per_part = rows_per_part
        self.folder.mkdir(parents=True, exist_ok=True)
        self._starts = list(accumulate(self._count_steps(), initial=0))  # first step of each part, the open one last
        self._open: list[Entry] = []  # the part that is being filled
        self._saved = True
        self._recalled: tuple[int, list[Entry]] = (-1, [])  # number and content of the part last read
        self._earlier = len(self) > 0  # pages of an earlier run, that nobody said may be added to
        self.buffered = 0

    def append(self, entry: Entry) -> None:
        """Add the next step.

        Raises
        ------
        RuntimeError
            If the folder holds the pages of an earlier run that was not restored.
        OSError
            If a part is full and cannot be written; the step is not added.
        """
        self._refuse_earlier()
        if self._open and self.buffered + len(entry.index) > self.rows_per_part:
            self._close()
        self._open.append(entry)
        self._saved = False
        self.buffered += len(entry.index)

    def flush(self) -> None:
        """Write what is in memory. The part stays open: it is written again when there is more of it."""
        if self._saved:
            return
        of_queries = any(entry.scores.ndim == 2 for entry in self._open)
        table = pa.table(
            {
                "step": range(self._starts[-1], len(self)),
                "sample": [entry.index for entry in self._open],
                "score": [list(entry.scores) if of_queries else entry.scores for entry in self._open],
                "optimizer": [entry.optimizer for entry in self._open],
                "drop": [entry.drop for entry in self._open],
                "unscored": [entry.unscored for entry in self._open],
            },
            schema=OF_QUERIES if of_queries else SCHEMA,
        )
        path = self._path(len(self._starts) - 1)
        partial = path.with_name(f".{path.name}.partial")  # hidden: readers of the folder pass over it
        try:
            with partial.open("wb") as file:
                file.write(sealed(table, compression="zstd", use_dictionary=False))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        self._saved = True

    def truncate(self, n_steps: int) -> None:
        """Keep the first `n_steps` steps, on disk as well, and go on after them.

        Raises
        ------
        ValueError
            If there are fewer.
        """
        if not 0 <= n_steps <= len(self):
            raise ValueError(f"folder {str(self.folder)!r} holds {len(self)} steps, so it cannot be cut to {n_steps}")
        if self._open:
            self._close()
        self._recalled = (-1, [])
        while len(self._starts) > 1 and self._starts[-2] >= n_steps:  # last part first: no gap at any moment
            self._path(len(self._starts) - 2).unlink()
            self._starts.pop()
        if n_steps:  # the last part that is left becomes the open one again
            part, end = self._read(len(self._starts) - 2), self._starts.pop()
            self._open = part[: n_steps - self._starts[-1]]
            self._saved = n_steps == end
            self.buffered = sum(len(entry.index) for entry in self._open)
            self.flush()
        self._earlier = False

    def state_dict(self) -> dict[str, Any]:
        """Write what is in memory, and return the number of steps and the last one's drop, which tells runs apart.

        Raises
        ------
        RuntimeError
            If the folder holds the pages of an earlier run that was not restored.
        """
        self._refuse_earlier()
        self.flush()
        return {"steps": len(self), "drop": _first(self[-1].drop) if len(self) else 0.0}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Drop the steps that were written after the checkpoint, and go on from there.

        Raises
        ------
        ValueError
            If the folder lacks steps that the checkpoint counts or holds those of another run, or the checkpoint's
            steps were in memory.
        """
        if "index" in state:
            raise ValueError(
                "the checkpoint holds its steps itself, this ledger streams them to "
                f"{str(self.folder)!r}; resume with a ledger that keeps them in memory, without pages="
            )
        steps = state["steps"]
        if steps > len(self):
            raise ValueError(
                f"the checkpoint was taken after {steps} steps, but folder {str(self.folder)!r} holds {len(self)}; "
                "resume with the folder that the run wrote to"
            )
        if steps and _first(self[steps - 1].drop).hex() != state["drop"].hex():  # as text, where nan is nan
            raise ValueError(
                f"folder {str(self.folder)!r} holds another run than the checkpoint's: the loss drops of step "
                f"{steps - 1} differ; resume with the folder that the run wrote to"
            )
        self.truncate(steps)

    def __len__(self) -> int:
        return self._starts[-1] + len(self._open)

    @overload
    def __getitem__(self, number: int) -> Entry: ...

    @overload
    def __getitem__(self, number: slice) -> list[Entry]: ...

    def __getitem__(self, number: int | slice) -> Entry | list[Entry]:
        if isinstance(number, slice):
            return [self[step] for step in range(*number.indices(len(self)))]
        step = range(len(self))[number]  # counts from the end, and refuses what is out of range, as a list does
        part = bisect_right(self._starts, step) - 1
        if part == len(self._starts) - 1:
            return self._open[step - self._starts[part]]
        if self._recalled[0] != part:
            self._recalled = (part, self._read(part))
        return self._recalled[1][step - self._starts[part]]

    def _close(self) -> None:
        self.flush()
        self._starts.append(len(self))
        self._open, self.buffered = [], 0

    def _read(self, part: int) -> list[Entry]:
        table = read_table(self._path(part))
        sample, score = (table[name].combine_chunks() for name in ("sample", "score"))
        offsets, index = (array.to_numpy() for array in (sample.offsets, sample.values))
        names = [name for name in ("optimizer", "drop", "unscored") if name in table.column_names]
        columns: list[list[Any]] = [table[name].to_pylist() for name in names]
        if table.schema.types == OF_QUERIES.types:
            columns = [[np.array(amount, np.float64) for amount in column] for column in columns]
            scores = score.values.values.to_numpy().reshape(len(index), -1)
        else:
            scores = score.values.to_numpy()
        amounts = zip(*columns, strict=True)
        return [
            Entry(index[begin:end], scores[begin:end], *own)
            for begin, end, own in zip(offsets[:-1], offsets[1:], amounts, strict=True)
        ]

    def _path(self, part: int) -> Path:
        return self.folder / f"part-{part:06d}.parquet"

    def _count_steps(self) -> Iterator[int]:
        """Yield the number of steps in each part; refuse a folder that is not ours, or not whole."""
        names = sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("."))
        for part, name in enumerate(names):
            path = self._path(part)
            if name != path.name:
                raise ValueError(
                    f"folder {str(self.folder)!r} holds {name!r} where the pages of a ledger would have {path.name!r}; "
                    "choose an empty folder, or one that holds the whole pages of a run"
                )
            footer = read_footer(path)
            columns = footer.schema.to_arrow_schema().names
            if columns not in (SCHEMA.names, OLDER):
                raise ValueError(
                    f"{str(path)!r} has columns {columns}, the pages of a ledger have {SCHEMA.names}; "
                    "choose an empty folder"
                )
            yield footer.num_rows

    def _refuse_earlier(self) -> None:
        if self._earlier:
            raise RuntimeError(
                f"folder {str(self.folder)!r} holds {len(self)} steps of an earlier run; restore its checkpoint by "
                "Ledger.load_state_dict to go on after them, call truncate(0) to drop them, or choose another folder"
            )


def _first(amount: Any) -> float:
    """Return an amount, or that of the first query."""
    return float(np.ravel(amount)[0])
