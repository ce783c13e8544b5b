"""The report as a page: one HTML file that needs nothing but a browser, made from stored rows alone.

What stands on it is put together here; how it looks is in ``templates/``. The same rows give the same page.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from inrun_bench.report.cells import NOT_MEASURED, cell_text, price_text
from inrun_bench.report.coverage import foreign, holdings, numbers
from inrun_bench.report.docstrings import About, about
from inrun_bench.report.leaderboard import leaderboard, questions_of
from inrun_bench.report.looks import look
from inrun_bench.report.markdown import count
from inrun_bench.report.markdown_tables import Prose, Table, blocks
from inrun_bench.report.origin import environment, read_runs, runs_of
from inrun_bench.report.overview import ANOTHER_LABEL, headline, methods_table
from inrun_bench.report.pictures import caption_of, picture
from inrun_bench.runs.failures import failures
from inrun_bench.runs.store import Store
from inrun_bench.version import __version__

__all__ = ["page", "write_page"]

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Section:
    """What a page shows of one experiment; `anchor` is where links to it lead."""

    name: str
    anchor: str
    summary: str
    about: About
    figure: Markup | None
    caption: str
    tables: list[Prose | Table]


def write_page(store: Store, experiments: Mapping[str, Any], stale: tuple[int, Counter[str]] | None = None) -> Path:
    """Write ``report.html`` into the store's folder and return its path; arguments as for :func:`page`."""
    path = store.root / "report.html"
    path.write_text(page(store, experiments, stale), encoding="utf-8")
    return path


def page(store: Store, experiments: Mapping[str, Any], stale: tuple[int, Counter[str]] | None = None) -> str:
    """Return a folder of results as one HTML page.

    Parameters
    ----------
    store : Store
        The folder.
    experiments : mapping
        Experiments by name. Rows of others are counted, and nothing more.
    stale : (int, Counter), optional
        How many units are out of date and why (:func:`inrun_bench.runs.fingerprint.outdated`); where None, the page
        says that nobody looked.

    Raises
    ------
    ValueError
        If the folder has no rows.
    """
    if not store.experiments():
        raise ValueError(
            f"no rows in {str(store.root)!r}, so that there is nothing to show; run "
            f"'inrun-bench run --out {store.root}' first"
        )
    failed, held = failures(store.root), holdings(store, experiments)
    board = leaderboard(
        store, experiments, {(each.unit.experiment, each.unit.task, each.unit.method) for each in failed}
    )
    there = {own.experiment for own in held}
    overall = [block for text in (headline(store), methods_table(store)) if text for block in blocks(text)]
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals |= {
        "cell_text": cell_text,
        "price_text": price_text,
        "numbers": numbers,
        "count": count,
        "look": look,
    }
    return templates.get_template("page.html").render(
        folder=store.root.resolve().name,
        version=__version__,
        board=board,
        questions=list(dict.fromkeys(column.question.label for column in board.columns)),
        tasks=list(dict.fromkeys(column.task for column in board.columns)),
        another=ANOTHER_LABEL,
        not_measured=NOT_MEASURED,
        unranked=[own.experiment for own in held if not _ranks(experiments, own.experiment)],
        overall=overall,
        sections=[_section(own.experiment, experiments, store) for own in held if own.experiment in experiments],
        held=held,
        failed=failed,
        absent=[name for name in experiments if name not in there and _is_default(experiments[name])],
        optional=[name for name in experiments if name not in there and not _is_default(experiments[name])],
        foreign=foreign(held, experiments),
        stale=stale,
        seeds=sorted({seed for own in held for seed in own.seeds}),
        single=sorted({column.task for column in board.columns if column.seeds == 1}),
        environment=environment(runs := read_runs(store.root / "manifest.json")),
        runs=runs_of(runs),
        is_table=lambda block: isinstance(block, Table),
    )


def _ranks(experiments: Mapping[str, Any], name: str) -> bool:
    return name in experiments and bool(questions_of(experiments[name]))


def _is_default(experiment: object) -> bool:
    return bool(getattr(experiment, "DEFAULT", True))


def _section(name: str, experiments: Mapping[str, Any], store: Store) -> Section:
    experiment, rows = experiments[name], store.read_all(name)
    anchor = f"experiment-{re.sub(r'[^a-zA-Z0-9]+', '-', name)}"
    figure = picture(anchor, experiment, rows)
    told = experiment.table(rows) if hasattr(experiment, "table") and len(rows) else ""
    return Section(
        name,
        anchor,
        str(getattr(experiment, "SUMMARY", "")),
        about(experiment, name),
        figure,
        caption_of(experiment) if figure else "",
        blocks(told),
    )
