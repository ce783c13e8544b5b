"""Figures: stored rows in, picture out; an experiment's ``draw(rows) -> matplotlib.figure.Figure``."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from PIL import Image

from inrun_bench.report.looks import showing
from inrun_bench.runs.store import Store

__all__ = ["DPI", "SETTINGS", "draw_figures", "drawn", "with_a_palette"]


def drawn(experiments: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the experiments that have a figure."""
    return tuple(name for name, experiment in experiments.items() if hasattr(experiment, "draw"))


SETTINGS: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.grid": True,
    "grid.color": "0.92",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "inrun-bench",  # names follow from what is drawn
    "svg.fonttype": "none",
}


DPI = 150


def draw_figures(store: Store, names: Iterable[str], experiments: Mapping[str, Any]) -> list[Path]:
    """Draw figures as PNG and SVG into the store's folder; experiments without rows are passed over.

    Parameters
    ----------
    store : Store
        The folder.
    names : iterable of str
        The experiments whose figures are drawn.
    experiments : mapping
        Experiments by name.

    Returns
    -------
    list of Path
        The files written.
    """
    folder = store.root / "figures"
    folder.mkdir(exist_ok=True)
    written = []
    for name in names:
        rows = store.read_all(name)
        if rows.empty:
            continue
        with mpl.rc_context(SETTINGS), showing(rows["method"].dropna()):
            figure = experiments[name].draw(rows)
            if not figure.axes:
                continue
            picture, drawing = (folder / f"{name}{suffix}" for suffix in (".png", ".svg"))
            figure.savefig(picture, dpi=DPI, bbox_inches="tight")
            figure.savefig(drawing, dpi=DPI, bbox_inches="tight", metadata={"Date": None})
            picture.write_bytes(with_a_palette(picture.read_bytes()))
            written += [picture, drawing]
    return written


def with_a_palette(png: bytes) -> bytes:
    """Return a PNG in 256 colours, enough for lines and their edges: rare ones are kept, common ones as they are."""
    with Image.open(io.BytesIO(png)) as whole:
        few = whole.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    written = io.BytesIO()
    few.save(written, format="png", dpi=(DPI, DPI), optimize=True)
    return written.getvalue()
