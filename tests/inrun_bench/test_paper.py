"""Figures for print: exactly as wide as asked for, in letters of the size asked for, none of them in another's way."""

import itertools
import re
import shutil
from collections import Counter
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from inrun_bench.experiments import EXPERIMENTS
from inrun_bench.report.figures import SETTINGS, draw_figures, drawn
from inrun_bench.report.looks import showing
from inrun_bench.report.paper import Paper, continued
from inrun_bench.report.paper_figures import print_figures
from inrun_bench.report.typeset import typeset
from inrun_bench.runs.store import Store
from tests.inrun_bench.tiny import without_clip_names

RESULTS = Path(__file__).parents[2] / "results"
PUBLISHED = [
    (path.parent.name, name)
    for path in sorted(RESULTS.glob("*/store.json"))
    for name in drawn(EXPERIMENTS)
    if name in Store(path.parent, create=False).experiments()
]
CASES = [
    (folder, name, 3.25) for folder, name in {name: (folder, name) for folder, name in reversed(PUBLISHED)}.values()
]
CASES += [("questions", "corruptions", 5.5), ("cost", "cost", 7.0)]  # a column is the hardest for all others
INSIDE = np.array([0.7, 0.7, -0.7, -0.7])  # points of the box of a text around its letters


def pages(draw, paper):
    """Yield the pages of a figure, drawn."""
    with mpl.rc_context(SETTINGS), paper.in_force():
        figure = draw()
        FigureCanvasAgg(figure)
        for page in typeset(figure, paper):
            page.draw_without_rendering()
            yield page


def labels_of(ax):
    return [ax.title, ax.xaxis.label, ax.yaxis.label]


def ticks_of(ax):
    """Labels of ticks that are within the axes."""
    for axis in (ax.xaxis, ax.yaxis):
        yield from (tick.label1 for tick in axis._update_ticks())


def words(page):
    """All texts that are seen on a page."""
    shown = [ax for ax in page.axes if ax.get_visible()]
    legends = [*page.legends, *(ax.get_legend() for ax in shown if ax.get_legend())]
    found = [text for legend in legends for text in legend.get_texts()]
    for ax in shown:
        found += [*labels_of(ax), ax._left_title, ax._right_title, *ticks_of(ax), *ax.texts]
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def in_points(text, page):
    """Where a text stands, in points."""
    return text.get_window_extent(page.canvas.get_renderer()).transformed(page.dpi_scale_trans.inverted()).extents * 72


def collisions(page):
    """Pairs of texts that overlap by more than the space within their boxes."""
    boxes = [(text.get_text(), in_points(text, page) + INSIDE) for text in words(page)]
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]:
            yield one, other


def check(page, paper):
    """Hold a page against the laws of print."""
    width, height = page.get_size_inches()
    assert width == paper.width
    for text in words(page):
        assert text.get_fontsize() >= paper.font_size - 2, text.get_text()
        x0, y0, x1, y1 = in_points(text, page)
        inside = x0 >= -0.5 and y0 >= -0.5 and x1 <= 72 * width + 0.5 and y1 <= 72 * height + 0.5
        assert inside, (text.get_text(), x0, y0, x1, y1)
    for ax in page.axes:
        if ax.get_visible():
            assert {label.get_fontsize() for label in (ax.xaxis.label, ax.yaxis.label)} == {paper.font_size}
            assert ax.title.get_fontsize() in (paper.font_size, paper.font_size - 1)
            assert ax.get_position().width * width * 72 > 40
    assert list(collisions(page)) == []


def marks_within(ax):
    """How many points of each line of axes are within them."""
    (left, right), (low, high) = (sorted(limits) for limits in (ax.get_xlim(), ax.get_ylim()))
    found = [np.array(line.get_xydata(), dtype=float) for line in ax.lines if line.get_transform() == ax.transData]
    return [int(((x >= left) & (x <= right) & (y >= low) & (y <= high)).sum()) for x, y in (own.T for own in found)]


def names_of(ax):
    """The words at the left of axes, by place."""
    places = ax.yaxis.get_majorticklocs()
    labels = ax.yaxis.get_major_formatter().format_ticks(places)
    said = {place: " ".join(label.split()) for place, label in zip(places, labels, strict=True)}
    return said if any(text[:1].isalpha() for text in said.values()) else {}


@pytest.mark.parametrize(("folder", "name", "width"), CASES)
def test_every_published_figure_can_be_read_in_print_and_shows_the_marks_and_names_of_the_screen(folder, name, width):
    rows, paper, n_pages = Store(RESULTS / folder, create=False).read_all(name), Paper(width), 0
    with mpl.rc_context(SETTINGS), paper.in_force(), showing(rows["method"].dropna()):
        figure = EXPERIMENTS[name].draw(rows)
        FigureCanvasAgg(figure)
        marks, names = ({ax: seen(ax) for ax in figure.axes} for seen in (marks_within, names_of))
        for page in typeset(figure, paper):
            page.draw_without_rendering()
            check(page, paper)
            n_pages += 1
            assert {ax: marks_within(ax) for ax in marks} == marks
            for ax in (ax for ax in page.axes if ax.get_visible()):
                shared = [names[other] for other in names if ax.get_shared_y_axes().joined(ax, other) or other is ax]
                assert names_of(ax) in ({}, *shared)
    assert n_pages


