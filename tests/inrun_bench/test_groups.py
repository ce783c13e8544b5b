"""Groups as players: exact values by enumeration, and what each method makes of the same groups."""

import contextlib
import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import tasks
from baselines import exact_shapley
from inrun_bench import cli
from inrun_bench.experiments import EXPERIMENTS, groups
from inrun_bench.methods import METHODS
from inrun_bench.report import write_summary
from inrun_bench.report.looks import look
from inrun_bench.runs.plan import PROFILES
from inrun_bench.runs.runner import Outcome
from inrun_bench.runs.store import Store
from inrun_bench.runs.unit import REFERENCE, Unit
from tests.baselines.known_games import Table
from tests.inrun_bench.tiny import PLAN, run

TASK = "iris-logreg"  # three classes
PLANNED = dataclasses.replace(PLAN, tasks=(TASK,), seeds=(0,), methods=groups.METHODS)


@contextlib.contextmanager
def iris_alone():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "GROUPINGS", {TASK: ("classes", "random")})
        patch.setattr(groups, "RANDOM_GROUPS", 4)
        yield


@pytest.fixture
def of_iris():
    with iris_alone():
        yield


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("groups") / "groups")
    with iris_alone():
        assert run(groups.units(PLANNED), store).failed == ()
    return store


@pytest.fixture
def store(measured, of_iris):
    """All rows, for reading only."""
    return measured


def rows_of(method, kind="classes", needs=None):
    unit = Unit("groups", TASK, method, 0, {"groups": kind}, needs=tuple(needs or ()))
    return pd.DataFrame(groups.measure(unit, needs or {}))


def test_exact_values_are_those_of_training_on_all_samples_of_the_groups_present(of_iris):
    task = tasks.load(TASK)
    labels = task.train.y.numpy()
    present = [[code >> c & 1 for c in range(3)] for code in range(8)]
    utilities = task.trajectory_game()(np.array([np.array(p, bool)[labels] for p in present]))
    expected = exact_shapley(Table(utilities)).values
    np.testing.assert_allclose(groups.read_groups(rows_of(REFERENCE)), expected, rtol=1e-12)


@pytest.mark.parametrize("method", ["inrun-first", "inrun-integrated", "few-run-4", "few-run-8"])
def test_a_groups_value_is_the_sum_of_its_samples_where_the_method_is_additive(of_iris, method):
    task, truth = tasks.load(TASK), Unit("groups", TASK, REFERENCE, 0)
    found = rows_of(method, needs={truth: rows_of(REFERENCE)})
    of_samples = METHODS[method](task, np.random.SeedSequence(0)).values
    np.testing.assert_allclose(groups.read_groups(found), np.bincount(task.train.y, of_samples), rtol=1e-5)


def test_comparison_is_what_its_words_say():
    exact = np.array([3.0, 1.0, 2.0, 5.0])
    rng = np.random.default_rng(0)
    values = exact + rng.normal(size=4)
    found = groups.compared(values, exact)
    assert found["spearman"] == stats.spearmanr(values, exact).statistic
    assert found["pearson"] == stats.pearsonr(values, exact).statistic
    assert found["error"] == pytest.approx(np.linalg.norm(values - exact) / np.linalg.norm(exact - exact.mean()))
    assert groups.compared(exact, exact) == pytest.approx({"spearman": 1, "pearson": 1, "error": 0})
    assert groups.compared(np.full(4, exact.mean()), exact)["error"] == pytest.approx(1)  # what a constant scores


@pytest.mark.parametrize("task", groups.TASKS)
def test_groups_are_named_numbered_and_all_there(task):
    loaded = tasks.load(task)
    for kind in groups.GROUPINGS[task]:
        numbers = groups.groups_of(loaded, kind)
        assert np.unique(numbers).tolist() == list(range(len(groups.group_names(task, kind))))
        np.testing.assert_array_equal(numbers, groups.groups_of(tasks.load(task), kind))


