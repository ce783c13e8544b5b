"""Reports: figures and summary tables, made from stored rows alone.

Each experiment draws its own figure and writes its own tables; here is what puts them together.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inrun_bench.report.overview import headline, methods_table
from inrun_bench.runs.store import Store

__all__ = ["headline", "marks", "tables_of", "update_page", "update_section", "write_summary"]


def marks(name: str) -> tuple[str, str]:
    """Return the lines of a Markdown file between which an experiment's tables go, or the headline, `summary`."""
    return f"<!-- {name}: begin (inrun-bench report --into) -->", f"<!-- {name}: end -->"


BEGIN, END = marks("summary")


def write_summary(store: Store, experiments: Mapping[str, Any]) -> str:
    """Write ``summary.md`` into the store's folder and return its text."""
    text = "\n\n".join(tables_of(store, experiments).values())
    (store.root / "summary.md").write_text(text + "\n")
    return text


def tables_of(store: Store, experiments: Mapping[str, Any]) -> dict[str, str]:
    """Return what stands in ``summary.md``, in order: ``headline``, ``methods``, and tables by experiment."""
    found = {"headline": headline(store), "methods": methods_table(store), **_tables(store, experiments)}
    return {name: text for name, text in found.items() if text}


def _tables(store: Store, experiments: Mapping[str, Any]) -> dict[str, str]:
    """Return what the experiments have to tell of their rows, by name."""
    found = {}
    for name, experiment in experiments.items():
        table, rows = getattr(experiment, "table", None), store.read_all(name)
        if table is not None and not rows.empty:
            found[name] = table(rows)
    return found


def update_page(path: Path, store: Store, experiments: Mapping[str, Any]) -> None:
    """Put tables of a folder between their marks in a Markdown file, as far as it has them.

    Marks are of an experiment's name, or of ``summary``, the headline. Those that name the folder, too (``scale of
    FOLDER``), are for that folder alone, and where a page has some, others are left as they are.

    Raises
    ------
    ValueError
        If it has none, or the folder holds nothing that could go between them.
    """
    page, tables = path.read_text(), {"summary": headline(store), **_tables(store, experiments)}
    own = {f"{name} of {store.root.name}": told for name, told in tables.items()}
    for found in (own, tables):
        marked = [name for name, told in found.items() if told and marks(name)[0] in page]
        for name in marked:
            update_section(path, found[name], *marks(name))
        if marked:
            return
    if not tables["summary"]:
        having = ", ".join(name for name, told in tables.items() if told) or "nothing"
        raise ValueError(
            f"{str(path)!r} has no marks for the tables of {store}, which are of {having}; put a line "
            f"{marks('NAME')[0]!r} and a line {marks('NAME')[1]!r} where those of NAME shall go"
        )
    update_section(path, tables["summary"])


def update_section(path: Path, summary: str, begin: str = BEGIN, end: str = END) -> None:
    """Put `summary` between the lines `begin` and `end` of a Markdown file.

    Raises
    ------
    ValueError
        If the file does not hold both marks, in order.
    """
    text = path.read_text()
    head, found, rest = text.partition(begin)
    _, ended, tail = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"{str(path)!r} must hold the lines {begin!r} and {end!r} for the summary to go between")
    path.write_text(f"{head}{begin}\n\n{summary}\n\n{end}{tail}")
