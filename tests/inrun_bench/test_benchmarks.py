"""The benchmark from a script: what is handed over stands beside what has a name, and leaves nothing behind."""

import os
import re
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import tasks
from baselines import Valuation
from inrun_bench import Method, benchmark
from inrun_bench.methods import METHODS
from inrun_bench.runs.unit import Unit

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "benchmark.md").read_text()


def mean_of_features(task, seed):
    return task.train.x.double().mean(1).numpy()


def drawn(task, seed):
    values = np.random.default_rng(seed).normal(size=task.n_train)
    return Valuation(values, stderr=None, evaluations=3, seconds=0.5, method="drawn")


@pytest.fixture(scope="module")
def mine():
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(60, 3)), np.repeat(["no", "yes"], 30)
    x[:, 0] += np.where(y == "yes", 1.0, -1.0)
    recipe = tasks.Recipe("adamw", learning_rate=0.05, batch_size=10, epochs=2)
    return tasks.from_arrays(
        x, y, model=lambda: nn.Linear(3, 2), recipe=recipe, flipped=0.2, dtype=torch.float64, name="mine"
    )


def test_tasks_and_methods_are_judged_as_those_with_names_are(mine, tmp_path):
    named = {"one": mean_of_features, "two": Method(drawn, "Drawn at random", "chance")}
    found = benchmark([mine, "iris-logreg"], named, ["detection"], out=tmp_path, seeds=[0, 1], jobs=1)
    assert found.failed == {}
    rows = found.rows("detection").query("metric == 'auroc' and method == 'one'").set_index(["task", "seed"])["value"]
    for task in (mine, mine.rebuilt(seed=1), tasks.load("iris-logreg", seed=1)):
        low = mean_of_features(task, None)
        flipped = np.isin(np.arange(task.n_train), task.flipped)
        expected = (low[flipped][:, None] < low[~flipped]).mean()
        assert rows[task.name, task.seed] == pytest.approx(expected)
    assert "| Drawn at random" in found.summary
    assert {path.name for path in found.figures} == {"detection.png", "detection.svg"}
    assert all(path.is_file() for path in found.figures)
    assert "mine" not in tasks.CATALOG
    assert not {"one", "two"} & set(METHODS)


COUNTED = []  # a global: what a function closes over is part of its state


def test_rows_that_are_there_are_not_measured_again_unless_the_code_is_other(mine, tmp_path):
    COUNTED.clear()

    def counted(task, seed):
        COUNTED.append(task.name)
        return np.arange(float(task.n_train))

    for again in range(2):
        benchmark(mine, counted, "values", out=tmp_path, jobs=1)
        assert len(COUNTED) == 1, again
    benchmark(mine, {"counted": lambda task, seed: np.ones(task.n_train)}, "values", out=tmp_path, jobs=1)
    rows = benchmark(mine, counted, "values", out=tmp_path, jobs=1).rows("values")
    own = rows.query("method == 'counted' and metric == 'value'").sort_values("sample")["value"].to_numpy()
    assert np.array_equal(own, np.arange(float(mine.n_train)))


def test_a_function_whose_source_nobody_sees_is_measured_in_each_run_anew(mine, tmp_path):
    """As in a notebook."""
    held = {"calls": []}
    exec("def unseen(task, seed):\n    calls.append(1)\n    return task.train.x.double().mean(1).numpy()", held)  # noqa: S102
    for run in (1, 2):
        found = benchmark(mine, held["unseen"], "detection", out=tmp_path, jobs=1)
        assert found.failed == {}
        assert set(found.rows("detection")["method"]) == {"unseen", "reference"}
        assert len(held["calls"]) == run


def test_an_experiment_may_be_any_object(mine, tmp_path):
    def units(plan):
        return [Unit("sizes", task, method, plan.seeds[0]) for task in plan.tasks for method in plan.methods]

    def measure(unit, needs):
        task = tasks.load(unit.task, unit.seed)
        return [{"metric": "size", "value": float(task.n_train + len(task.validation))}]

    sizes = SimpleNamespace(EXCLUSIVE=False, units=units, measure=measure, table=lambda rows: f"{len(rows)} sizes")
    found = benchmark([mine], "random", {"sizes": sizes}, out=tmp_path, jobs=1)
    assert found.rows("sizes")["value"].tolist() == [len(mine.train) + len(mine.validation)]
    assert "1 sizes" in found.summary


