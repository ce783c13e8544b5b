"""Figures: stored rows in, picture out; one file a figure, named after the experiment whose rows it draws.

A figure is a module with ``draw(rows) -> matplotlib.figure.Figure``. Nothing here sees a live object.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, cast

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from inrun_bench.store import Store
from tasks.registry import Registry

__all__ = ["FIGURES", "draw_figures"]


class Drawing(Protocol):
    """What a module of this package offers."""

    def draw(self, rows: pd.DataFrame) -> Figure:
        """Return the picture of an experiment's rows; without axes where they hold nothing to draw."""


def _collect(name: str, module: ModuleType) -> dict[str, Drawing]:
    return {name: cast(Drawing, module)} if hasattr(module, "draw") else {}


FIGURES: Registry[Drawing] = Registry("figure", sys.modules[__name__], _collect)

SETTINGS: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.grid": True,
    "grid.color": "0.92",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "inrun-bench",  # the same rows give the same bytes
    "svg.fonttype": "none",
}


def draw_figures(store: Store, names: Iterable[str]) -> list[Path]:
    """Draw figures as PNG and SVG into the store's folder; experiments without rows are passed over.

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
        with mpl.rc_context(SETTINGS):
            figure = FIGURES[name].draw(rows)
            if not figure.axes:
                continue
            for suffix, metadata in ((".png", None), (".svg", {"Date": None})):
                path = folder / f"{name}{suffix}"
                figure.savefig(path, dpi=150, bbox_inches="tight", metadata=metadata)
                written.append(path)
    return written
