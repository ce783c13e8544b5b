"""How methods look, the same in every figure."""

from __future__ import annotations

import colorsys
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import ArrayLike

from inrun_bench.methods import METHODS, method_of
from inrun_bench.report.markdown import count

__all__ = [
    "FAMILIES",
    "TASKS_A_ROW",
    "WIDEST",
    "Look",
    "band",
    "break_labels",
    "dot",
    "foremost",
    "hatched",
    "in_order",
    "in_table_alone",
    "legend",
    "look",
    "panels",
    "points",
    "ratio_axis",
    "shaded",
    "showing",
]

TASKS_A_ROW = 4
"""Where a figure shows all of them."""

WIDEST, TALLEST, A_LEGEND_COLUMN, BETWEEN = 10.8, 11.0, 2.9, 0.1  # inches
A_LETTER, SHORTEST = 0.6, 6  # width of a letter, in units of its size; letters of the shortest line


HATCHES = ("", "//", "\\\\", "..", "xx", "++", "oo", "--", "||", "**")
Marker: TypeAlias = Any  # what matplotlib takes: a name, or (corners, style, angle)

MARKUP = re.compile(r"[\\`*|]|\b_|_\b")
LIGHTEST, DARKEST = 0.88, 0.12  # of a family's colours


@dataclass(frozen=True)
class Look:
    """Label, colour, marker (of points and lines) and hatch (of bars) of a method."""

    label: str
    color: Any
    marker: Marker
    hatch: str = ""

    @property
    def markdown(self) -> str:
        """The label in Markdown, in which some of its characters would mean something."""
        return MARKUP.sub(r"\\\g<0>", self.label)


@dataclass(frozen=True)
class Family:
    """Methods that share an idea: one hue, from light to dark, and markers of their own.

    Attributes
    ----------
    hue : float or None
        In turns of the colour circle; None is grey.
    markers : tuple
        As matplotlib names them, one a method; who comes after them is marked by a letter and a number.
    hatch : int
        Where in :data:`HATCHES` the family begins.
    """

    hue: float | None
    markers: tuple[Marker, ...]
    hatch: int


FAMILIES = {
    "reference": Family(None, ("*",), 0),
    "in-run": Family(0.6, ("v", "o", "^", "<", ">", *(f"${letter}$" for letter in "PWGMTALEJKNQUY")), 0),
    "differentiated runs": Family(0.87, ("d", "D", "h", (4, 1, 45), (6, 1, 0), (9, 1, 0), (9, 0, 0), (3, 1, 180)), 1),
    "permutations": Family(0.07, ("s", "P", "X", "p", (8, 1, 0), (5, 0, 36), (5, 1, 18), (8, 0, 22), (3, 0, 15)), 2),
    "coalitions": Family(0.15, ((3, 1, 0), (7, 0, 0), (7, 1, 0), (3, 0, 30), (5, 1, 36)), 3),
    "neighbours": Family(0.42, ("8", "H", (4, 1, 0)), 4),
    "rankings": Family(0.75, ((5, 0, 0), (5, 1, 0), (7, 0, 25)), 7),
    "chance": Family(None, ("x",), 0),
    "steps": Family(0.1, ("1", "2", "3", "4", "+"), 5),
    "other": Family(0.98, (), 6),
}
"""By name, in the order in which they are shown."""

OTHERS = {
    "reference": {"reference": "retraining reference"},
    "in-run": {
        "inrun-first-project": "In-Run, first order, project rule alone",
        "inrun-first-weight-gradient": "In-Run, first order, weight-gradient rule alone",
        "inrun-first-gram": "In-Run, first order, gram rule alone",
        "inrun-midpoint": "In-Run, midpoint",
        "inrun-trapezoid": "In-Run, trapezoid",
        "inrun-first-adamw": "In-Run, first order, AdamW",
        "inrun-first-adamw-lagged": "In-Run, first order, AdamW with lagged slopes",
        "inrun-first-few": "In-Run, one validation row in eight",
        "inrun-first-few-joint": "In-Run, one pass",
        "inrun-first-few-adamw-joint": "In-Run, one pass, AdamW",
        "inrun-first-few-adamw-joint-lagged": "In-Run, one pass, AdamW, lagged",
        "inrun-queries": "In-Run, of each query",
        "inrun-queries-adamw": "In-Run, of each query, AdamW",
        "inrun-queries-adamw-lagged": "In-Run, of each query, AdamW, lagged",
    },
    "steps": {
        "regular": "regular step",
        "validation": "validation gradient alone",
        "per-sample-vmap": "per-sample vmap(grad), first order",
        "per-sample-loop": "per-sample loop, first order",
        "regular-adamw": "regular step of AdamW",
    },
}
"""Labels, by family, of what rows call methods and is none that a task could be handed to."""

