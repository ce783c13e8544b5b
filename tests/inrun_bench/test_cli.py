import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import warnings
from dataclasses import replace

import numpy as np
import pytest

from baselines import Valuation, permutation_shapley
from inrun_bench import cli
from inrun_bench.cli import main
from inrun_bench.experiments import EXPERIMENTS
from inrun_bench.methods import METHODS, method_names, method_of
from inrun_bench.methods.method import OPTIONS
from inrun_bench.report import BEGIN, END
from inrun_bench.report.figures import drawn
from inrun_bench.report.paper import FORMATS
from inrun_bench.report.table_files import TABLE_FORMATS
from inrun_bench.runs.backends import BACKENDS
from inrun_bench.runs.plan import PROFILES
from inrun_bench.runs.store import Store
from tasks import CATALOG
from tests.baselines.known_games import Table
from tests.inrun_bench.tiny import METHODS as TINY_METHODS
from tests.inrun_bench.tiny import TASK, files, without_clip_names

pytestmark = pytest.mark.usefixtures("tiny_profile")


@pytest.fixture
def copied(results, tmp_path):
    """A copy of the results that may be written to."""
    return shutil.copytree(results.root, tmp_path / "copied")


@pytest.fixture
def command(capsys, tmp_path, monkeypatch):
    """Run the command line in an empty folder; return exit code, output and errors."""
    folder = tmp_path / "working-folder"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def call(*arguments):
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return call


def broken(_task, _seed):
    raise ArithmeticError("out of luck")


@pytest.fixture
def broken_method(monkeypatch):
    monkeypatch.setitem(METHODS._all(), "broken", broken)


def test_ctrl_c_ends_a_command_rather_than_its_estimate_alone(monkeypatch):
    def interrupt(_estimate):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_list", lambda _: permutation_shapley(Table([0.0, 1.0]), 10, rng=0, stop=interrupt))
    with warnings.catch_warnings(), pytest.raises(KeyboardInterrupt):
        warnings.simplefilter("default")  # as it is outside of these tests
        main(["list"])


# --- list ---


def test_list_names_everything(command):
    code, out, err = command("list")
    assert (code, err) == (0, "")
    named = {line.split()[0] for line in out.splitlines() if line.startswith("  ")}
    assert named == {*EXPERIMENTS, *CATALOG, *METHODS, *PROFILES, *OPTIONS}
    for summary in (*(e.SUMMARY for e in EXPERIMENTS.values()), *(t.summary for t in CATALOG.values())):
        assert summary in out


def test_list_says_what_methods_take(command):
    _, out, _ = command("list")
    for name in METHODS:
        (line,) = (line for line in out.splitlines() if line.split()[:1] == [name])
        told = line.partition("[")[2].rstrip("]").split(", ") if line.endswith("]") else []
        assert told == [option for option in OPTIONS if name in method_names(taking=option)]


# --- bad input ---


