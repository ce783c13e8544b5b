"""Tables in CSV: numbers, interval ends and numbers of seeds in columns of their own."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from inrun_bench.report.markdown_tables import Table

__all__ = ["Number", "numbers_in", "table_csv"]

NUMBER = r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?"
PART = re.compile(
    rf"(?P<mean>{NUMBER})"
    rf"(?: \[(?P<low>{NUMBER}), (?P<high>{NUMBER})\])?"
    r"(?: \((?:(?P<above>\d+) of (?P<of>\d+)|(?P<seeds>\d+) seeds?)\))?"
    r"(?: (?P<unit>%|s|ms|MB|GB|MiB|GiB))?"
)
NEXT = re.compile(r", | / | \((?=[-+\d.e,]+\)$)")
SEEDS = re.compile(r"(\d+) seeds?\b")


@dataclass(frozen=True)
class Number:
    """A number of a cell.

    Attributes
    ----------
    mean : float or None
        The number; None stands for nothing.
    low, high : float or None
        Ends of its interval, where it has one.
    n : int or None
        Of how many seeds it is, where the cell says so.
    above : int or None
        In how many of these it is above 0, of paired differences.
    unit : str
        As printed; empty where there is none.
    """

    mean: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    above: int | None = None
    unit: str = ""


NOTHING = Number()


def numbers_in(text: str) -> list[Number]:
    """Return the numbers that a cell consists of (``0.91 [0.88, 0.93], 2 s``); none where there are other words."""
    found, start = [], 0
    while match := PART.match(text, start):
        found.append(_number(match))
        if match.end() == len(text.removesuffix(")")) or match.end() == len(text):
            return found
        following = NEXT.match(text, match.end())
        if following is None:
            break
        start = following.end()
    return []


def table_csv(table: Table, caption: Markup) -> str:
    """Return a table; a cell's number is in the column of its head, and what belongs to it in columns beside that.

    These are ``HEAD low``, ``HEAD high``, ``HEAD n`` and ``HEAD above`` (of paired differences: in how many seeds it is
    above 0); further numbers of a cell are in ``HEAD 2`` and so on, and what is no number in ``HEAD note``. Units stand
    in the heads. A table with rows that bound the others (noise ceilings) tells them by its column ``bound``.

    Parameters
    ----------
    table : Table
        Its heads and cells.
    caption : Markup
        What stands above it, which says of how many seeds intervals are.
    """
    lines = [*table.rows, *table.bounds]
    said = SEEDS.search(caption.striptags())
    seeds = int(said[1]) if said else None
    columns: list[tuple[str, list[str]]] = []
    for place, head in enumerate(table.heads):
        texts = [line[place].html.striptags() for line in lines]
        columns += _columns(head.striptags(), texts, seeds) if place else [(head.striptags(), texts)]
    if table.bounds:
        columns.append(("bound", ["no"] * len(table.rows) + ["yes"] * len(table.bounds)))
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow([name for name, _ in columns])
    writer.writerows(zip(*(cells for _, cells in columns), strict=True))
    return written.getvalue()


def _number(match: re.Match[str]) -> Number:
    n, above, low, high = match["of"] or match["seeds"], match["above"], match["low"], match["high"]
    return Number(
        _float(match["mean"]),
        _float(low) if low else None,
        _float(high) if high else None,
        int(n) if n else None,
        int(above) if above else None,
        match["unit"] or "",
    )


def _float(text: str) -> float:
    return float(text.replace(",", ""))


def _columns(head: str, texts: Sequence[str], seeds: int | None) -> list[tuple[str, list[str]]]:
    """Return the columns of a head; as printed where fewer than half of the cells are numbers."""
    cells = [numbers_in(text) for text in texts]
    if 2 * sum(map(bool, cells)) < max(1, sum(map(bool, texts))):
        return [(head, list(texts))]
    columns = []
    for place in range(max(map(len, cells))):
        own = [cell[place] if place < len(cell) else NOTHING for cell in cells]
        units = {number.unit for number in own if number.mean is not None}
        name = f"{head} {place + 1}" if place else head
        unit = "".join(units) if len(units) == 1 else ""
        parts: dict[str, list[float | None]] = {
            f"{name} ({unit})" if unit else name: [number.mean for number in own],
            f"{name} low": [number.low for number in own],
            f"{name} high": [number.high for number in own],
            f"{name} n": [None if number.low is None else number.n or seeds for number in own],
            f"{name} above": [number.above for number in own],
        }
        columns += [(part, _written(values)) for part, values in parts.items() if set(values) != {None}]
    notes = ["" if cell else text for cell, text in zip(cells, texts, strict=True)]
    return [*columns, (f"{head} note", notes)] if any(notes) else columns


def _written(values: Iterable[float | None]) -> list[str]:
    return ["" if value is None else f"{value:.15g}" for value in values]
