"""Each script of ``docs/examples`` runs, draws its figure and prints what is true; the site shows all of them."""

import ast
import re
import runpy
import sys
from math import comb, factorial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

matplotlib = pytest.importorskip("matplotlib")

FOLDER = Path(__file__).parents[1] / "docs" / "examples"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))
NUMBER = r"-?\d+\.\d+(?:e-?\d+)?"


@pytest.fixture
def ran(tmp_path, monkeypatch, capsys):
    """Run a script as a user would, from another folder; return its names, and what it prints."""

    def run(name):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "drawn.png"])
        with matplotlib.rc_context({"backend": "agg"}):
            names = runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
            matplotlib.pyplot.close("all")
        with Image.open(tmp_path / "drawn.png") as drawn:
            assert len(drawn.convert("L").getcolors()) > 10  # there is something to see
        assert [path.name for path in tmp_path.iterdir()] == ["drawn.png"]
        return names, capsys.readouterr().out

    return run


def books_balance(ledger, drop_at_least):
    accounts = ledger.accounts
    assert accounts["samples"] + accounts["optimizer"] + accounts["residual"] == pytest.approx(accounts["drop"])
    assert accounts["drop"] > drop_at_least


def test_training_loop(ran):
    names, out = ran("training_loop")
    books_balance(names["ledger"], 1.0)
    assert abs(names["ledger"].accounts["residual"]) < 1e-3
    assert names["values"].sum() == pytest.approx(names["ledger"].accounts["samples"])
    assert float(re.findall(NUMBER, out.splitlines()[-1])[0]) > 0.8


def test_query_values(ran):
    names, out = ran("query_values")
    assert names["values"].shape == (names["N_TRAIN"], names["N_QUERIES"])
    of_its_digit, told_wrong = (float(re.findall(NUMBER, line)[0]) for line in out.splitlines())
    assert of_its_digit > 0.9
    assert told_wrong > 3 * names["WRONG"]
    is_wrong = names["is_wrong"].numpy()
    wrong, right = (names["values"][mask].mean() for mask in (is_wrong, ~is_wrong))
    assert wrong < 0 < right


def test_batch_selection(ran):
    names, out = ran("batch_selection")
    final = {name: np.mean(accuracies) for name, accuracies in names["final"].items()}
    assert final["best half"] > final["everything"] + 0.1
    assert final["best half"] > final["random half"] + 0.1
    best, everything, _ = (float(re.findall(NUMBER, line)[-1]) for line in out.splitlines())
    assert best < 0.2 < 0.35 < everything  # wrong labels among what was trained on


def test_transformers_model(ran):
    pytest.importorskip("transformers")
    names, _ = ran("transformers_model")
    ledger = names["inrun"].ledger
    books_balance(ledger, 1.0)
    assert sum(by_step.sum() for by_step in ledger.groups().values()) == pytest.approx(ledger.accounts["samples"])


def test_sklearn_estimator(ran):
    names, _ = ran("sklearn_estimator")
    assert names["valuation"].values.sum() == pytest.approx(names["total"] - names["empty"])
    assert names["valuation"].evaluations < 3000  # the rule ended it


def test_own_game(ran):
    names, _ = ran("own_game")
    # one of the ten others decides where it is the ninth, after all permanent members and three of its nine like
    other = comb(9, 3) * factorial(8) * factorial(6) / factorial(15)
    assert names["exact"].values == pytest.approx([(1 - 10 * other) / 5] * 5 + [other] * 10)


def test_own_method(ran):
    names, _ = ran("own_method")
    for name, metric in (("agreement", "spearman"), ("detection", "auroc")):
        rows = names["tables"][name].query("metric == @metric")
        assert sorted(rows["method"]) == sorted(2 * ["margins", "inrun-first", "knn", "random"])
    by_method = rows.groupby("method")["value"].mean()
    assert by_method["margins"] > 0.9


def test_own_task(ran):
    names, out = ran("own_task")
    refused = [line for line in out.splitlines() if line.startswith("refused: ")]
    assert ["'sex'" in refused[0], "'bmi'" in refused[1], len(refused)] == [True, True, 2]
    valuation, task = names["valuation"], names["task"]
    assert valuation.values.sum() == pytest.approx(valuation.parameters["gain"], rel=0.05)  # quadrature by four points
    filled = names["filled"].iloc[task.rows].to_numpy(float)
    assert np.corrcoef(filled[:, 0], task.train.x[:, 0])[0, 1] == pytest.approx(1.0)  # value i is that of its row
    assert names["curve"].area > 0


def test_curate_corpus(ran):
    names, _ = ran("curate_corpus")
    ledger = names["inrun"].ledger
    books_balance(ledger, 1.5)
    assert names["values"].sum() == pytest.approx(ledger.accounts["samples"])
    losses = names["losses"]
    assert losses["the worst"][0] < min(losses["at random"]) < losses["the best"][0]


def test_read_results(ran):
    names, _ = ran("read_results")
    by_judge = names["by_judge"]
    assert len(by_judge) == 6 * 4
    assert by_judge.stack().between(-1, 1).all()


def test_each_script_has_a_test_a_page_and_a_figure_on_the_site():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert set(SCRIPTS) <= tested
    for name in SCRIPTS:
        page = (FOLDER / f"{name}.md").read_text()
        assert f'--8<-- "docs/examples/{name}.py"' in page
        assert f"](figures/{name}.png)" in page
        assert f"({name}.md)" in (FOLDER / "index.md").read_text()
        assert f"examples/{name}.md" in (FOLDER.parents[1] / "mkdocs.yml").read_text()


@pytest.mark.parametrize("name", SCRIPTS)
def test_figures_on_the_site_are_small(name):
    picture = FOLDER / "figures" / f"{name}.png"
    assert picture.stat().st_size < 60_000
    with Image.open(picture) as shown:
        assert shown.mode == "P"


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_say_what_is_learnt(name):
    said = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text()))
    assert "\n\nWhat you learn: " in said