def test_a_unit_that_fails_says_why_and_the_others_are_there(mine, tmp_path):
    def short(task, seed):
        return np.zeros(3)

    found = benchmark([mine], [short, drawn], ["detection"], out=tmp_path, jobs=1)
    assert any("method 'short' must return 36 finite values, got shape (3,)" in why for why in found.failed.values())
    assert set(found.rows("detection").query("status == 'ok'")["method"]) == {"drawn", "reference"}


def test_a_task_without_wrong_labels_has_none_to_detect(tmp_path):
    task = tasks.load("iris-logreg", seed=0, flipped=0.0)
    with pytest.raises(ValueError, match=r"'detection' has nothing to do on clean; it needs .* made wrong \(flipped="):
        benchmark({"clean": task}, "random", "detection", out=tmp_path, jobs=1)
    found = benchmark({"clean": task}, "random", out=tmp_path, jobs=1)  # of what is asked by itself, the rest
    assert found.failed == {}
    assert found.rows("detection").empty
    assert set(found.rows("removal")["task"]) == {"clean"}


@pytest.mark.parametrize(
    ("asked", "error", "match"),
    [
        ({"tasks": "iris-logrg"}, ValueError, "iris-logreg"),
        ({"experiments": "scale"}, ValueError, "nothing to do on iris-logreg; it needs .*digits-mlp"),
        ({"methods": "knnn"}, ValueError, "knn"),
        ({"experiments": "detecton"}, ValueError, "detection"),
        ({"methods": {"knn": drawn}}, ValueError, "'knn' is already the name of one"),
        ({"methods": {"a b": drawn}}, ValueError, "letters, digits"),
        ({"methods": [drawn, drawn]}, ValueError, "two methods are called 'drawn'"),
        ({"methods": [3]}, TypeError, "got int"),
        ({"tasks": [3]}, TypeError, "got int"),
        ({"tasks": lambda: [tasks.load("iris-logreg")]}, ValueError, "'iris-logreg' is already the name"),
        ({"experiments": [np]}, TypeError, "without units, measure, EXCLUSIVE"),
        ({"seeds": []}, ValueError, "seeds must be at least one"),
        ({"seeds": [-1]}, ValueError, "not negative"),
        ({"profile": "quik"}, ValueError, "quick"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is(asked, error, match, tmp_path):
    given = {"tasks": ["iris-logreg"], "methods": ["random"], "experiments": ["detection"], **asked}
    given["tasks"] = given["tasks"]() if callable(given["tasks"]) else given["tasks"]
    with pytest.raises(error, match=match):
        benchmark(**given, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def code_block(holding):
    """Return the only block of Python on the page that holds a text."""
    blocks = [block for kind, block in re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL) if kind == "python"]
    (found,) = (block for block in blocks if holding in block)
    return found


def run(path, *arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])}
    command = [sys.executable, "-W", "error::RuntimeWarning", *arguments]
    done = subprocess.run(command, cwd=path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_script_of_the_documentation_runs_in_processes_of_its_own(tmp_path):
    (tmp_path / "script.py").write_text(code_block('def nearness(task, seed):\n    """Value'))
    said = run(tmp_path, "script.py")
    assert "| nearness" in said
    assert (tmp_path / "runs" / "mine" / "figures" / "agreement.png").is_file()


def test_the_estimator_of_the_documentation_is_judged_on_groups(tmp_path, monkeypatch, capsys):
    (tmp_path / "halved.py").write_text(code_block("def halved"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("inrun_bench.benchmark", partial(benchmark, jobs=1))
    runpy.run_path("halved.py", run_name="__main__")
    assert "| halved" in capsys.readouterr().out


@pytest.mark.parametrize("holding", ["removal_curve(task", "QUESTIONS ="])
def test_the_lines_of_the_documentation_run(holding):
    exec(code_block(holding), {})  # noqa: S102


def test_the_package_of_the_documentation_joins_every_command(tmp_path):
    (tmp_path / "nearness.py").write_text(code_block("NEARNESS ="))
    (offered,) = re.findall(r"entry-points\.(\"?[\w.]+\"?)\]\n(\w+) = \"(.*?)\"", PAGE)
    info = tmp_path / "nearness-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nearness\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[{}]\n{} = {}\n".format(offered[0].strip('"'), *offered[1:]))
    asked = ["run", "detection", "--task", "iris-logreg", "--method", "nearness", "--seed", "0", "--jobs", "1"]
    said = run(tmp_path, "-m", "inrun_bench.cli", *asked, "--quiet", "--out", "out")
    assert "| nearness to validation" in said
