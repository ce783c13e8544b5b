"""Tables that experiments tell in Markdown, as data: what stands above a table, its heads and its cells."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode
from markupsafe import Markup

__all__ = ["Prose", "Table", "TableCell", "blocks", "number"]

NUMBER = re.compile(r"(?:<\s*)?([-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?)(?![\w-])")  # "8-bit" is none
NEEDED = ("paragraph", "table", "emphasis", "backticks", "escape", "entity")


@dataclass(frozen=True)
class Prose:
    """A paragraph."""

    html: Markup


@dataclass(frozen=True)
class TableCell:
    """A cell, and the number that it begins with, by which a column is sorted."""

    html: Markup
    number: float | None


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes
    ----------
    caption : Markup
        The paragraph right above it; empty where there is none.
    heads : tuple of Markup
        One a column.
    rows, bounds : tuple of tuple of TableCell
        The rows, and those at the end, named in italics, that bound the others.
    """

    caption: Markup
    heads: tuple[Markup, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    bounds: tuple[tuple[TableCell, ...], ...]


def blocks(text: str) -> list[Prose | Table]:
    """Return the paragraphs and tables of a Markdown text, in order; the paragraph above a table is its caption.

    Markup that tables have no need of (links, pictures, HTML) stays text: names of methods and tasks are of anyone.
    """
    found: list[Prose | Table] = []
    reader = MarkdownIt("zero").enable([rule for rule in NEEDED if rule != "paragraph"])
    for node in SyntaxTreeNode(reader.parse(text)).children:
        if node.type != "table":
            found.append(Prose(_inline(reader, node)))
            continue
        caption = found.pop() if found and isinstance(found[-1], Prose) else None
        found.append(_table(reader, node, caption.html if isinstance(caption, Prose) else Markup("")))
    return found


def number(text: str) -> float | None:
    """Return the number that a cell begins with; None where it begins with none."""
    start = NUMBER.match(text)
    return float(start[1].replace(",", "")) if start else None


def _table(reader: MarkdownIt, node: SyntaxTreeNode, caption: Markup) -> Table:
    head, *body = list(_lines(node))
    rows: list[tuple[TableCell, ...]] = []
    bounds: list[tuple[TableCell, ...]] = []
    for line in body:
        cells = tuple(TableCell(_inline(reader, cell), number(_text(cell))) for cell in line)
        (bounds if _is_italic(line[0]) else rows).append(cells)
    return Table(caption, tuple(_inline(reader, cell) for cell in head), tuple(rows), tuple(bounds))


def _lines(table: SyntaxTreeNode) -> Iterator[list[SyntaxTreeNode]]:
    for part in table.children:  # head and body
        for line in part.children:
            yield line.children


def _inline(reader: MarkdownIt, node: SyntaxTreeNode) -> Markup:
    inside = [child for child in node.children if child.type == "inline"]
    return Markup("").join(  # what the reader renders is escaped
        Markup(reader.renderer.render(child.to_tokens(), reader.options, {}))  # noqa: S704
        for child in inside
    )


def _text(node: SyntaxTreeNode) -> str:
    return "".join(child.content for child in node.children if child.type == "inline")


def _is_italic(cell: SyntaxTreeNode) -> bool:
    text = _text(cell)
    return len(text) > 2 and text[0] == text[-1] == "*" and text[1] != "*"
