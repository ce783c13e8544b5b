"""Large tasks: what cannot be retrained often enough for a reference is judged by removal and detection alone."""

import dataclasses

import numpy as np
import pytest

import tasks
from inrun_bench import cli
from inrun_bench.experiments import EXPERIMENTS
from inrun_bench.report import headline, write_summary
from inrun_bench.report.looks import look
from inrun_bench.runs.plan import PROFILES
from inrun_bench.runs.runner import Outcome
from inrun_bench.runs.store import Store
from inrun_bench.runs.unit import REFERENCE
from tests.inrun_bench.test_report import tables_in
from tests.inrun_bench.tiny import METHODS, PLAN, TASK, run, units_of

LARGE = ("mnist-mlp-4000", "stdlib-gpt")


@pytest.fixture
def grown(monkeypatch):
    """The tiny task, called large."""
    monkeypatch.setitem(tasks.CATALOG._all(), TASK, dataclasses.replace(tasks.CATALOG[TASK], large=True))


@pytest.fixture
def asked(monkeypatch):
    """What the command line asks the runner, or the maker of references, for."""
    names = []
    monkeypatch.setattr(cli, "run", lambda units, *_, **__: names.extend(u.task for u in units) or Outcome(0, 0, ()))

    def extend(_store, task, *_, **__):
        names.append(task)
        raise ValueError("enough")

    monkeypatch.setattr(cli, "extend", extend)
    return names


def test_large_tasks_are_those_of_the_profile_of_that_name():
    assert PROFILES["large"].tasks == LARGE
    assert set(LARGE) == set(tasks.names(large=True)) - {"mnist-resnet", "cifar10-resnet"}  # these are named
    assert sorted([*tasks.names(large=True), *tasks.names(large=False)]) == sorted(tasks.names())


def test_no_experiment_asks_for_a_reference_of_a_large_task():
    plan = dataclasses.replace(PLAN, tasks=LARGE)
    for name in ("agreement", "cost", "estimators"):
        assert EXPERIMENTS[name].units(plan) == []
    for name in ("values", "removal", "detection"):
        units = EXPERIMENTS[name].units(plan)
        assert {unit.task for unit in units} == set(LARGE)
        assert {unit.method for unit in units} == set(METHODS)
        assert REFERENCE not in {need.method for unit in units for need in unit.needs}


def test_where_no_task_is_named_large_ones_are_left_out(asked, tmp_path):
    cli.main(["run", "values", "--profile", "standard", "--out", str(tmp_path / "out")])
    assert set(asked) == set(tasks.names(large=False))


def test_where_a_large_task_is_named_it_runs(asked, tmp_path):
    cli.main(["run", "values", "--profile", "standard", "--task", LARGE[1], "--out", str(tmp_path / "out")])
    assert set(asked) == {LARGE[1]}


@pytest.mark.parametrize(("options", "first"), [((), tasks.names(large=False)[0]), (("--task", LARGE[0]), LARGE[0])])
def test_references_of_large_tasks_are_made_where_they_are_asked_for_alone(asked, tmp_path, options, first):
    cli.main(["reference", *options, "--out", str(tmp_path / "out")])
    assert asked == [first]


def test_methods_are_reported_without_a_reference(grown, tmp_path):
    store = Store(tmp_path / "large")
    plan = dataclasses.replace(PLAN, seeds=(0,))
    assert run(units_of("values", "removal", "detection", plan=plan), store).failed == ()
    summary = write_summary(store, EXPERIMENTS)
    assert headline(store) == ""
    assert f"**{TASK}**, 1 seed. Not compared with a retraining reference" in summary
    table, _ = tables_in(summary)  # the other is that of the areas of removal
    assert set(table) == {look(method).label for method in METHODS}
    for method in METHODS:
        row = table[look(method).label]
        found = {
            name: rows[rows["method"] == method].set_index("metric")
            for name in ("values", "removal", "detection")
            for rows in [store.read_all(name)]
        }
        cost = found["values"].loc["cost"]
        assert row["trainings"] == f"{cost['evaluations']:,.0f}"
        assert row["time (s)"] == f"{cost['seconds']:.2g}"
        assert row["flipped labels, AUROC"] == f"{found['detection'].loc['auroc', 'value']:.3f}"
        assert row["AP"] == f"{found['detection'].loc['average_precision', 'value']:.3f}"
        area = "" if method == "random" else f"{found['removal'].loc['area_loss', 'value']:.3f}"
        assert row["removal area (loss)"] == area
        assert "Spearman [95 % CI]" not in row


def test_all_of_the_images_that_are_not_judges_may_train():
    large, small = tasks.load(LARGE[0]), tasks.load("mnist-mlp")
    assert large.n_train == 4000
    assert [len(s) for s in (large.validation, large.test)] == [len(s) for s in (small.validation, small.test)]
    assert large.recipe == small.recipe
    assert np.bincount(large.train.y).min() > 300
