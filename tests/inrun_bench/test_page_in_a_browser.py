"""The page in Chromium: sorting, filtering, width, print and accessibility.

They need Debian's Chromium and ``pip install inrun-bench[browser]``, and are skipped where either is missing.
"""

import os
import shutil
from collections import Counter

import pytest

from inrun_bench.experiments import EXPERIMENTS
from inrun_bench.report.page import write_page
from tests.inrun_bench.pages import METHODS, small_store

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install inrun-bench[browser]")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe: pip install inrun-bench[browser]")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium, or CHROMIUM=its path")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    store = small_store(tmp_path_factory.mktemp("browser") / "results")
    return write_page(store, EXPERIMENTS, (3, Counter({"the code of method 'knn'": 3})))


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, path):
    """Open the page; fail where it says something on the console, or asks for anything but itself."""
    contexts, complaints = [], []

    def open_page(width=1280, script=True, **how):
        context = chromium.new_context(viewport={"width": width, "height": 900}, java_script_enabled=script, **how)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        asked = []
        page.goto(path.as_uri())
        assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def column(page, place):
    """The numbers of a column of the leaderboard from above, None where there is none."""
    return page.evaluate(
        """place => [...document.querySelector('#board table').tBodies[0].rows]
        .map(row => row.cells[place].dataset.number === undefined ? null : Number(row.cells[place].dataset.number))""",
        place,
    )


def place_of(page, question, task):
    heads = page.locator("#board thead tr:last-child th").evaluate_all(
        "all => all.map(head => [head.dataset.question, head.dataset.task])"
    )
    return 1 + heads.index([question, task])


def sorted_as_numbers(values, descending):
    known = sorted((value for value in values if value is not None), reverse=descending)
    return known + [None] * (len(values) - len(known))


OWN = "agreement with the run's own game"


@pytest.mark.parametrize("by", ["click", "keyboard"])
@pytest.mark.parametrize("task", ["some-task", "another-task"])
def test_a_column_is_sorted_as_numbers_best_first_then_the_other_way_missing_ones_last(opened, by, task):
    page = opened()
    place = place_of(page, OWN, task)
    head = page.locator("#board thead tr:last-child th").nth(place - 1)
    before = column(page, place)
    assert len(set(before)) > 3
    assert None in before
    for direction in ("descending", "ascending", "descending"):
        if by == "click":
            head.locator("button").click()
        else:
            head.locator("button").focus()
            page.keyboard.press("Enter" if direction == "descending" else "Space")
        assert head.get_attribute("aria-sort") == direction
        assert column(page, place) == sorted_as_numbers(before, direction == "descending")
    assert page.locator("#board th[aria-sort]").count() == 1


def test_prices_are_sorted_cheapest_first(opened):
    page = opened()
    place = place_of(page, "price", "some-task")
    page.locator("#board thead tr:last-child th").nth(place - 1).locator("button").click()
    assert column(page, place) == sorted_as_numbers(column(page, place), descending=False)


def test_methods_are_sorted_by_name(opened):
    page = opened()
    page.locator("#board thead th").first.locator("button").click()
    names = page.locator("#board tbody th").all_inner_texts()
    assert names == sorted(names, key=str.lower)


def test_every_head_of_a_table_can_be_sorted_by(opened):
    page = opened()
    assert (
        page.locator("table.sortable th[scope=col] > button").count()
        == page.locator("table.sortable th[scope=col]").count()
    )


def test_the_filter_of_methods_hides_rows(opened):
    page = opened()
    page.get_by_label("Method", exact=True).fill("knn")
    shown = page.locator("#board tbody th:visible").all_inner_texts()
    assert shown == ["KNN-Shapley"]
    assert "1 of 5 methods" in page.locator("output").inner_text()
    page.get_by_label("Method", exact=True).fill("")
    assert page.locator("#board tbody th:visible").count() == len(METHODS) + 1


def test_the_filters_of_tasks_and_questions_hide_columns(opened):
    page = opened()
    page.locator("#board-controls [name=task]").select_option("another-task")
    assert set(
        page.locator("#board thead tr:last-child th:visible").evaluate_all("a => a.map(h => h.dataset.task)")
    ) == {"another-task"}
    page.locator("#board-controls [name=question]").select_option(OWN)
    assert page.locator("#board thead tr:last-child th:visible").count() == 1
    assert page.locator("#board tbody td:visible").count() == len(METHODS) + 1
    groups = page.locator("#board thead tr:first-child th:visible").evaluate_all("a => a.map(h => h.colSpan)")
    assert groups == [1, 1]


def test_the_filter_of_an_experiment_hides_rows_of_its_tables(opened):
    page = opened()
    section = page.locator("#experiment-agreement")
    assert section.locator("tbody tr:visible").count() > 1
    section.locator("input[type=search]").fill("knn")
    assert section.locator("tbody tr:visible").count() == section.locator("table").count()


def test_without_scripts_the_page_is_complete_and_shows_no_dead_controls(opened):
    page = opened(script=False)
    assert page.locator("#board tbody tr:visible").count() == len(METHODS) + 1
    assert page.locator("form:visible, button:visible").count() == 0


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_the_page_is_never_wider_than_the_window(opened, width):
    page = opened(width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_wide_tables_and_figures_are_scrolled_in_place_by_keyboard(opened):
    page = opened(360)
    board = page.locator("#board")
    assert board.evaluate("e => e.scrollWidth > e.clientWidth")
    board.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.getElementById('board').scrollLeft > 0")


def test_the_button_changes_between_light_and_dark(opened):
    page = opened(color_scheme="light")
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.get_by_role("button", name="Dark").click()
    dark = page.evaluate(paper)
    assert dark != light
    page.get_by_role("button", name="Light").click()
    assert page.evaluate(paper) == light
    assert opened(color_scheme="dark").evaluate(paper) == dark


def test_it_is_printed_without_controls(opened):
    page = opened()
    assert page.pdf().startswith(b"%PDF")
    page.emulate_media(media="print")
    assert page.locator("form:visible, nav:visible, #board:visible").count() == 0
    assert page.locator(".paper table:visible").count() > 1
    assert page.locator("figure:visible").count() > 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_nothing_serious(opened, scheme, width):
    page = opened(width, color_scheme=scheme)
    found = axe.Axe().run(page).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")] == []
