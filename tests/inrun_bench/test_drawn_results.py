"""Laws of every figure that is drawn of the published rows, in the size in which it is saved."""

import itertools
from functools import lru_cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.text import Text

from inrun_bench.experiments import EXPERIMENTS
from inrun_bench.report.figures import SETTINGS, drawn
from inrun_bench.report.looks import look, showing
from inrun_bench.runs.store import Store

RESULTS = Path(__file__).parents[2] / "results"
LARGEST = 11.0  # inches
NOTHING = ("None", "none", " ", "", None)
STYLES = {"--": "dashed", ":": "dotted"}


def published():
    """Folder and experiment of every figure of the published rows."""
    for folder in sorted(path.parent for path in RESULTS.glob("*/store.json")):
        names = {path.name.split(".")[0] for path in (folder / "rows").iterdir()}
        yield from ((folder.name, name) for name in drawn(EXPERIMENTS) if name in names)


FIGURES = sorted(published())
every_figure = pytest.mark.parametrize(("folder", "name"), FIGURES)


@lru_cache
def painted(folder, name):
    """The figure, laid out as when it is saved."""
    rows = Store(RESULTS / folder, create=False).read_all(name)
    with mpl.rc_context(SETTINGS), showing(rows["method"].dropna()):
        figure = EXPERIMENTS[name].draw(rows)
        FigureCanvasAgg(figure)
        figure.draw_without_rendering()
    return figure


def texts(figure):
    """The texts that are to be seen."""
    unseen = {
        text
        for ax in figure.axes
        for axis in (ax.xaxis, ax.yaxis)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        for text, end in ((tick.label1, axis.get_view_interval()), (tick.label2, ()))
        if len(end) == 0 or not min(end) <= tick.get_loc() <= max(end)
    }
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in unseen]


def words(figure):
    """What explains: the legends, the titles, and words beside ticks."""
    return " ".join(text.get_text() for text in texts(figure))


def handles(figure):
    legends = [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend())]
    return [handle for legend in legends for handle in legend.legend_handles]


def named(figure, ax, which):
    """Whether an axis, or another one in its row or column of panels, has a label or words at its ticks."""
    place, span = ax.get_subplotspec(), "colspan" if which == "x" else "rowspan"
    near = [
        getattr(other, f"{which}axis")
        for other in figure.axes
        if other.get_subplotspec().get_gridspec() is place.get_gridspec()
        and getattr(other.get_subplotspec(), span) == getattr(place, span)
    ]
    return any(axis.get_label_text() or any(t.get_text()[:1].isalpha() for t in axis.get_ticklabels()) for axis in near)


def test_every_experiment_with_a_figure_and_published_rows_is_looked_at():
    assert {"cost", "groups", "overhead", "removal", "rivals", "scale", "sweeps"} <= {name for _, name in FIGURES}


@every_figure
def test_it_fits_a_page(folder, name):
    assert painted(folder, name).axes
    assert max(painted(folder, name).get_size_inches()) <= LARGEST


@every_figure
def test_every_axis_is_named_or_stands_in_a_row_or_column_that_is(folder, name):
    figure = painted(folder, name)
    for ax, which in itertools.product(figure.axes, "xy"):
        assert ax.has_data() or ax.texts  # which say why there are none
        assert named(figure, ax, which), (ax, which)


@every_figure
def test_no_text_is_cut_off(folder, name):
    figure = painted(folder, name)
    for text in texts(figure):
        box = text.get_window_extent()
        assert figure.bbox.padded(1).containsx(box.x0), text
        assert figure.bbox.padded(1).containsx(box.x1), text
        assert figure.bbox.padded(1).containsy(box.y0), text
        assert figure.bbox.padded(1).containsy(box.y1), text


@every_figure
def test_no_two_texts_lie_on_each_other(folder, name):
    shown = [text for text in texts(painted(folder, name)) if text.get_rotation() % 90 == 0]
    boxes = np.array([text.get_window_extent().extents for text in shown])
    low, high = boxes[:, :2] + 1, boxes[:, 2:] - 1  # pixels
    meet = ((low[:, None] < high) & (low < high[:, None])).all(axis=2)
    crossed = [(shown[i].get_text(), shown[j].get_text()) for i, j in zip(*np.nonzero(np.triu(meet, 1)), strict=True)]
    assert crossed == []


@every_figure
def test_no_bar_stands_on_a_logarithmic_axis(folder, name):
    for ax in painted(folder, name).axes:
        if any(isinstance(container, mpl.container.BarContainer) for container in ax.containers):
            assert ax.get_yscale() == "linear"
            assert ax.get_ylim()[0] == 0


@every_figure
def test_every_marker_line_style_and_band_is_explained(folder, name):
    figure, rows = painted(folder, name), Store(RESULTS / folder, create=False).read_all(name)
    said, explained = words(figure), [h for h in handles(figure) if isinstance(h, mpl.lines.Line2D)]
    markers = {h.get_marker() for h in explained}
    markers |= {look(m).marker for m in set(rows["method"]) if look(m).label in said}  # beside ticks
    for ax in figure.axes:
        shown = [line for line in ax.lines if np.isfinite(np.asarray(line.get_ydata(), float)).any()]
        marks = {line.get_marker() for line in shown} - {*NOTHING}
        assert len(marks) == 1 or marks <= markers | set(said.split())  # one kind alone says what the axes say
        if any(line.get_marker() in marks and line.get_fillstyle() == "none" for line in shown):
            assert "hollow" in said
        for style in {line.get_linestyle() for line in shown} - {*NOTHING, "-"}:
            assert STYLES[style] in said or style in {h.get_linestyle() for h in explained}
    if any(isinstance(a, PolyCollection) for ax in figure.axes for a in ax.collections):
        assert "bands: " in said