MANY = 8
"""Lines that are told apart."""

IN_TABLES_ALONE = (
    "coalition-gradients-128", "control-variate-10", "few-run-4", "inrun-second", "inrun-integrated",
    "inrun-integrated-seeds-20", "knn-embedding", "mc-2", "mc-shifted-10", "tmc-10", "unrolled",
)  # fmt: skip
"""Methods that :func:`foremost` leaves out of many: each goes along with, or below, one of its kind."""

_unknown: list[str] = []  # methods of rows that are being shown and that nobody here knows


@contextmanager
def showing(methods: Iterable[str]) -> Iterator[None]:
    """Tell the unknown ones among `methods` apart in this block."""
    before, known = _unknown[:], _known()
    _unknown[:] = sorted({method for method in methods if method not in known})
    try:
        yield
    finally:
        _unknown[:] = before


def look(method: str) -> Look:
    """Return how `method` looks, which follows from its family and its place in it."""
    known = _known()
    if method in known:
        return known[method]
    others = _unknown if method in _unknown else sorted({*_unknown, method})
    return _look(FAMILIES["other"], others.index(method), len(others), method)


def foremost(methods: Iterable[str]) -> list[str]:
    """Return the methods that lines are drawn of, in order: all of a few, and of many those that stand for a kind.

    A figure says how many it leaves out (:func:`in_table_alone`); its table has them all.
    """
    given = in_order(methods)
    return given if len(given) <= MANY else [method for method in given if method not in IN_TABLES_ALONE]


def in_table_alone(methods: Iterable[str]) -> str:
    """Return how many of `methods` :func:`foremost` leaves to the table; empty where it is none."""
    left = len(set(methods)) - len(foremost(methods))
    return f"in the table alone: {count(left, 'more method')}" if left else ""


def points(style: Look) -> dict[str, Any]:
    """Return what :meth:`matplotlib.axes.Axes.plot` is given for points without lines."""
    return {"color": style.color, "marker": style.marker, "linestyle": "none"}


def dot(ax: Axes, interval: pd.Series, y: float, style: Look, *, size: float = 6.0, filled: bool = True) -> None:
    """Draw a mean with its interval (``mean``, ``low``, ``high``), lying, at height `y`."""
    mean, low, high = interval[["mean", "low", "high"]]
    ax.plot([low, high], [y] * 2, color=style.color, linewidth=size / 4)
    ax.plot(mean, y, color=style.color, marker=style.marker, markersize=size, fillstyle="full" if filled else "none")


def band(ax: Axes, x: ArrayLike, intervals: pd.DataFrame, style: Look, line: str = "-") -> None:
    """Draw means over `x` [n], and their intervals (columns ``mean``, ``low``, ``high``) as a band.

    Axes are as high as the means ask for: bands of few seeds, which may be very wide, are cut off there.
    """
    ax.plot(x, intervals["mean"], line, color=style.color, marker=style.marker, markersize=4.5, linewidth=1.2)
    ax.margins(y=0.15)
    limits = ax.dataLim.frozen()
    ax.fill_between(x, intervals["low"], intervals["high"], color=style.color, alpha=0.12, linewidth=0)
    ax.dataLim.set(limits)


def shaded(label: str = "bands: 95 % intervals over seeds") -> Patch:
    """Return what a legend says of the bands in the methods' colours."""
    return Patch(color=look("inrun-first").color, alpha=0.4, linewidth=0, label=label)


def ratio_axis(ax: Axes, label: str) -> None:
    """Make the x axis one of ratios: logarithmic, in plain numbers, with a line at 1."""
    ax.axvline(1, color="0.4", linewidth=0.8)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(label)


def hatched(style: Look) -> dict[str, Any]:
    """Return what :meth:`matplotlib.axes.Axes.bar` is given for a bar's hatch."""
    return {"hatch": style.hatch, "edgecolor": (0.0, 0.0, 0.0, 0.45), "linewidth": 0.0}


