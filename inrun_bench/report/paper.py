"""Figures for print: how wide and high the page is, how large its letters, and how much fits beside each other.

A figure is drawn as ever, by the experiment's ``draw(rows)``; :mod:`inrun_bench.report.typeset` then lays its panels
out for the page. What has to be known while it is drawn is asked of the page in force, as in :func:`continued`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import matplotlib as mpl
from matplotlib import font_manager

__all__ = ["FORMATS", "Paper", "continued"]

FORMATS = ("pdf", "svg", "png")
WIDTHS, HEIGHTS, FONT_SIZES = (2.0, 24.0), (3.0, 36.0), (5.0, 20.0)  # inches, inches, points
NARROWEST = 16  # widths of a page in units of the size of its letters: narrower, no room is left for a panel
SMALLER, SMALLEST = 1.0, 2.0  # points by which ticks and legends, and numbers within panels, are smaller
POINTS = 72  # an inch
BESIDE_BARS = 0.8  # inches that labels of a panel of bars take

T = TypeVar("T")
_in_force: ContextVar[Paper | None] = ContextVar("paper", default=None)


@dataclass(frozen=True)
class Paper:
    """A page, and how letters on it look.

    Attributes
    ----------
    width : float
        Inches, which the files have exactly: 3.25 of a column, 5.5 or 7 of a page.
    height : float
        Inches that no file is higher than, if a single row of panels is not; what does not fit is continued in
        another file.
    font_size : float
        Points, of titles and labels; ticks and legends are 1 smaller, as is a title of one word too long for its
        panel, and nothing is more than 2 smaller.
    font : str
        A family that is installed; glyphs that it lacks are taken from DejaVu Sans.

    Raises
    ------
    ValueError
        If a size is out of all proportion, or there is no such font.
    """

    width: float = 5.5
    height: float = 9.0
    font_size: float = 8.0
    font: str = "DejaVu Sans"

    def __post_init__(self) -> None:
        for name, (low, high), unit in (
            ("width", WIDTHS, "inches"),
            ("height", HEIGHTS, "inches"),
            ("font_size", FONT_SIZES, "points"),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"{name} must be from {low:g} to {high:g} {unit}, got {value}")
        if self.width < (least := NARROWEST * self.font_size / POINTS):
            raise ValueError(
                f"width must be at least {NARROWEST} times font_size, {least:.2g} inches for {self.font_size:g} "
                f"points, got {self.width:g}"
            )
        installed = font_manager.get_font_names()
        if self.font not in installed:
            near = [name for name in installed if name[:4].lower() == self.font[:4].lower()] or installed
            raise ValueError(
                f"font must be one that is installed, such as {', '.join(sorted(near)[:5])}; got {self.font!r}"
            )

    @property
    def settings(self) -> dict[Any, Any]:
        """What matplotlib is to be told: sizes, and letters that look the same on every machine."""
        small = self.font_size - SMALLER
        return {
            "font.family": list(dict.fromkeys([self.font, "DejaVu Sans"])),
            "font.size": self.font_size,
            "axes.titlesize": self.font_size,
            "axes.labelsize": self.font_size,
            "xtick.labelsize": small,
            "ytick.labelsize": small,
            "legend.fontsize": small,
            "axes.linewidth": 0.6,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "xtick.major.size": 2.5,
            "ytick.major.size": 2.5,
            "xtick.minor.size": 1.5,
            "ytick.minor.size": 1.5,
            "xtick.major.pad": 2.0,
            "ytick.major.pad": 2.0,
            "axes.labelpad": 2.0,
            "grid.linewidth": 0.5,
            "hatch.linewidth": 0.5,
            "pdf.fonttype": 42,  # TrueType: text stays text, and its font is in the file
            "svg.fonttype": "path",
        }

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Draw for this page in this block."""
        token = _in_force.set(self)
        try:
            with mpl.rc_context(self.settings):
                yield
        finally:
            _in_force.reset(token)


def continued(groups: Sequence[T], bars: int) -> list[list[T]]:
    """Return the groups of a panel of bars in parts, each as wide as the page; all in one where none is in force.

    Parameters
    ----------
    groups : sequence
        What stands side by side.
    bars : int
        Of each group; a number is written above each.
    """
    paper = _in_force.get()
    if paper is None or not groups:
        return [list(groups)]
    pitch = 1.25 * (paper.font_size - SMALLEST)  # of numbers that stand upright
    fit = max(1, int((paper.width - BESIDE_BARS) * POINTS / pitch / (bars + 1)))
    length = -(-len(groups) // -(-len(groups) // fit))
    return [list(groups[first : first + length]) for first in range(0, len(groups), length)]
