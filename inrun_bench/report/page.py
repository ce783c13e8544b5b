"""The report as a page: one HTML file that needs nothing but a browser, made from stored rows alone.

What stands on it is put together here; how it looks is in ``templates/``. The same rows give the same page.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from inrun_bench.report.coverage import foreign, holdings, numbers
from inrun_bench.report.docstrings import About, about
from inrun_bench.report.leaderboard import Cell, Column, Leaderboard, leaderboard, questions_of
from inrun_bench.report.looks import look
from inrun_bench.report.markdown import count
from inrun_bench.report.markdown_tables import Prose, Table, blocks
from inrun_bench.report.origin import environment, runs_of
from inrun_bench.report.overview import ANOTHER_LABEL, headline, methods_table
from inrun_bench.report.pictures import caption_of, picture
from inrun_bench.runs.failures import Failure, failures
from inrun_bench.runs.manifest import read_runs
from inrun_bench.runs.store import Store
from inrun_bench.version import __version__

__all__ = ["page", "write_page"]

TEMPLATES = Path(__file__).parent / "templates"
SHADES = 5


@dataclass(frozen=True)
class Section:
    """What a page shows of one experiment."""

    name: str
    summary: str
    about: About
    figure: Markup | None
    caption: str
    tables: list[Prose | Table]


def write_page(
    store: Store, experiments: Mapping[str, Any], stale: tuple[int, Counter[str]] | None = None
) -> Path:
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
    templates.globals |= {"cell": Shown, "price": _price, "numbers": numbers, "count": count, "look": look}
    return templates.get_template("page.html").render(
        folder=store.root.resolve().name,
        version=__version__,
        board=board,
        questions=list(dict.fromkeys(column.question.label for column in board.columns)),
        tasks=list(dict.fromkeys(column.task for column in board.columns)),
        another=ANOTHER_LABEL,
        unranked=[own.experiment for own in held if not _ranks(experiments, own.experiment)],
        overall=overall,
        sections=[_section(own.experiment, experiments, store) for own in held if own.experiment in experiments],
        held=held,
        failed=failed,
        absent=[name for name, each in experiments.items() if each.DEFAULT and name not in there],
        optional=[name for name, each in experiments.items() if not each.DEFAULT and name not in there],
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


def _section(name: str, experiments: Mapping[str, Any], store: Store) -> Section:
    experiment, rows = experiments[name], store.read_all(name)
    figure = picture(name, experiment, rows)
    told = experiment.table(rows) if hasattr(experiment, "table") and len(rows) else ""
    return Section(
        name,
        str(experiment.SUMMARY),
        about(experiment, name),
        figure,
        caption_of(experiment) if figure else "",
        blocks(told),
    )


class Shown:
    """A cell of the leaderboard in words: mean, interval, what is to be noted, rank and shade.

    Parameters
    ----------
    column : Column
        Where it stands.
    method : str
        Of whom.
    """

    def __init__(self, column: Column, method: str) -> None:
        own = column.cells.get(method)
        self.number = own.interval.mean if own is not None and own.rank is not None else None
        self.mean = "" if self.number is None else f"{self.number:.3f}"
        self.interval, self.note = "", ""
        self.rank, self.ranked = (own.rank if own else None), column.ranked
        if own is None:
            self.note = "failed" if method in column.failed else "not measured"
        elif own.definitions > 1:
            self.note = count(own.definitions, "definition")
        elif self.number is None:
            self.note = "no number"
        else:
            self.interval, self.note = _interval(own, column)

    @property
    def shade(self) -> int | None:
        """1 for the best of the column, :data:`SHADES` for the last; None where there is nothing to compare."""
        if self.rank is None or self.ranked < 2:  # noqa: PLR2004
            return None
        return 1 + math.floor((SHADES - 1) * (self.rank - 1) / (self.ranked - 1) + 0.5)


def _interval(own: Cell, column: Column) -> tuple[str, str]:
    _, low, high, n = own.interval
    fewer = count(n, "seed") if n < column.seeds or n == 1 else ""
    return (f"{low:.3f} to {high:.3f}" if n > 1 else ""), fewer


def _price(board: Leaderboard, place: tuple[str, str], method: str) -> tuple[float, str, str] | None:
    """Return seconds as a number, and seconds and trainings in words; None where nobody measured them."""
    own = board.prices[place].get(method)
    if own is None:
        return None
    seconds = f"{own.seconds:,.0f} s" if own.seconds >= 99.5 else f"{own.seconds:.2g} s"  # noqa: PLR2004
    trainings = "" if own.trainings is None else count_of_trainings(own.trainings)
    return own.seconds, seconds, trainings


def count_of_trainings(number: float) -> str:
    """Return a number of trainings in words; ``no training`` of none."""
    return "no training" if number == 0 else f"{number:,.0f} training{'' if number == 1 else 's'}"