def grid(n_rows=2, n_columns=3, name="a-task-with-a-name-{}", legend="method {}"):
    """A figure of a grid as experiments draw them."""
    figure = Figure(figsize=(3.3 * n_columns, 2.5 * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True)
    for row, column in np.ndindex(n_rows, n_columns):
        for method in range(4):
            axes[row, column].plot([1, 2, 3], [method, method + 1, method], label=legend.format(method))
        axes[row, column].set_xlabel("an axis that has something to say")
        axes[row, 0].set_ylabel(f"what is measured {row}")
        axes[0, column].set_title(name.format(column))
    figure.legend(handles=axes[0, 0].lines, loc="outside lower center", ncols=3)
    figure.suptitle("all of it")
    return figure


@pytest.mark.parametrize("font_size", [6.0, 8.0, 10.0])
@pytest.mark.parametrize("width", [2.5, 3.25, 7.0, 12.0])
def test_any_width_and_size_of_letters_is_kept(width, font_size):
    paper = Paper(width, font_size=font_size)
    for page in pages(grid, paper):
        check(page, paper)


def test_panels_that_do_not_fit_beside_each_other_go_below_each_other_with_titles_and_labels_of_their_own():
    def columns(page):
        return Counter(round(ax.get_position().x0, 3) for ax in page.axes if ax.get_visible())

    (wide,) = pages(grid, Paper(7.0))
    assert sorted(columns(wide).values()) == [2, 2, 2]
    assert [ax.get_title() for ax in wide.axes[3:]] == ["", "", ""]
    assert [bool(ax.get_ylabel()) for ax in wide.axes] == [True, False, False] * 2
    (narrow,) = pages(grid, Paper(2.5, height=30.0))
    assert len(columns(narrow)) == 1
    assert [ax.get_title().replace("\n", "") for ax in narrow.axes] == [f"a-task-with-a-name-{i}" for i in range(3)] * 2
    assert all(label.get_visible() for ax in narrow.axes for label in ax.get_yticklabels())


def test_panels_are_lettered_where_there_is_more_than_one():
    (page,) = pages(grid, Paper(7.0))
    assert [ax.texts[0].get_text() for ax in page.axes] == list("abcdef")
    (alone,) = pages(lambda: grid(1, 1), Paper(7.0))
    assert not alone.axes[0].texts
    many = [ax.texts[0].get_text() for ax in next(pages(lambda: grid(10, 3), Paper(7.0))).axes]
    assert many[25:] == ["z", "aa", "ab", "ac", "ad"]


def test_a_figure_higher_than_the_page_is_continued_and_no_panel_is_lost_or_shown_twice():
    paper = Paper(5.5, height=6.0)
    shown, heights, legends = [], [], []
    for page in pages(lambda: grid(12, 3), paper):
        shown += [number for number, ax in enumerate(page.axes) if ax.get_visible()]
        heights.append(page.get_size_inches()[1])
        legends.append(len(page.legends))
        check(page, paper)
    assert shown == list(range(36))
    assert len(heights) > 2
    assert max(heights) <= 6.0
    assert set(legends) == {1}


def test_a_legend_has_as_many_columns_as_fit():
    def rows(width, label):
        (page,) = pages(lambda: grid(1, 1, legend=label), Paper(width))
        return len({round(in_points(text, page)[1]) for text in page.legends[0].get_texts()})

    assert rows(7.0, "method {}") == 1
    assert rows(3.25, "a method with a name of some length {}") == 4
    assert 1 < rows(7.0, "a method with a name of some length {}") < 4


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("paper") / "budget")
    (store.root / "rows").mkdir()
    shutil.copy(RESULTS / "questions" / "rows" / "budget.parquet", store.root / "rows")
    shutil.copy(RESULTS / "questions" / "manifest.json", store.root)
    return store