@pytest.mark.parametrize(
    ("arguments", "kind", "got", "nearest", "known"),
    [
        (["run", "agrement"], "experiment", "agrement", "agreement", EXPERIMENTS),
        (["run", "values", "--task", TASK, "digit-mlp"], "task", "digit-mlp", "digits-mlp", CATALOG),
        (["run", "values", "--method", "inrun-frist"], "method", "inrun-frist", "inrun-first", METHODS),
        (["run", "values", "--backend", "dusk"], "backend", "dusk", "dask", BACKENDS),
        (["run", "values", "--profile", "quik"], "profile", "quik", "quick", PROFILES),
        (["figures", "--profile", "quik"], "profile", "quik", "quick", PROFILES),
        (["report", "--profile", "standart"], "profile", "standart", "standard", PROFILES),
        (["figures", "fidelty"], "figure", "fidelty", "fidelity", drawn(EXPERIMENTS)),
        (["figures", "--style", "paper", "--format", "pfd"], "format", "pfd", "pdf", FORMATS),
        (["report", "--format", "latx"], "format", "latx", "latex", ("markdown", *TABLE_FORMATS)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unknown_name_is_refused_with_the_nearest_and_all_known_ones(
    command, arguments, kind, got, nearest, known, tmp_path
):
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert f"unknown {kind} {got!r}; did you mean {nearest!r}? (known: {', '.join(known)})" in err
    assert not list(tmp_path.glob("working-folder/*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--jobs", "0"], "--jobs must be a positive number, or -1 for one a core; got 0"),
        (["run", "--jobs", "-2"], "--jobs must be a positive number, or -1 for one a core; got -2"),
        (["run", "--jobs", "many"], "many"),
        (["run", "--seed", "0", "-3"], "--seed must not be negative, got -3"),
        (["run", "--seed", "first"], "first"),
        (["reference", "--minutes", "nan"], "--minutes must be a number of at least 0, got nan"),
        (["reference", "--minutes", "-1"], "--minutes must be a number of at least 0, got -1.0"),
        (["run", "gpu", "agreement"], "gpu runs alone, got gpu, agreement; run the others in a command of their own"),
        (["run", "agreement", "gpu", "--budget", "5"], "gpu runs alone, got agreement, gpu"),
        (
            ["run", "gpu", "--task", "iris-logreg"],
            "gpu says itself what it measures, and runs it one by one; leave --task",
        ),
        (["run", "gpu", "--jobs", "1"], "gpu says itself what it measures, and runs it one by one; leave --jobs away"),
        (["run", "agreement", "--budget", "5"], "--budget and --limit are for experiments that run alone (gpu)"),
        (["run", "--limit", "5"], "--budget and --limit are for experiments that run alone (gpu)"),
        (["figures"], "no results in 'runs/quick'"),
        (["figures", "--width", "5"], "--width is of figures for print; add --style paper"),
        (["figures", "--font-size", "8"], "--font-size is of figures for print; add --style paper"),
        (["figures", "--format", "pdf"], "--format is of figures for print; add --style paper"),
        (["figures", "--style", "paper", "--width", "0.1"], "width must be from 2 to 24 inches, got 0.1"),
        (["figures", "--style", "paper", "--font", "None Such"], "font must be one that is installed"),
        (["figures", "--style", "slides"], "slides"),
        (["report"], "no results in 'runs/quick'"),
        (["report", "--profile", "standard"], "no results in 'runs/standard'"),
        (["figures", "--out", "missing"], "no results in 'missing'"),
        ([], "list | run | figures | report"),
        (["walk"], "walk"),
    ],
    ids=" ".join,
)
def test_bad_input_is_refused_and_nothing_is_made(command, arguments, message, tmp_path):
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert not list(tmp_path.glob("working-folder/*"))


@pytest.mark.parametrize("name", ["run", "figures", "report"])
def test_results_in_another_format_are_refused(command, copied, name):
    stamp = copied / "store.json"
    stamp.write_text(json.dumps({"format": 99, "inrun_bench": "99.1.2"}))
    code, _, err = command(name, "--out", copied)
    assert code == 2
    assert "99.1.2" in err


def test_somebody_elses_folder_is_refused(command, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("precious")
    code, _, err = command("run", "--out", tmp_path / "theirs")
    assert code == 2
    assert "not a results folder" in err


# --- run ---


def test_a_run_measures_draws_reports_and_then_has_nothing_to_do(command, results, tmp_path):
    out = tmp_path / "out"
    arguments = ["run", "agreement", "--task", TASK, "--method", *TINY_METHODS, "--seed", 1, 1]
    arguments += ["--jobs", 1, "--quiet", "--out", out]
    code, printed, err = command(*arguments)
    assert (code, err) == (0, "")
    assert "11 units done, 0 were there already, 0 failed" in printed  # 2 blocks, 4 methods, and 5 comparisons
    assert (out / "summary.md").read_text().strip() in printed
    assert {path.name for path in (out / "figures").iterdir()} == {"agreement.png", "agreement.svg"}
    mine = {name for name in files(results.root) if name.split(".")[0] in ("values", "agreement") and ".1." in name}
    before = files(out)
    assert set(before) == mine

    code, printed, err = command(*arguments)
    assert (code, err) == (0, "")
    assert "nothing to do: the rows of all 11 units are there already" in printed
    assert files(out) == before


@pytest.mark.usefixtures("broken_method")
def test_failed_units_are_listed_and_the_exit_code_is_1_until_they_are_done(command, tmp_path, monkeypatch):
    arguments = ["run", "detection", "--task", TASK, "--method", "broken", "knn", "--seed", 0]
    arguments += ["--jobs", 1, "--quiet", "--out", tmp_path / "out"]
    for first in (True, False):
        code, printed, err = command(*arguments)
        assert code == 1
        assert f"{5 if first else 0} units done, {0 if first else 5} were there already, 2 failed" in printed
        assert err.splitlines() == [
            f"inrun-bench: failed: values {TASK} broken seed=0: ArithmeticError: out of luck",
            f"inrun-bench: failed: detection {TASK} broken seed=0: "
            f"RuntimeError: needs 'values {TASK} broken seed=0', which failed",
        ]
    monkeypatch.setitem(METHODS._all(), "broken", METHODS["random"])
    code, printed, err = command(*arguments)
    assert (code, err) == (0, "")
    assert "2 units done, 5 were there already, 0 failed" in printed


@pytest.mark.usefixtures("broken_method")
def test_a_failed_unit_does_not_keep_the_others_from_their_figure_and_its_message_from_being_read(command, copied):
    for path in (copied / "rows").iterdir():
        if path.name.split(".")[0] not in ("values", "overhead") or path.name.startswith(f"overhead.{TASK}.runs."):
            path.unlink()
    methods = [*TINY_METHODS, "broken"]  # the wall times of all methods are one unit, which now fails
    code, _, err = command(
        "run", "overhead", "--task", TASK, "--method", *methods, "--jobs", 1, "--quiet", "--out", copied
    )
    assert code == 1
    assert "out of luck" in err
    assert (copied / "figures" / "overhead.svg").exists()


def test_methods_and_tasks_of_another_package_are_measured_beside_ours(command, tmp_path, monkeypatch):
    (tmp_path / "acme.py").write_text(
        textwrap.dedent(
            """
            import numpy as np
            from torch import nn
            from baselines import Valuation
            from tasks import Recipe, TaskSpec

            def dataset():
                x = np.random.default_rng(0).normal(size=(60, 3))
                return x, (x[:, 0] > 0).astype(np.int64)

            TASK = TaskSpec(
                dataset, lambda: nn.Linear(3, 2), {"sgd": Recipe("sgd", 0.1, 5, 2)},
                n_classes=2, n_train=20, n_validation=20, n_test=20, scaling="feature", summary="blobs",
            )

            def norm(task, seed):
                values = task.train.x.double().norm(dim=1).numpy()
                return Valuation(values=values, stderr=None, evaluations=0, seconds=0.5, method="norm")
            """
        )
    )
    info = tmp_path / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[inrun_bench.tasks]\nacme-blobs = acme:TASK\n[inrun_bench.methods]\nacme-norm = acme:norm\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(CATALOG, "_found", None)
    monkeypatch.setattr(METHODS, "_found", None)
    chosen = ["--task", "acme-blobs", "--method", "acme-norm", "inrun-first", "--seed", 0]
    try:
        code, printed, err = command(
            "run", "agreement", "removal", *chosen, "--jobs", 1, "--quiet", "--out", tmp_path / "out"
        )
    finally:
        sys.modules.pop("acme", None)
    assert (code, err) == (0, "")
    for experiment in ("agreement", "removal"):
        rows = Store(tmp_path / "out").read_all(experiment)
        assert {"acme-norm", "inrun-first", "reference"} <= set(rows["method"])
        assert set(rows["task"]) == {"acme-blobs"}
        assert "acme-norm" in (tmp_path / "out" / "figures" / f"{experiment}.svg").read_text()
    assert "acme-blobs" in printed
    assert "| acme-norm" in printed


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(99), "must return 100 finite values, got shape (99,) with 0 not finite"),
        (np.r_[np.zeros(98), np.nan, np.inf], "must return 100 finite values, got shape (100,) with 2 not finite"),
    ],
    ids=["shape", "nan"],
)
def test_values_that_are_none_are_refused_with_the_name_of_their_method(
    command, tmp_path, monkeypatch, values, message
):
    answer = Valuation(values=values, stderr=None, evaluations=0, seconds=0.0, method="whatever")
    monkeypatch.setitem(METHODS._all(), "careless", lambda _task, _seed: answer)
    code, _, err = command(
        "run", "values", "--task", TASK, "--method", "careless", "--seed", 0, "--jobs", 1, "--quiet",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 1
    assert f"method 'careless' {message}" in err


# --- figures and report ---


@pytest.fixture
def nothing_runs(monkeypatch):
    def refuse(*_arguments):
        raise AssertionError("something was run")

    for experiment in EXPERIMENTS.values():
        monkeypatch.setattr(experiment, "measure", refuse)
        monkeypatch.setattr(experiment, "units", refuse)
    for name in METHODS:
        monkeypatch.setitem(METHODS._all(), name, replace(method_of(name), run=refuse))


@pytest.mark.usefixtures("nothing_runs")
def test_figures_are_drawn_from_rows_alone_those_that_are_named_and_the_same_each_time(command, copied):
    code, printed, err = command("figures", "--out", copied)
    assert code == 0
    assert err.startswith("inrun-bench: note: the rows of ")  # what measured them has been taken out
    paths = sorted((copied / "figures").iterdir())
    assert sorted(printed.split()) == [str(path) for path in paths]
    names = [name for name in drawn(EXPERIMENTS) if EXPERIMENTS[name].DEFAULT]
    assert {path.name for path in paths} == {f"{name}.{end}" for name in names for end in ("png", "svg")}
    pictures = {path.name: without_clip_names(path.read_bytes()) for path in paths}
    shutil.rmtree(copied / "figures")

    code, printed, err = command("figures", "detection", "lds", "removal", "--out", copied)
    assert code == 0
    assert f"note: no rows of lds in {copied}" in err
    again = [f"{name}.{end}" for name in ("detection", "removal") for end in ("png", "svg")]
    assert [line.rpartition("/")[2] for line in printed.splitlines()] == again
    drawn_again = {path.name: without_clip_names(path.read_bytes()) for path in (copied / "figures").iterdir()}
    assert drawn_again == {name: pictures[name] for name in again}


@pytest.mark.usefixtures("nothing_runs")
def test_figures_for_print_and_tables_go_to_folders_of_their_own(command, copied):
    options = ("--style", "paper", "--width", "3.25", "--font-size", "7", "--format", "svg", "png", "svg")
    code, printed, _ = command("figures", "detection", *options, "--out", copied)
    assert code == 0
    paths = [copied / "figures" / "paper" / f"detection.{end}" for end in ("svg", "png", "txt")]
    assert printed.split() == list(map(str, paths))
    assert 'width="234pt"' in paths[0].read_text()
    code, printed, _ = command("report", "--format", "latex", "csv", "markdown", "--out", copied)
    assert code == 0
    assert printed.startswith((copied / "summary.md").read_text())
    names = {path.name for path in (copied / "tables").iterdir()}
    assert {"headline.tex", "headline.csv", "retraining-1.tex", "retraining-1.csv"} <= names


@pytest.mark.usefixtures("nothing_runs")
def test_report_replaces_what_is_between_the_marks_and_nothing_else(command, copied, tmp_path):
    page = tmp_path / "page.md"
    head, tail = "# Title\n\n| a | table |\n\n", "\nThe end, without a line break"
    page.write_text(f"{head}{BEGIN}\nold words\n{END}{tail}")
    code, printed, err = command("report", "--out", copied, "--into", page)
    assert code == 0
    assert err.startswith("inrun-bench: note: the rows of ")  # what measured them has been taken out
    text = page.read_text()
    assert text.startswith(head + BEGIN)
    assert text.endswith(END + tail)
    assert "old words" not in text
    summary = text.removeprefix(head + BEGIN).removesuffix(END + tail).strip()
    assert "In-Run, first order" in summary
    assert summary in (copied / "summary.md").read_text()
    assert (copied / "summary.md").read_text().strip() in printed
    command("report", "--out", copied, "--into", page)
    assert page.read_text() == text


@pytest.mark.parametrize("text", ["no marks", BEGIN, END, f"{END} {BEGIN}", ""])
def test_report_refuses_a_file_without_marks(command, copied, tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    code, _, err = command("report", "--out", copied, "--into", page)
    assert code == 2
    assert "page.md" in err
    assert BEGIN in err
    assert END in err
    assert page.read_text() == text


def test_report_refuses_a_file_that_is_not_there(command, copied, tmp_path):
    code, _, err = command("report", "--out", copied, "--into", tmp_path / "missing.md")
    assert code == 2
    assert "missing.md" in err
    assert not (tmp_path / "missing.md").exists()


def test_folders_may_have_any_name_whatever_the_locale(results, command, tmp_path, repository):
    """In this process, and in one that has neither a locale nor UTF-8."""
    folder = tmp_path / "données ü 数据"
    for name in ("here", "there"):
        (folder / name / "rows").mkdir(parents=True)
        shutil.copy(results.root / "store.json", folder / name)
        for path in results.root.glob("rows/detection.*"):
            shutil.copy(path, folder / name / "rows")
    assert command("report", "--out", folder / "here")[0] == 0
    there = [sys.executable, "-X", "utf8=0", "-m", "inrun_bench.cli", "report", "--out", str(folder / "there")]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONPATH": str(repository)}
    done = subprocess.run(there, cwd=folder, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    summaries = [(folder / name / "summary.md").read_bytes() for name in ("here", "there")]
    assert summaries[0] == summaries[1] != b""


def test_a_dry_run_says_what_would_be_done_and_does_nothing(command, tmp_path):
    out = tmp_path / "none"
    asked = ("--task", TASK, "--method", "knn", "--seed", 0)
    code, printed, _ = command("run", "values", *asked, "--dry-run", "--out", out)
    assert code == 0
    assert "units to measure, 0 are there already" in printed
    assert not out.exists()
    command("run", "values", *asked, "--jobs", 1, "--quiet", "--out", out)
    before = sorted(path.name for path in out.rglob("*"))
    code, printed, _ = command("run", "values", *asked, "--dry-run", "--out", out)
    assert code == 0
    assert "0 units to measure" in printed
    _, printed, _ = command("run", "values", *asked, "--force", "--dry-run", "--out", out)
    assert "units to measure, 0 are there already" in printed
    assert re.search(r"about \d+\.\d minutes", printed)
    assert sorted(path.name for path in out.rglob("*")) == before
