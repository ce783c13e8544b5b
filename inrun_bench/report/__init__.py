"""Reports: figures and summary tables, made from stored rows alone.

Each experiment draws its own figure and writes its own tables; here is what puts them together.
"""

from __future__ import annotations

from pathlib import Path

from inrun_bench.experiments import EXPERIMENTS
from inrun_bench.report.overview import headline, methods_table
from inrun_bench.store import Store

__all__ = ["headline", "update_section", "write_summary"]

BEGIN, END = "<!-- summary: begin (inrun-bench report --into) -->", "<!-- summary: end -->"


def write_summary(store: Store) -> str:
    """Write ``summary.md`` into the store's folder and return its text."""
    parts = [headline(store), methods_table(store)]
    for name, experiment in EXPERIMENTS.items():
        table = getattr(experiment, "table", None)
        rows = store.read_all(name)
        if table is not None and not rows.empty:
            parts.append(table(rows))
    text = "\n\n".join(part for part in parts if part)
    (store.root / "summary.md").write_text(text + "\n")
    return text


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
