"""The report as a page: what stands on it, and that it needs nothing but itself."""

import html
import itertools
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import escape

from inrun_bench.cli import main
from inrun_bench.experiments import EXPERIMENTS
from inrun_bench.report import docstrings, markdown_tables, pictures
from inrun_bench.report.intervals import over_seeds
from inrun_bench.report.looks import look
from inrun_bench.report.page import page, write_page
from inrun_bench.runs.failures import failures
from inrun_bench.runs.provenance import Provenance
from inrun_bench.runs.store import Store
from inrun_bench.runs.unit import REFERENCE, Unit
from tests.inrun_bench.pages import NASTY, small_store

LARGEST_PAGE = 5_000_000
VOID = {"meta", "link", "img", "input", "br"}


class Elements(HTMLParser):
    """Tags with attributes and the text inside of each; refuses what is closed in another order than opened."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.found, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, **{name: value or "" for name, value in attrs}, "text": ""}
        self.found.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.found.append({"tag": tag, **dict(attrs), "text": ""})

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def of(self, tag):
        return [element for element in self.found if element["tag"] == tag]

    def text(self):
        return " ".join(self.of("main")[0]["text"].split())


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return small_store(tmp_path_factory.mktemp("page") / "results")


@pytest.fixture(scope="module")
def text(store):
    return page(store, EXPERIMENTS, (0, Counter()))


@pytest.fixture(scope="module")
def elements(text):
    return Elements(text)


# --- one file ---


def test_nothing_is_loaded_from_elsewhere(text, elements):
    for element in elements.found:
        for name in ("src", "srcset", "data", "action", "poster", "xlink:href"):
            assert element.get(name, "data:").startswith("data:")
        if "href" in element:
            inside = element["href"].startswith(("#", "data:"))
            assert inside or (element["tag"] == "a" and element["href"].startswith("https://"))
    assert not [element for element in elements.of("link") if element["rel"] != "icon"]
    assert "@import" not in text
    assert not re.findall(r"url\((?!#|[\"']?data:)", text)
    assert not re.findall(r"fetch\(|XMLHttpRequest|WebSocket|import\(", text)


def test_the_same_rows_give_the_same_page(store, text):
    assert page(Store(store.root), EXPERIMENTS, (0, Counter())) == text


def test_the_page_is_written_beside_the_rows(store, text):
    path = write_page(store, EXPERIMENTS, (0, Counter()))
    assert path == store.root / "report.html"
    assert path.read_text(encoding="utf-8") == text


RESULTS = Path(__file__).parents[2] / "results"
PUBLISHED = [*sorted(path.parent for path in RESULTS.glob("*/report.html")), RESULTS / "retraining"]  # the most rows


@pytest.mark.parametrize("folder", PUBLISHED, ids=[folder.name for folder in PUBLISHED])
def test_pages_take_at_most_5_mb(folder, monkeypatch):
    """Without its figures, which take a minute to draw: what those take at most is added."""
    monkeypatch.setattr("inrun_bench.report.page.picture", lambda *_: None)
    figures = folder.glob("figures/*.png")
    drawn = sum(max(pictures.LARGEST_SVG, 4 / 3 * figure.stat().st_size) for figure in figures)
    assert len(page(Store(folder, create=False), EXPERIMENTS).encode()) + drawn < LARGEST_PAGE


# --- what stands on it ---


def test_ids_are_unique_and_links_lead_somewhere(elements):
    ids = [element["id"] for element in elements.found if "id" in element]
    assert len(ids) == len(set(ids))
    targets = {e.get("href", "")[1:] for e in elements.found if e.get("href", "").startswith("#")}
    targets |= {e[name] for e in elements.found for name in ("aria-labelledby", "for") if name in e}
    assert targets <= set(ids)


def test_headings_come_in_order_and_landmarks_are_there(elements):
    levels = [int(element["tag"][1]) for element in elements.found if re.fullmatch("h[1-6]", element["tag"])]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    for landmark in ("header", "nav", "main", "footer"):
        assert len(elements.of(landmark)) == 1


def test_every_table_has_a_caption_and_every_row_a_head(text):
    for table in re.findall(r"<table.*?</table>", text, flags=re.DOTALL):
        assert table.count("<caption>") == 1
        for row in re.findall(r"<tr>.*?</tr>", table, flags=re.DOTALL):
            assert re.search(r"<th scope=\"(row|col|colgroup)\"", row)
    scopes = [element.get("scope") for element in Elements(text).of("th")]
    assert set(scopes) == {"row", "col", "colgroup"}


def test_every_method_and_task_of_the_rows_appears(store, elements):
    shown = elements.text()
    for name in store.experiments():
        rows = store.read_all(name)
        for method in set(rows["method"]) - {REFERENCE}:
            assert " ".join(look(method).label.split()) in shown
        for task in set(rows["task"]):
            assert task in shown


def test_the_numbers_of_the_leaderboard_are_those_of_the_rows(store, text):
    rows = store.read_all("agreement")
    table = over_seeds(rows[rows["metric"] == "spearman"])
    board = text[text.index('id="board"') : text.index('class="paper"')]
    for (_, method, _), (mean, low, high, n, _) in table.iterrows():
        if method == REFERENCE:
            continue
        head = f'<th scope="row">{escape(look(method).label)}</th>'
        (row,) = re.findall(rf"{re.escape(head)}.*?</tr>", board, re.DOTALL)
        (cell,) = (c for c in re.findall(r"<td.*?</td>", row, re.S) if f'data-number="{mean}"' in c)
        assert f"{mean:.3f}" in cell
        assert (f"{low:.3f} to {high:.3f}" in cell) == (n > 1)


def test_each_figure_says_what_it_shows_and_stands_with_its_caption(elements):
    figures, captions = elements.of("svg"), elements.of("figcaption")
    assert len(figures) == len(captions) == len(elements.of("figure")) > 1
    for figure, caption in zip(figures, captions, strict=True):
        assert figure["role"] == "img"
        assert figure["aria-label"] == " ".join(caption["text"].split())


def test_each_experiment_says_what_it_asks(elements, store):
    shown = elements.text()
    for name in store.experiments():
        if name in EXPERIMENTS:
            assert re.sub("<.*?>", "", html.unescape(docstrings.about(EXPERIMENTS[name], name).question)) in shown


def test_tables_of_experiments_are_there_whole(store, text):
    told = EXPERIMENTS["agreement"].table(store.read_all("agreement"))
    cells = [cell.strip() for line in told.splitlines() if line.startswith("| ") for cell in line.strip("|").split("|")]
    assert len(cells) > 3
    for cell in filter(None, cells):
        assert html.escape(cell, quote=False) in html.unescape(text) or html.unescape(cell) in html.unescape(text)


# --- names of anyone ---


def test_names_and_messages_are_escaped(text, elements):
    """They are one tag, and text, and nothing that a browser would run."""
    assert NASTY not in text
    assert "<img" not in text
    assert not elements.of("script")[0].get("src")
    assert len(elements.of("script")) == 1
    assert NASTY in elements.of("main")[0]["text"]
    assert not any("onerror" in element for element in elements.found)


def test_pictures_and_links_in_a_table_stay_text():
    told = "above <b>\n\n| a | b |\n|:--|--:|\n| ![x](http://example.org) | [y](http://example.org) `c` **d** |\n"
    (table,) = markdown_tables.blocks(told)
    assert table.caption == "above &lt;b&gt;"
    (row,) = table.rows
    assert row[0].html == "![x](http://example.org)"
    assert row[1].html == "[y](http://example.org) <code>c</code> <strong>d</strong>"


# --- Markdown, docstrings and drawings ---


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0.834 [0.727, 0.902]", 0.834),
        ("-0.02, 3 s", -0.02),
        ("+0.166 [0.1, 0.2] (3 of 3)", 0.166),
        ("12,345", 12345.0),
        ("< 0.0001 %", 0.0001),
        ("1e+02 %", 100.0),
        ("1.5 / 2.0", 1.5),
        ("", None),
        ("2-bit", None),
        ("all", None),
        ("-", None),
    ],
)
def test_columns_are_sorted_by_the_number_that_a_cell_begins_with(text, number):
    assert markdown_tables.number(text) == number


def test_rows_named_in_italics_bound_the_others():
    (table,) = markdown_tables.blocks("| a | b |\n|:--|--:|\n| x | 1 |\n| *ceiling* | 2 |\n| **y** | 3 |\n")
    assert [[cell.number for cell in row] for row in table.rows] == [[None, 1.0], [None, 3.0]]
    assert [[cell.number for cell in row] for row in table.bounds] == [[None, 2.0]]
    assert table.caption == ""


def test_all_tables_of_a_summary_are_read(results):
    for name in results.experiments():
        table = getattr(EXPERIMENTS[name], "table", None)
        told = table(results.read_all(name)) if table else ""
        read = [block for block in markdown_tables.blocks(told) if isinstance(block, markdown_tables.Table)]
        assert len(read) == len(re.findall(r"(?m)^\|:?-", told))
        assert sum(len(t.rows) + len(t.bounds) for t in read) == len(re.findall(r"(?m)^\| ", told)) - len(read)


def test_a_docstring_is_told_without_its_markup():
    def experiment():
        """Demo: how ``well`` :mod:`~a.b.agreement` <goes>.

        - one *point*
        - another

        ====  ====
        a     b
        ====  ====
        """

    told = docstrings.about(experiment, "demo")
    assert told.question == "How <code>well</code> <code>agreement</code> &lt;goes&gt;."
    assert told.reading[0] == "<ul><li>one <em>point</em></li><li>another</li></ul>"
    assert told.reading[1].startswith("<pre>====")


def test_drawings_of_a_page_share_no_id_and_point_to_their_own():
    drawing = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="72pt" height="36pt">'
        "<metadata>x</metadata><defs><style>*{}</style><path id='m'/></defs>"
        "<use xlink:href='#m' clip-path='url(#p)' style='fill: url(#h)'/><text>#m url(#p) &lt;</text></svg>"
    )
    first, second = (Elements(pictures.inline_svg(drawing, name, 'says "so"')) for name in ("a", "b"))
    for elements, name in ((first, "a"), (second, "b")):
        (use,) = elements.of("use")
        assert (use["href"], use["clip-path"], use["style"]) == (
            f"#{name}-m",
            f"url(#{name}-p)",
            f"fill: url(#{name}-h)",
        )
        assert elements.of("path")[0]["id"] == f"{name}-m"
        assert elements.of("text")[0]["text"] == "#m url(#p) <"
        assert elements.of("svg")[0]["aria-label"] == 'says "so"'
        assert elements.of("svg")[0]["width"] == "96"
        assert not elements.of("style") + elements.of("metadata")


def test_a_large_drawing_is_a_png(store, monkeypatch):
    monkeypatch.setattr(pictures, "LARGEST_SVG", 10)
    shown = pictures.picture("a", EXPERIMENTS["agreement"], store.read_all("agreement"))
    (image,) = Elements(shown).of("img")
    assert image["src"].startswith("data:image/png;base64,")
    assert image["alt"] == pictures.caption_of(EXPERIMENTS["agreement"])


# --- what is missing, failed or out of date ---


def test_failed_units_are_named_with_their_messages(store, elements):
    (failure,) = failures(store.root)
    shown = elements.text()
    assert str(failure.unit) in shown
    assert failure.message in elements.of("dd")[0]["text"]
    assert "1 error in units that failed" in shown


def test_failures_are_found_in_packs_too_and_a_unit_measured_again_is_none(tmp_path):
    store = Store(tmp_path / "results")
    units = [Unit("agreement", "some-task", method, 0, {"n": 3}) for method in ("a", "b")]
    for unit in units:
        store.write(unit, [{"metric": "none", "value": None, "status": "error", "message": f"{unit.method} broke"}])
    for _ in range(2):
        assert [(each.unit, each.message) for each in failures(store.root)] == [
            (units[0], "a broke"),
            (units[1], "b broke"),
        ]
        store.pack()
    store.write(units[0], [{"metric": "spearman", "value": 0.5}])
    assert [each.message for each in failures(store.root)] == ["b broke"]


def test_what_is_out_of_date_is_said(store):
    stale = (3, Counter({"the code of method 'knn'": 2, "the content of task 'x'": 1}))
    shown = Elements(page(store, EXPERIMENTS, stale)).text()
    assert "3 units out of date" in shown
    assert "the code of method 'knn': 2" in shown
    assert "Nobody looked" in Elements(page(store, EXPERIMENTS)).text()


def test_up_to_date_rows_are_said_to_be(elements):
    assert "All rows are up to date." in elements.text()


def test_what_the_folder_lacks_is_said(elements):
    shown = elements.text()
    absent = [n for n, e in EXPERIMENTS.items() if e.DEFAULT and n not in ("agreement", "detection")]
    assert f"No rows of {', '.join(absent)}." in shown
    assert "another-task: seeds 1, 2" in shown
    assert f"another-task: {look('knn').label}" in shown


def test_one_seed_is_said_to_have_no_interval(elements):
    assert "One seed alone, and so no interval: another-task" in elements.text()


def test_what_no_package_here_knows_is_shown_and_said(elements):
    shown = " ".join(elements.of("main")[0]["text"].split())
    assert "Known to no package installed here: 1 method" in shown
    assert "Known to no package installed here: 2 tasks (another-task, some-task)" in shown
    assert "Known to no package installed here: 1 experiment (acme-experiment)" in shown


def test_the_manifest_is_told(tmp_path):
    store = Store(tmp_path / "results")
    run = store.begin_run(2, [0, 1, 2, 5])
    unit = Unit("agreement", "some-task", "knn", 0)
    store.write(unit, [{"metric": "spearman", "value": 0.5}], Provenance.of(unit, None, run))
    store.count_units(run, done=1, failed=0)
    (said,) = json.loads((store.root / "manifest.json").read_text())
    elements = Elements(page(store, EXPERIMENTS))
    (table,) = (t for t in elements.of("table") if "commit" in t["text"])
    assert "0 to 2, 5" in table["text"]
    told = {e["text"]: f["text"] for e, f in zip(elements.of("dt"), elements.of("dd"), strict=True)}
    assert told["processor"] == said["processor"]
    assert told["threads a unit"] == "1"
    assert {name: told[name] for name in said["versions"]} == {n: v or "none" for n, v in said["versions"].items()}


def test_a_folder_without_a_manifest_says_so(elements):
    assert "the folder has no manifest" in elements.text()


def test_a_folder_of_errors_alone_has_a_page(tmp_path):
    store = Store(tmp_path / "results")
    unit = Unit("agreement", "some-task", "knn", 0)
    store.write(unit, [{"metric": "none", "value": None, "status": "error", "message": "out of luck"}])
    shown = Elements(page(store, EXPERIMENTS)).text()
    assert "out of luck" in shown
    assert "none has rows that do" in shown


def test_rows_that_answer_no_question_have_a_page(tmp_path):
    store = Store(tmp_path / "results")
    for name in ("agreement", "detection", "values"):
        store.write(Unit(name, "some-task", "knn", 0), [{"metric": "cost", "value": 1.0, "seconds": 1.0}])
    assert "none has rows that do" in Elements(page(store, {"values": EXPERIMENTS["values"]})).text()
    assert "none has rows that do" in Elements(page(store, {"agreement": EXPERIMENTS["agreement"]})).text()


# --- the command ---


def test_a_folder_without_rows_is_refused_with_what_to_run(tmp_path, capsys):
    Store(tmp_path / "results")
    assert main(["report", "--html", "--out", str(tmp_path / "results")]) == 2
    error = capsys.readouterr().err
    assert f"no rows in '{tmp_path / 'results'}'" in error
    assert f"run 'inrun-bench run --out {tmp_path / 'results'}' first" in error
    assert not (tmp_path / "results" / "report.html").exists()


def test_the_command_writes_the_page_only_where_it_is_asked_for(store, capsys):
    path = store.root / "report.html"
    path.unlink(missing_ok=True)
    assert main(["report", "--out", str(store.root)]) == 0
    assert not path.exists()
    assert main(["report", "--html", "--out", str(store.root)]) == 0
    assert str(path) in capsys.readouterr().out
    assert Elements(path.read_text(encoding="utf-8")).of("table")