def test_random_groups_are_of_equal_size_and_drawn_by_the_seed():
    one, other = (groups.groups_of(tasks.load("digits-mlp", seed), "random") for seed in (0, 1))
    assert np.bincount(one).tolist() == [20] * 10
    assert not np.array_equal(one, other)


def test_a_large_task_runs_once_and_no_method_outlasts_the_enumeration():
    of_tasks = ("stdlib-gpt", "digits-mlp", "wine-logreg")
    plan = dataclasses.replace(PLAN, tasks=of_tasks, seeds=(3, 4), methods=groups.METHODS)
    units = groups.units(plan)
    of = {task: [unit for unit in units if unit.task == task] for task in plan.tasks}
    assert {unit.seed for unit in of["stdlib-gpt"]} == {3}
    assert {unit.seed for unit in of["digits-mlp"]} == {3, 4}
    assert of["wine-logreg"] == []  # of which no groups are named
    assert {unit.method for unit in of["digits-mlp"]} == {REFERENCE, *groups.METHODS}
    left_out = {REFERENCE, *groups.METHODS} - {unit.method for unit in of["stdlib-gpt"]}
    assert left_out == {"coalition-gradients-128"}  # of 8 domains there are 256 coalitions
    assert len({unit.key for unit in units}) == len(units)
    assert all(unit.method == REFERENCE or unit.needs[0].method == REFERENCE for unit in units)


@pytest.mark.parametrize(("options", "expected"), [((), groups.TASKS), (("--task", "mnist-mlp"), ("mnist-mlp",))])
def test_tasks_are_the_experiments_own_where_none_is_named(options, expected, monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(cli, "run", lambda units, *_, **__: asked.extend(units) or Outcome(0, 0, ()))
    assert cli.main(["run", "groups", "--profile", "quick", *options, "--out", str(tmp_path / "out")]) == 0
    assert {unit.task for unit in asked} == set(expected)
    assert {unit.seed for unit in asked} == set(PROFILES["quick"].seeds)


def test_table_and_figure_say_what_the_rows_say(store):
    rows = store.read_all("groups")
    summary = write_summary(store, EXPERIMENTS)
    assert f"{TASK}, classes: 3 players, 1 seed\n" in summary
    assert f"{TASK}, random: 4 players, 1 seed\n" in summary
    for kind, method in itertools.product(("classes", "random"), groups.METHODS):
        own = rows[(rows["groups"] == kind) & (rows["method"] == method)].set_index("metric")["value"]
        if own.empty:
            assert method == "coalition-gradients-128"
            continue
        (line,) = (
            line
            for part in summary.split(f"{TASK}, {kind}")[1:2]
            for line in part.split("\n\n")[1].splitlines()
            if line.startswith(f"| {look(method).label} ")
        )
        shown = [cell.strip() for cell in line.strip("|").split("|")][-3:]
        assert shown == [f"{own[name]:.3f}" for name in ("spearman", "pearson", "error")]
    figure = EXPERIMENTS["groups"].draw(rows)
    assert [ax.get_title() for ax in figure.axes] == [f"{TASK}, classes", f"{TASK}, random"]
    for ax in figure.axes:
        exact = ax.lines[0].get_ydata()
        assert (np.diff(exact) >= 0).all()
        assert len(ax.get_xticklabels()) == len(exact)


def test_what_lies_far_off_is_drawn_hollow_at_the_edge(store):
    rows = store.read_all("groups")
    rows.loc[(rows["method"] == "inrun-first") & (rows["metric"] == "value"), "value"] = 100.0
    for ax in EXPERIMENTS["groups"].draw(rows).axes:
        exact = ax.lines[0].get_ydata()
        hollow = [line for line in ax.lines if line.get_color() == look("inrun-first").color]
        (line,) = (line for line in hollow if np.isfinite(line.get_ydata()).all())
        assert line.get_fillstyle() == "none"
        np.testing.assert_allclose(line.get_ydata(), exact.max() + 1.5 * np.ptp(exact))


def test_without_exact_values_there_is_no_figure(store):
    rows = store.read_all("groups")
    assert EXPERIMENTS["groups"].draw(rows[rows["method"] != REFERENCE]).axes == []