def test_files_have_exactly_the_width_asked_for_and_hold_their_fonts(copied):
    paths = print_figures(copied, ["budget"], EXPERIMENTS, Paper(3.25), ["pdf", "svg", "png"])
    files = {path.name: path for path in paths}
    assert {path.parent for path in paths} == {copied.root / "figures" / "paper"}
    assert "budget.txt" in files
    assert {"budget.pdf", "budget.svg", "budget.png"} <= {re.sub(r"-\d+", "", name) for name in files}
    for name, path in files.items():
        if name.endswith(".pdf"):
            content = path.read_bytes()
            (width,) = re.findall(rb"/MediaBox \[ ?0 0 ([\d.]+) [\d.]+ ?\]", content)
            assert float(width) == 234
            assert b"/FontFile2" in content
            assert b"/Type3" not in content
        elif name.endswith(".svg"):
            (width,) = re.findall(r'<svg [^>]*?width="([\d.]+)pt"', path.read_text())
            assert float(width) == 234
            assert "<text" not in path.read_text()
        elif name.endswith(".png"):
            with Image.open(path) as image:
                assert image.width == 975
                assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_files_of_another_width_are_replaced_and_the_same_rows_give_the_same_bytes(copied):
    narrow = print_figures(copied, ["budget"], EXPERIMENTS, Paper(3.25, height=3.5), ["pdf", "svg"])
    before = {path.name: without_clip_names(path.read_bytes()) for path in narrow}
    folder = narrow[0].parent
    assert len(before) > 3
    print_figures(copied, ["budget"], EXPERIMENTS, Paper(7.0, height=30.0), ["pdf"])
    assert {path.name for path in folder.iterdir()} == {"budget.pdf", "budget.txt"}
    print_figures(copied, ["budget"], EXPERIMENTS, Paper(3.25, height=3.5), ["pdf", "svg"])
    assert {path.name: without_clip_names(path.read_bytes()) for path in folder.iterdir()} == before


def test_a_caption_says_what_is_shown_of_how_many_seeds_and_where_rows_are_from(copied):
    text = print_figures(copied, ["budget"], EXPERIMENTS, Paper())[-1].read_text()
    run = re.search(r'"run": "(\w+)"', (copied.root / "manifest.json").read_text())[1]
    seeds = copied.read_all("budget")["seed"].nunique()
    for said in (EXPERIMENTS["budget"].SUMMARY[1:], f"{seeds} seed", "folder budget", run, "inrun-bench 0.1.0"):
        assert said in text


@pytest.mark.parametrize("name", sorted(set(drawn(EXPERIMENTS)) - {"cost", "groups", "overhead"}))
def test_every_figure_says_in_its_docstring_what_its_marks_are_over(name):
    assert re.search(r"interval|quartile|median", EXPERIMENTS[name].draw.__doc__)


def test_figures_for_the_screen_are_not_changed_by_those_for_print(copied):
    draw_figures(copied, ["budget"], EXPERIMENTS)
    drawing = copied.root / "figures" / "budget.svg"
    before = without_clip_names(drawing.read_bytes())
    print_figures(copied, ["budget"], EXPERIMENTS, Paper())
    draw_figures(copied, ["budget"], EXPERIMENTS)
    assert without_clip_names(drawing.read_bytes()) == before


def test_bars_are_continued_below_where_the_page_is_too_narrow_for_their_numbers():
    groups = list("abcdefghij")
    assert continued(groups, 6) == [groups]
    with Paper(3.25).in_force():
        narrow = continued(groups, 6)
    with Paper(7.0).in_force():
        wide = continued(groups, 6)
    for parts in (narrow, wide):
        assert [group for part in parts for group in part] == groups
        assert max(map(len, parts)) - min(map(len, parts)) <= len(parts)
    assert len(narrow) > len(wide) > 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"width": 0.5}, "width must be from 2 to 24 inches, got 0.5"),
        ({"width": float("nan")}, "width must be from 2 to 24 inches, got nan"),
        ({"height": 1e3}, "height must be from 3 to 36 inches, got 1000.0"),
        ({"font_size": 72.0}, "font_size must be from 5 to 20 points, got 72.0"),
        (
            {"width": 2.0, "font_size": 20.0},
            "width must be at least 16 times font_size, 4.4 inches for 20 points, got 2",
        ),
        ({"font": "No Such Font"}, "font must be one that is installed, such as .*; got 'No Such Font'"),
    ],
)
def test_a_page_out_of_all_proportion_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Paper(**given)


def test_a_format_that_there_is_not_is_refused(copied):
    with pytest.raises(ValueError, match=r"'dpf'.*pdf"):
        print_figures(copied, ["budget"], EXPERIMENTS, Paper(), ["dpf"])


def test_experiments_without_rows_and_figures_without_axes_are_passed_over(tmp_path):
    store = Store(tmp_path / "results")
    assert print_figures(store, drawn(EXPERIMENTS), EXPERIMENTS, Paper()) == []


def test_axes_outside_of_any_grid_keep_their_places():
    def draw():
        figure = Figure(figsize=(8, 4))
        figure.add_axes((0.1, 0.2, 0.8, 0.7)).plot([1, 2])
        return figure

    (page,) = pages(draw, Paper(4.0))
    assert page.get_size_inches().tolist() == [4.0, 2.0]


def test_rows_of_one_seed_or_method_can_be_printed():
    rows = Store(RESULTS / "quick", create=False).read_all("removal")
    for few in (rows[rows["seed"] == 0], rows[rows["method"].isin(["random", "knn"])]):
        for page in pages(lambda few=few: EXPERIMENTS["removal"].draw(pd.DataFrame(few)), Paper(3.25)):
            check(page, Paper(3.25))
