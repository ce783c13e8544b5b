"""A drawn figure, laid out anew for a page: panels that do not fit beside each other go below each other.

Panels come from the rows of the figure's grid. A row becomes a *strip* of panels that wraps like a line of text; rows
whose panels are all titled, and that have one label, are one strip: they were wrapped when they were drawn. Sizes are
in points throughout.
"""

from __future__ import annotations

import copy
import itertools
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import Collection
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator
from matplotlib.transforms import Bbox, blended_transform_factory

from inrun_bench.report.paper import POINTS, SMALLER, SMALLEST, Paper

__all__ = ["typeset"]

DPI = 300  # of measuring
NARROWEST, COMFORTABLE = 46.0, 70.0  # of a panel: in a grid that would break, and elsewhere
LOWEST, HIGHEST, ASPECT = 65.0, 125.0, 0.72  # of a panel's height
LABELS = 0.5  # of the width that names of methods may take
AROUND = 0.7  # of the distance between two of them, above the first and below the last
EDGE, GAP, LEGEND_GAP = 3.0, 7.0, 6.0
APART = 1.0  # on each side of ticks
SQUEEZES = (1.0, 0.85, 0.7)
LINE = 1.2  # of the font size
THINNER, SMALLER_MARKS = 0.75, 0.7


@dataclass(frozen=True)
class _Panel:
    """Axes, and the words that they have, or have from their neighbours in the grid."""

    ax: Axes
    title: str
    xlabel: str
    ylabel: str
    titled: bool
    names: tuple[tuple[float, str], ...]  # of what is shown at each height
    ticks: tuple[tuple[float, str], ...]  # at the bottom, where they were chosen one by one
    limits: tuple[float, float]  # of the height
    key: tuple[list[Artist], list[str]]  # a legend of its own: handles and labels


@dataclass
class _Strip:
    panels: list[_Panel]
    columns: int = 1

    @property
    def lines(self) -> list[list[_Panel]]:
        return [self.panels[first : first + self.columns] for first in range(0, len(self.panels), self.columns)]

    @property
    def wraps(self) -> bool:
        return self.columns < len(self.panels)


@dataclass
class _Line:
    """Panels beside each other, and the space around each: left, right, below, above."""

    panels: list[_Panel]
    strip: _Strip
    squeeze: float = 1.0  # of its height
    label: float = 0.0  # of the space left of its first panel, what the label at the edge of the page takes
    space: list[tuple[float, float, float, float]] = field(default_factory=list)


def typeset(figure: Figure, paper: Paper) -> Iterator[Figure]:
    """Lay a figure out for a page; yield it once for each page that it takes, with what stands on that page visible.

    Parameters
    ----------
    figure : Figure
        As an experiment drew it, its axes in one grid; its title is taken off, being the caption's.
    paper : Paper
        The page. It must be in force.
    """
    drawn = figure.get_size_inches()
    figure.set_layout_engine("none")
    figure.set_dpi(DPI)
    figure.set_size_inches(paper.width, paper.height)
    figure.suptitle("")
    _part_ticks(figure)
    _resize(figure, paper)
    strips = _strips(figure)
    if not strips:  # nothing stands in a grid
        figure.set_size_inches(paper.width, drawn[1] * paper.width / drawn[0])
        yield figure
        return
    for strip in strips:
        _wrap_names(strip, paper)
    fit = [
        (len(strip.panels), bool(strip.panels[0].names), _columns(strip, len(strips) > 1, paper)) for strip in strips
    ]
    for strip, (number, names, _) in zip(strips, fit, strict=True):  # a grid wraps as one
        strip.columns = min(columns for *kind, columns in fit if kind == [number, names])
    legends = [_refit(figure, legend, paper) for legend in figure.legends[:]]
    below = sum(_size(legend).height + LEGEND_GAP for legend in legends)
    lines = [_Line(panels, strip) for strip in strips for panels in strip.lines]
    _letter([panel for line in lines for panel in line.panels], paper)
    every = {panel.ax for line in lines for panel in line.panels}
    for page in _pages(lines, paper, below):
        shown = {panel.ax for line in page for panel in line.panels}
        for ax in every:
            ax.set_visible(ax in shown)
        _place(figure, page, paper, below)
        bottom = EDGE
        height = figure.get_size_inches()[1] * POINTS
        for legend in legends[::-1]:
            legend.set_loc("lower center")
            legend.set_bbox_to_anchor((0.5, bottom / height), transform=figure.transFigure)
            bottom += _size(legend).height + LEGEND_GAP
        yield figure