def in_order(methods: Iterable[str]) -> list[str]:
    """Return methods in the house's order, family by family; then what it does not know."""
    known = list(_known())
    return sorted(set(methods), key=lambda m: (known.index(m) if m in known else len(known), m))


def _known() -> Mapping[str, Look]:
    """Return how all that is known by now looks, in the order in which it is shown."""
    return _looks(tuple((name, (own := method_of(name)).label, own.family) for name in METHODS))


@lru_cache(maxsize=8)
def _looks(methods: tuple[tuple[str, str, str], ...]) -> Mapping[str, Look]:
    members: dict[str, dict[str, str]] = {family: {} for family in FAMILIES}
    for name, label, family in methods:
        members[family if family in FAMILIES else "other"][name] = label
    for family, labels in OTHERS.items():
        members[family] |= labels
    return {
        name: _look(FAMILIES[family], place, len(labels), label)
        for family, labels in members.items()
        for place, (name, label) in enumerate(labels.items())
    }


def _look(family: Family, place: int, number: int, label: str) -> Look:
    lightness = LIGHTEST - (LIGHTEST - DARKEST) * (place + 1) / (number + 1)
    hue = family.hue
    if family is FAMILIES["other"] and hue is not None:
        hue += place * 0.382  # a golden angle: neighbours differ, whatever their number
    if family is FAMILIES["reference"]:
        lightness = 0.0
    color = colorsys.hls_to_rgb((hue or 0.0) % 1.0, lightness, 0.0 if hue is None else 0.75)
    letter = "" if family is FAMILIES["other"] else "abcdefghi"[list(FAMILIES.values()).index(family)]
    marker = family.markers[place] if place < len(family.markers) else f"${letter}{place + 1}$"
    return Look(label, color, marker, HATCHES[(family.hatch + place) % len(HATCHES)])


def panels(
    rows: pd.DataFrame, n_rows: int, *, height: float = 2.6, most_columns: int | None = None, **subplots: Any
) -> tuple[Figure, list[str], list[list[Axes]]]:
    """Return a figure with one column a task and `n_rows` rows of axes, [n_rows][tasks].

    With more tasks than `most_columns`, the next ones begin new rows. Where there are many, columns are narrower, and
    rows lower.
    """
    names = list(dict.fromkeys(rows["task"]))
    columns = min(len(names), most_columns or len(names))
    bands = -(-len(names) // columns)
    size = min(max(3.3 * columns, 4.5), WIDEST), min(height * n_rows * bands, TALLEST)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(bands * n_rows, columns, squeeze=False, **subplots)
    axes = grid.reshape(bands, n_rows, columns).swapaxes(0, 1).reshape(n_rows, bands * columns)
    for ax, name in zip(axes[0], names, strict=False):
        ax.set_title(name)
    for ax in axes[:, len(names) :].flat:
        ax.remove()
    return figure, names, axes[:, : len(names)].tolist()


def break_labels(figure: Figure, columns: int, beside: float) -> None:
    """Break titles of panels and labels of x-axes into lines where columns of panels are narrow.

    Parameters
    ----------
    figure : Figure
        Of :func:`panels`.
    columns : int
        How many there are.
    beside : float
        What the names of methods take at the left, inches.
    """
    room = (figure.get_figwidth() - beside) / columns - BETWEEN
    for ax in figure.axes:
        for text in (ax.title, ax.xaxis.label):
            letters = max(int(72 * room / (A_LETTER * float(text.get_fontsize()))), SHORTEST)
            if len(text.get_text()) > letters:
                text.set_text(textwrap.fill(text.get_text(), letters, break_long_words=False))


def legend(figure: Figure, methods: Sequence[str], extra: Sequence[Artist] = (), columns: int = 3) -> None:
    """Put one legend for all panels below the figure, in as many columns as there is room for."""
    handles = [
        Line2D([], [], color=look(m).color, marker=look(m).marker, label=look(m).label, linewidth=1.5) for m in methods
    ]
    room = int(figure.get_figwidth() / A_LEGEND_COLUMN)
    figure.legend(handles=[*handles, *extra], loc="outside lower center", ncols=max(1, min(columns, room)))
