"""Tables of a folder in files of their own, for a paper (LaTeX) and for analysis (CSV): ``FOLDER/tables/``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from inrun_bench.report import tables_of
from inrun_bench.report.csv_tables import table_csv
from inrun_bench.report.latex_tables import latex
from inrun_bench.report.markdown_tables import Prose, Table, blocks
from inrun_bench.runs.store import Store
from tasks.registry import unknown_name

__all__ = ["TABLE_FORMATS", "write_tables"]

SUFFIXES = {"latex": ".tex", "csv": ".csv"}
TABLE_FORMATS = tuple(SUFFIXES)


def write_tables(store: Store, experiments: Mapping[str, Any], formats: Iterable[str]) -> list[Path]:
    """Write the tables of ``summary.md`` into the store's folder, one file a table.

    Files are called by the experiment, and numbered where it has several tables; the first tables of the summary are
    called ``headline`` and ``methods``. What stands above several tables stands above each.

    Parameters
    ----------
    store : Store
        The folder.
    experiments : mapping
        Experiments by name.
    formats : iterable of str
        Of :data:`TABLE_FORMATS`; files of these formats that were there before are removed.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    ValueError
        If there is no such format.
    """
    formats = list(formats)
    for form in formats:
        if form not in SUFFIXES:
            raise ValueError(unknown_name("format", form, list(SUFFIXES)))
    if not formats:
        return []
    folder = store.root / "tables"
    folder.mkdir(exist_ok=True)
    for form in formats:
        for path in folder.glob(f"*{SUFFIXES[form]}"):
            path.unlink()
    written = []
    for name, text in tables_of(store, experiments).items():
        tables = list(_captioned(text))
        for number, (caption, table) in enumerate(tables, 1):
            stem = f"{name}-{number}" if len(tables) > 1 else name
            for form in formats:
                path = folder / f"{stem}{SUFFIXES[form]}"
                label = "tab:" + re.sub(r"[^a-zA-Z0-9]+", "-", f"{store.root.resolve().name}-{stem}")
                told = table_csv(table, caption) if form == "csv" else latex(table, label, caption)
                path.write_text(told, encoding="utf-8")
                written.append(path)
    return written


def _captioned(text: str) -> Iterator[tuple[Markup, Table]]:
    """Yield the tables of a text, each with what is said above it and above those before."""
    above = Markup("")
    for block in blocks(text):
        if isinstance(block, Prose):
            above = block.html
        else:
            yield Markup(" ").join(part for part in (above, block.caption) if part), block