def _part_ticks(figure: Figure) -> None:
    """Give axes that share ticks ticks of their own: shared ones suit the size of the first, which may be elsewhere."""
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            axis.major, axis.minor = copy.copy(axis.major), copy.copy(axis.minor)
            for ticker, part in itertools.product((axis.major, axis.minor), ("locator", "formatter")):
                own = copy.copy(getattr(ticker, part))
                own.set_axis(axis)
                setattr(ticker, part, own)


def _resize(figure: Figure, paper: Paper) -> None:
    """Bring what was drawn in sizes of its own to those of the page."""
    least = paper.font_size - SMALLEST
    for text in figure.findobj(Text):
        text.set_fontsize(min(max(text.get_fontsize(), least), paper.font_size))
    for ax in figure.axes:
        ax.title.set_fontsize(paper.font_size)
        for line in ax.lines:
            _thin(line)
        for drawn in ax.collections:
            drawn.set_linewidth([THINNER * width for width in np.atleast_1d(drawn.get_linewidth())])
    for legend in figure.findobj(Legend):
        for handle in legend.legend_handles:
            if isinstance(handle, Line2D):
                _thin(handle)
            elif isinstance(handle, Collection):
                handle.set_linewidth(THINNER)


def _thin(line: Line2D) -> None:
    line.set_linewidth(THINNER * line.get_linewidth())
    line.set_markersize(SMALLER_MARKS * line.get_markersize())


# --- what stands in a row ---


def _strips(figure: Figure) -> list[_Strip]:
    """Return the rows of the figure's grid as strips, from the top."""
    places = _places(figure)
    strips: list[_Strip] = []
    rows = {row: {c: ax for (r, c), ax in sorted(places.items()) if r == row} for row, _ in sorted(places)}
    for row, own in ((row, part) for row, whole in rows.items() for part in _of_one_axis(whole)):
        first = next(iter(own.values()))
        panels = [
            _Panel(
                ax,
                title=_nearest(places, "title", column, range(row, -1, -1)),
                xlabel=_nearest(places, "xlabel", column, range(row, max(rows) + 1)),
                ylabel=ax.get_ylabel() or first.get_ylabel(),
                titled=bool(ax.get_title()),
                names=_named(ax.yaxis) or _named(first.yaxis),
                ticks=_chosen(ax.xaxis),
                limits=ax.get_ylim(),
                key=_key(ax, strips),
            )
            for column, ax in own.items()
        ]
        last = strips[-1].panels if strips else []
        if last and all(p.titled and p.ylabel == panels[0].ylabel for p in (*last, *panels)):
            strips[-1].panels += panels
        else:
            strips.append(_Strip(panels))
    return strips


def _of_one_axis(row: dict[int, Axes]) -> Iterator[dict[int, Axes]]:
    """Yield the axes of a row in parts, so that those without names have the axis of the first one, if it has names."""
    part: dict[int, Axes] = {}
    for column, ax in row.items():
        first = next(iter(part.values()), ax)
        if _named(first.yaxis) and not _named(ax.yaxis) and not ax.get_shared_y_axes().joined(ax, first):
            yield part
            part = {}
        part[column] = ax
    yield part


