"""Figures for print, with their captions: ``FOLDER/figures/paper/``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg

from inrun_bench.report.coverage import numbers
from inrun_bench.report.docstrings import paragraphs
from inrun_bench.report.figures import SETTINGS
from inrun_bench.report.looks import showing
from inrun_bench.report.markdown import count
from inrun_bench.report.origin import read_runs, runs_of
from inrun_bench.report.paper import FORMATS, Paper
from inrun_bench.report.pictures import caption_of
from inrun_bench.report.typeset import DPI, typeset
from inrun_bench.runs.store import Store
from tasks.registry import unknown_name

__all__ = ["caption", "print_figures"]

DATELESS: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}


def print_figures(
    store: Store, names: Iterable[str], experiments: Mapping[str, Any], paper: Paper, formats: Sequence[str] = ("pdf",)
) -> list[Path]:
    """Draw figures for print into the store's folder, each with its caption as ``NAME.txt``.

    A figure that is higher than the page is continued in further files: ``NAME-1.pdf``, ``NAME-2.pdf``.

    Parameters
    ----------
    store : Store
        The folder.
    names : iterable of str
        The experiments whose figures are drawn; those without rows are passed over.
    experiments : mapping
        Experiments by name.
    paper : Paper
        The page.
    formats : sequence of str
        Of :data:`inrun_bench.report.paper.FORMATS`.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    ValueError
        If there is no such format.
    """
    for form in formats:
        if form not in FORMATS:
            raise ValueError(unknown_name("format", form, list(FORMATS)))
    folder = store.root / "figures" / "paper"
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name in names:
        rows = store.read_all(name)
        if not rows.empty:
            written += _print(folder, name, experiments[name], rows, store, paper, formats)
    return written


def _print(
    folder: Path, name: str, experiment: Any, rows: pd.DataFrame, store: Store, paper: Paper, formats: Sequence[str]
) -> list[Path]:
    own = re.compile(rf"{re.escape(name)}(-\d+)?\.({'|'.join(FORMATS)}|txt)")
    for path in folder.iterdir():
        if own.fullmatch(path.name):
            path.unlink()  # of another width, perhaps in more parts
    with mpl.rc_context(SETTINGS), paper.in_force(), showing(rows["method"].dropna()):
        figure = experiment.draw(rows)
        if not figure.axes:
            return []
        FigureCanvasAgg(figure)
        told = caption(name, experiment, rows, store, figure.get_suptitle())
        parts: list[list[Path]] = []
        for page in typeset(figure, paper):
            paths = [folder / f"{name}-{len(parts) + 1}.{form}" for form in formats]
            for form, path in zip(formats, paths, strict=True):
                page.savefig(path, format=form, dpi=DPI, metadata=DATELESS[form])
            parts.append(paths)
    if len(parts) == 1:
        parts = [[path.rename(folder / f"{name}{path.suffix}") for path in parts[0]]]
    text = folder / f"{name}.txt"
    text.write_text(told + "\n", encoding="utf-8")
    return [*(path for part in parts for path in part), text]


def caption(name: str, experiment: Any, rows: pd.DataFrame, store: Store, title: str = "") -> str:
    """Return what a figure shows, its intervals, of how many seeds, and from where its rows are.

    Parameters
    ----------
    name : str
        Of the experiment.
    experiment : module or object
        With ``draw``, whose docstring says what is drawn.
    rows : DataFrame
        All of its rows.
    store : Store
        Where they are from.
    title : str
        Of the figure, which has none in print.
    """
    seeds = sorted({int(seed) for seed in rows["seed"].dropna()}) if "seed" in rows else []
    shown = [caption_of(experiment), *paragraphs(experiment.draw)[1:], *filter(None, [" ".join(title.split())])]
    over = f"{count(len(seeds), 'seed')} ({numbers(seeds)})" if seeds else ""
    runs = read_runs(store.root / "manifest.json")
    measured = [
        f"run {run.get('run', 'unknown')} of {told['started']}, commit {told['commit']}, "
        f"inrun-bench {run.get('versions', {}).get('inrun-bench', 'unknown')}"
        for run, told in zip(runs, runs_of(runs), strict=True)
    ]
    source = f"Rows: experiment {name} in folder {store.root.resolve().name}"
    sentences = [*shown, over, "; ".join([source, *measured])]
    return "\n\n".join(text if text.endswith(".") else f"{text}." for text in sentences if text)
