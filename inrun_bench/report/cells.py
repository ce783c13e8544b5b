"""What stands in the cells of the leaderboard, in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from inrun_bench.report.leaderboard import Cell, Column, Leaderboard
from inrun_bench.report.markdown import count

__all__ = ["NOT_MEASURED", "SHADES", "CellText", "cell_text", "price_text", "shade"]

NOT_MEASURED = "not measured"
SHADES = 5
"""From the first of a column, 1, to the last."""


@dataclass(frozen=True)
class CellText:
    """A cell in words.

    Attributes
    ----------
    number : float or None
        By which the column is sorted; None where there is no mean.
    mean, interval, note : str
        The mean, its interval, and what is to be said beside them or in their place; empty where there is nothing.
    rank, shade : int or None
        Of the mean in its column.
    """

    number: float | None
    mean: str = ""
    interval: str = ""
    note: str = ""
    rank: int | None = None
    shade: int | None = None


def cell_text(column: Column, method: str) -> CellText:
    """Return what stands in a column for a method."""
    own = column.cells.get(method)
    if own is None:
        return CellText(None, note="failed" if method in column.failed else NOT_MEASURED)
    if own.definitions > 1:
        return CellText(None, note=count(own.definitions, "definition"))
    mean, low, high, n = own.interval
    if own.rank is None:
        return CellText(None, note="no number")
    return CellText(
        mean,
        f"{mean:.3f}",
        f"{low:.3f} to {high:.3f}" if n > 1 else "",
        _note(own, method, column),
        own.rank,
        shade(own.rank, column.ranked),
    )


def shade(rank: int, ranked: int) -> int | None:
    """Return the shade of a rank, 1 to :data:`SHADES`; None where there is nothing to compare with."""
    return 1 + math.floor((SHADES - 1) * (rank - 1) / (ranked - 1) + 0.5) if ranked > 1 else None


def price_text(board: Leaderboard, place: tuple[str, str], method: str) -> CellText:
    """Return what the values of all samples of a task take, in seconds; and, as a note, in trainings."""
    own = board.prices[place].get(method)
    if own is None:
        return CellText(None, note=NOT_MEASURED)
    whole = own.seconds >= 99.5
    trainings = "" if own.trainings is None else f"{own.trainings:,.0f} training{'' if own.trainings == 1 else 's'}"
    return CellText(own.seconds, f"{own.seconds:{',.0f' if whole else '.2g'}} s", note=trainings)


def _note(own: Cell, method: str, column: Column) -> str:
    """Return of how few seeds a mean is, where others have more or it is of one; and that some failed."""
    n = own.interval.n
    few = [count(n, "seed")] if n == 1 or n < column.seeds else []
    return ", ".join([*few, *(["others failed"] if method in column.failed else [])])