def _places(figure: Figure) -> dict[tuple[int, int], Axes]:
    """Return axes by row and column of the figure's grid, of grids within it, too."""
    specs = [(ax, spec, spec.get_topmost_subplotspec()) for ax in figure.axes if (spec := ax.get_subplotspec())]
    rows, columns = (
        [(getattr(top, span).start, getattr(spec, span).start) for _, spec, top in specs]
        for span in ("rowspan", "colspan")
    )
    row_of, column_of = ({key: place for place, key in enumerate(sorted(set(keys)))} for keys in (rows, columns))
    return {(row_of[r], column_of[c]): ax for (ax, *_), r, c in zip(specs, rows, columns, strict=True)}


def _nearest(places: dict[tuple[int, int], Axes], what: str, column: int, rows: Sequence[int]) -> str:
    found = (getattr(places[row, column], f"get_{what}")() for row in rows if (row, column) in places)
    return next((text for text in found if text), "")


def _key(ax: Axes, above: list[_Strip]) -> tuple[list[Artist], list[str]]:
    """Return handles and labels of a legend that axes have, or share with those above."""
    legend = ax.get_legend()
    if legend is None:
        return above[-1].panels[0].key if above else ([], [])
    legend.remove()
    return [handle for handle in legend.legend_handles if handle is not None], [
        text.get_text() for text in legend.get_texts()
    ]


def _chosen(axis: Axis) -> tuple[tuple[float, str], ...]:
    """Return places and labels of ticks; none where matplotlib chooses them."""
    if not isinstance(axis.get_major_locator(), FixedLocator):
        return ()
    places = axis.get_ticklocs()
    return tuple(zip(places, axis.get_major_formatter().format_ticks(list(places)), strict=True))


def _named(axis: Axis) -> tuple[tuple[float, str], ...]:
    """Return the same where labels are words; none where they are numbers."""
    chosen = _chosen(axis)
    return chosen if any(text[:1].isalpha() for _, text in chosen) else ()


def _wrap_names(strip: _Strip, paper: Paper) -> None:
    """Break names that would take more than their share of the width."""
    small = paper.font_size - SMALLER
    limit = LABELS * paper.width * POINTS
    for number, panel in enumerate(strip.panels):
        if panel.names:
            names = tuple((y, _broken(panel.ax, text, small, limit)) for y, text in panel.names)
            strip.panels[number] = replace(panel, names=names)
            places = [y for y, _ in names]
            panel.ax.set_yticks(places, [text for _, text in names], fontsize=small)
            low, high = sorted(panel.limits)
            ends = (min(low, min(places) - AROUND), max(high, max(places) + AROUND))
            if panel.ax.get_yscale() == "linear":  # elsewhere names are of values, and not of lines
                panel.ax.set_ylim(ends[::-1] if panel.ax.yaxis_inverted() else ends)


# --- how many beside each other ---


def _columns(strip: _Strip, in_a_grid: bool, paper: Paper) -> int:
    """Return how many panels of a strip stand beside each other."""
    number = len(strip.panels)
    narrow = in_a_grid or bool(strip.panels[0].names)
    most = int(paper.width * POINTS / ((NARROWEST if narrow else COMFORTABLE) + GAP))
    for columns in range(min(number, most), 1, -1):
        if -(-number // -(-number // columns)) < columns:
            continue  # as many lines with fewer in each
        strip.columns = columns
        least = NARROWEST if narrow and columns == number else COMFORTABLE
        lines = [_Line(strip.lines[0], strip)]
        _measure(lines, paper, least)
        upright = any(label.get_rotation() for panel in strip.lines[0] for label in panel.ax.get_xticklabels())
        if _width(lines[0], paper) >= least and not upright:
            return columns
    return 1


def _width(line: _Line, paper: Paper) -> float:
    """Return how wide the data of each panel is."""
    around = sum(left + right + GAP for left, right, *_ in line.space) - GAP
    return (paper.width * POINTS - 2 * EDGE - around) / len(line.space)


def _inner_height(line: _Line, width: float, paper: Paper) -> float:
    """Return how high the data of each panel is."""
    names = line.panels[0].names
    if names:
        lines = [1 + text.count("\n") for _, text in names]
        pitch = max([1.0, *((one + other) / 2 for one, other in itertools.pairwise(lines))])
        return LINE * (paper.font_size - SMALLER) * pitch * (len(names) + 2 * AROUND - 1)
    return max(LOWEST, line.squeeze * min(ASPECT * width, HIGHEST))


def _height(line: _Line, paper: Paper) -> float:
    inner = _inner_height(line, _width(line, paper), paper)
    return inner + max(below for _, _, below, _ in line.space) + max(above for *_, above in line.space)


# --- pages ---


def _pages(lines: list[_Line], paper: Paper, below: float) -> list[list[_Line]]:
    """Return the lines of each page: as few pages as there can be, of panels as high as they may then be."""
    room = paper.height * POINTS - below - 2 * EDGE
    _measure(lines, paper, NARROWEST, times=3)
    found: list[list[list[_Line]]] = []
    for squeeze in SQUEEZES:
        for line in lines:
            line.squeeze = squeeze
        heights = [_height(line, paper) + GAP for line in lines]
        ends = [sum(heights[:number]) for number in range(len(heights) + 1)]
        rooms = sorted({end - start for start in ends for end in ends if end > start} | {room})
        number = len(_filled(lines, heights, room))
        found.append(next(p for r in rooms if len(p := _filled(lines, heights, r)) == number))
    best = min(range(len(found)), key=lambda number: len(found[number]))
    for line in lines:
        line.squeeze = SQUEEZES[best]
    return found[best]


def _filled(lines: list[_Line], heights: list[float], room: float) -> list[list[_Line]]:
    """Return lines by page, each page as full as the room allows; a line higher than that has a page of its own."""
    pages: list[list[_Line]] = []
    full = np.inf
    for line, height in zip(lines, heights, strict=True):
        if full + height > room:
            pages.append([])
            full = 0.0
        pages[-1].append(line)
        full += height
    return pages


def _place(figure: Figure, page: list[_Line], paper: Paper, below: float) -> None:
    """Give the figure its size and the panels of a page their places."""
    _measure(page, paper, NARROWEST, times=3)
    whole = sum(_height(line, paper) + GAP for line in page) - GAP + below + 2 * EDGE
    figure.set_size_inches(paper.width, whole / POINTS)
    top = whole - EDGE
    for line in page:
        width = _width(line, paper)
        height = _inner_height(line, width, paper)
        y = top - max(above for *_, above in line.space) - height
        x = EDGE
        for panel, (left, right, *_) in zip(line.panels, line.space, strict=False):
            x += left
            panel.ax.set_position(
                (x / (paper.width * POINTS), y / whole, width / (paper.width * POINTS), height / whole)
            )
            if panel is line.panels[0]:
                away = left - line.label + APART
                panel.ax.yaxis.set_label_coords(-away / width, panel.ax.yaxis.label.get_position()[1])
            x += width + right + GAP
        top -= _height(line, paper) + GAP


# --- labels ---


def _label(page: list[_Line], number: int, paper: Paper, width: float) -> None:
    """Write the titles and labels that the panels of a line need on its page, and take off those that they do not."""
    line = page[number]
    wraps = line.strip.wraps
    after = page[number + 1].panels if number + 1 < len(page) else []
    for column, panel in enumerate(line.panels):
        ax, left = panel.ax, line.panels[column - 1] if column else None
        title = panel.title if panel.titled or wraps or not number else ""
        ax.set_title(_broken(ax, title, paper.font_size, width), pad=4, fontsize=paper.font_size)
        if _extent(ax, ax.get_title(), paper.font_size) > width + GAP:  # for a single long word
            ax.title.set_fontsize(paper.font_size - SMALLER)
        repeated = column < len(after) and after[column].xlabel == panel.xlabel
        ax.set_xlabel("" if repeated else _broken(ax, panel.xlabel, paper.font_size, width))
        if wraps or not repeated:
            ax.tick_params(axis="x", labelbottom=True)
        shares = left is not None and (bool(panel.names) or ax.get_shared_y_axes().joined(ax, left.ax))
        ax.tick_params(axis="y", labelleft=not shares)
        ax.set_ylabel("", fontsize=paper.font_size)
    lines = [own for own in page if own.strip is line.strip]
    middle = len(lines) // 2
    if lines[middle] is line:  # one label for all lines of a strip
        height = _inner_height(line, width, paper)
        pitch = height + (sum(line.space[0][2:]) + GAP if line.space else 0.0)
        first = line.panels[0]
        label = _broken(first.ax, first.ylabel, paper.font_size, pitch * (len(lines) - 1) + height)
        first.ax.set_ylabel(label, y=0.5 + (middle - (len(lines) - 1) / 2) * pitch / height)
        for left, right in itertools.pairwise(line.panels):
            if right.ylabel != left.ylabel:
                right.ax.set_ylabel(_broken(right.ax, right.ylabel, paper.font_size, height + GAP))


def _broken(ax: Axes, text: str, size: float, limit: float) -> str:
    """Return text in lines that are no longer than a limit, as far as words allow."""
    if not text or (whole := _extent(ax, text, size)) <= limit:
        return text
    words = " ".join(text.split()).replace(" %", "\N{NO-BREAK SPACE}%")
    for letters in range(int(len(words) * limit / whole * max(1, text.count("\n") + 1)) + 8, 3, -1):
        lines = textwrap.wrap(words, letters, break_long_words=False)
        if max(map(len, lines)) <= letters and max(_extent(ax, line, size) for line in lines) <= limit:
            return "\n".join(lines)
    return "\n".join(textwrap.wrap(words, 4, break_long_words=False))


def _extent(ax: Axes, text: str, size: float) -> float:
    figure = ax.get_figure(root=True)
    assert figure is not None
    probe = Text(0, 0, text, fontsize=size, figure=figure)
    return float(probe.get_window_extent(figure.canvas.get_renderer()).width) * POINTS / DPI  # type: ignore[attr-defined]


def _letter(panels: list[_Panel], paper: Paper) -> None:
    """Name panels a, b, c, ... where there is more than one."""
    if len(panels) < 2:
        return
    for panel, letter in zip(panels, _letters(), strict=False):
        panel.ax.annotate(
            letter,
            (0, 1),
            (-3, 4),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right",
            va="baseline",
            fontsize=paper.font_size,
            fontweight="bold",
            gid="letter",
        )


def _letters() -> Iterator[str]:
    for number in itertools.count():
        yield ("" if number < 26 else chr(96 + number // 26)) + chr(97 + number % 26)


# --- measuring ---


def _measure(page: list[_Line], paper: Paper, width: float, times: int = 1) -> None:
    """Label the lines of a page, and note how much space words take around the data.

    Parameters
    ----------
    page : list of _Line
        What stands on it.
    paper : Paper
        Its size.
    width : float
        Of the data of a panel, where it is not known from a measurement before.
    times : int
        To measure, as words are broken by what their panels have for them, and panels have what words leave.
    """
    for _ in range(times):
        for number, line in enumerate(page):
            own = _width(line, paper) if line.space else width
            _label(page, number, paper, own)
            keys = [other.panels[0].key[1] for other in page[max(number - 1, 0) : number + 1]]
            keyed = len(keys) == 1 or keys[0] != keys[1]
            line.space = [_space(line, panel, paper, own, keyed=keyed) for panel in line.panels]
        _align(page, paper)


def _align(page: list[_Line], paper: Paper) -> None:
    """Give the panels of a column the same space left and right, and labels at the edge of the page theirs."""
    measured = [line.space for line in page]
    for line, own in zip(page, measured, strict=True):
        alike = [number for number, other in enumerate(page) if _alike(line, other)]
        line.label = max(_thickness(page[number].panels[0].ax, paper) for number in alike)
        columns = itertools.zip_longest(*(measured[number] for number in alike))
        beside = [[max(space[side] for space in column if space) for side in (0, 1)] for column in columns]
        beside[0][0] += line.label
        line.space = [(left, right, *own[min(column, len(own) - 1)][2:]) for column, (left, right) in enumerate(beside)]


def _thickness(ax: Axes, paper: Paper) -> float:
    """Return how much space the label at the left of axes takes."""
    label = ax.get_ylabel()
    return LINE * paper.font_size * (1 + label.count("\n")) + APART if label else 0.0


def _alike(one: _Line, other: _Line) -> bool:
    """Whether the panels of lines stand in the same columns."""
    return one.strip.columns == other.strip.columns and bool(one.panels[0].names) == bool(other.panels[0].names)


def _space(line: _Line, panel: _Panel, paper: Paper, width: float, *, keyed: bool) -> tuple[float, float, float, float]:
    """Return how much space the words of a panel take left, right, below and above its data."""
    ax = panel.ax
    visible, figure = ax.get_visible(), ax.get_figure(root=True)
    assert figure is not None
    ax.set_visible(True)
    whole = figure.get_size_inches() * POINTS
    ax.set_position((0.3, 0.3, width / whole[0], _inner_height(line, width, paper) / whole[1]))
    _fit_ticks(panel, paper)
    _fit_numbers(panel)
    key = _fit_key(panel, paper, keyed=keyed)
    ax.yaxis.label.set_visible(panel is not line.panels[0])  # that one stands left of all ticks of its strip
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    outer, inner = ax.get_tightbbox(renderer, for_layout_only=True), ax.get_window_extent(renderer)
    assert outer is not None
    ax.yaxis.label.set_visible(True)
    ax.set_visible(visible)
    sides = (inner.x0 - outer.x0, outer.x1 - inner.x1, inner.y0 - outer.y0, outer.y1 - inner.y1)
    left, right, below, above = (max(0.0, side) * POINTS / DPI for side in sides)
    return left, right, below, max(above, key)


def _fit_ticks(panel: _Panel, paper: Paper) -> None:
    """Break words that overlap, or turn them upright; leave out numbers that overlap those before them."""
    if not panel.ticks:
        return
    axis = panel.ax.xaxis
    places, texts = zip(*panel.ticks, strict=True)
    axis.set_tick_params(labelrotation=0)
    axis.set_ticks(places, texts)
    if any(text[:1].isalpha() for text in texts):
        for rotation in (0, 90):
            axis.set_tick_params(labelrotation=rotation)
            if not _overlapping(_boxes(axis.get_ticklabels())):
                return
            if not rotation:
                ends = panel.ax.transData.transform([(place, 0.0) for place in places])[:, 0]
                pitch = float(np.diff(ends).min(initial=np.inf)) * POINTS / DPI - 4
                size = paper.font_size - SMALLER
                broken = [_broken(panel.ax, text, size, pitch) for text in texts]
                axis.set_ticks(places, broken)
                if not _overlapping(_boxes(axis.get_ticklabels())):
                    return
                axis.set_ticks(places, texts)
        return
    kept, end = [], -np.inf
    for text, label in zip(texts, axis.get_ticklabels(), strict=False):  # of those outside the axes there is none
        box = label.get_window_extent()
        fits = box.x0 > end + 2 * APART * DPI / POINTS
        kept.append(text if fits else "")
        end = box.x1 if fits and text else end
    axis.set_ticks(places, kept)


def _fit_numbers(panel: _Panel) -> None:
    """Turn numbers above bars upright where they overlap, or leave them out, and leave room for them in the panel."""
    ax = panel.ax
    numbers = [text for text in ax.texts if _is_number(text)]
    if not numbers:
        return
    ax.set_ylim(panel.limits)
    for rotation in (0, 90):
        for text in numbers:
            text.set(rotation=rotation, visible=True)
        fit = not _overlapping(_boxes(numbers))
        if fit:
            break
    for text in numbers:
        text.set_visible(fit)
    inner = ax.get_window_extent()
    over = max([box.y1 for box in _boxes(numbers)], default=0.0) - inner.y1
    if over > 0:
        scale = ax.yaxis.get_transform()
        low, high = scale.transform(np.array(panel.limits))
        high = low + (high - low) * inner.height / (inner.height - over)
        ax.set_ylim(top=float(scale.inverted().transform(np.array([high]))[0]))


def _boxes(texts: Sequence[Text]) -> list[Bbox]:
    """Return where words stand, with some space beside them."""
    return [
        text.get_window_extent().padded(APART * DPI / POINTS, 0)
        for text in texts
        if text.get_text() and text.get_visible()
    ]


def _is_number(text: Text) -> bool:
    return (
        text.get_gid() != "letter"
        and text.get_text().replace(",", "").replace(".", "").replace("e", "").replace("+", "").isdigit()
    )


def _overlapping(boxes: list[Bbox]) -> bool:
    return any(one.overlaps(other) for number, one in enumerate(boxes) for other in boxes[number + 1 :])


# --- legends ---


def _refit(figure: Figure, legend: Legend, paper: Paper) -> Legend:
    """Return a legend with as many columns as fit in the width of the page; labels are broken where one hardly does."""
    handles, labels = legend.legend_handles, [text.get_text() for text in legend.get_texts()]
    legend.remove()
    limit = paper.width * POINTS - 2 * EDGE
    few = 2 if len(labels) > 4 else 1
    room = limit / few - 4 * paper.font_size
    broken = [_broken(figure.axes[0], label, paper.font_size - SMALLER, room) for label in labels]
    for columns, own in (*((columns, labels) for columns in range(min(len(labels), 6), few - 1, -1)), (few, broken)):
        made = _legend(figure, handles, own, columns)
        if _size(made).width <= limit:
            return made
        made.remove()
    return _legend(figure, handles, broken, 1)


def _legend(owner: Figure | Axes, handles: list, labels: list[str], columns: int) -> Legend:  # type: ignore[type-arg]
    return owner.legend(
        handles=handles,
        labels=labels,
        ncols=columns,
        loc="lower left",
        columnspacing=1.0,
        handlelength=1.6,
        handletextpad=0.4,
        labelspacing=0.3,
        borderaxespad=0.0,
        borderpad=0.0,
    )


def _size(legend: Legend) -> Bbox:
    """Return how large a legend is, in points."""
    figure = legend.get_figure(root=True)
    assert figure is not None
    box = legend.get_window_extent(figure.canvas.get_renderer())  # type: ignore[attr-defined]
    return Bbox.from_bounds(0, 0, box.width * POINTS / DPI, box.height * POINTS / DPI)


def _fit_key(panel: _Panel, paper: Paper, *, keyed: bool) -> float:
    """Put a legend of axes above them, from the left edge of the page; return how far up it reaches."""
    ax, (handles, labels) = panel.ax, panel.key
    figure = ax.get_figure(root=True)
    assert figure is not None
    if (legend := ax.get_legend()) is not None:
        legend.remove()
    if not (labels and keyed):
        return 0.0
    start = EDGE + 2 * paper.font_size
    for columns in range(min(len(labels), 6), 0, -1):
        made = _legend(ax, handles, labels, columns)
        if _size(made).width <= paper.width * POINTS - EDGE - start:
            break
    made.set_in_layout(False)
    under = LINE * paper.font_size + LEGEND_GAP  # where titles and letters stand
    above = 1 + under / (ax.get_window_extent().height * POINTS / DPI)
    made.set_bbox_to_anchor(
        (start / (paper.width * POINTS), above),
        transform=blended_transform_factory(figure.transFigure, ax.transAxes),
    )
    return under + float(_size(made).height)
