"""The sweeps experiment: all tasks, recipes and ways to keep the states; and its table says what the rows say."""

import dataclasses
import itertools
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

import tasks
from inrun_bench.adjoint import Differentiated, differentiate
from inrun_bench.experiments import EXPERIMENTS, sweeps
from inrun_bench.report import write_summary
from inrun_bench.runs import timing
from inrun_bench.runs.store import Store
from tests.inrun_bench.test_report import lines_of
from tests.inrun_bench.tiny import PLAN, TASK, units_of

N_TRAIN = 40
WAYS = ["memory", "disk", "recomputed"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One task, cut short, with all of its recipes; for reading only."""
    store = Store(tmp_path_factory.mktemp("sweeps") / "results")
    (store.root / "rows").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeps, "TURNS", 1)
        patch.setattr(tasks, "load", partial(tasks.load, n_train=N_TRAIN))
        for unit in units_of("sweeps"):
            store.write(unit, sweeps.measure(unit, {}))
    return store


def test_there_is_a_unit_for_every_task_and_recipe():
    plan = dataclasses.replace(PLAN, tasks=tuple(tasks.names()))
    units = units_of("sweeps", plan=plan)
    assert {(unit.task, unit.recipe) for unit in units} == {
        (name, recipe) for name in tasks.names() for recipe in tasks.CATALOG[name].recipes
    }
    assert {unit.seed for unit in units} == {PLAN.seeds[0]}
    assert (EXPERIMENTS["sweeps"].EXCLUSIVE, EXPERIMENTS["sweeps"].DEFAULT) == (True, False)


def test_every_way_is_measured_with_every_recipe(measured):
    rows = measured.read_all("sweeps")
    values = rows.pivot_table(index=["recipe", "way"], columns="metric", values="value")
    assert sorted(values.index) == sorted((recipe, way) for recipe in tasks.CATALOG[TASK].recipes for way in WAYS)
    assert (values > 0).all(axis=None)
    assert (values["trainings"] > 1).all()  # trained, and more
    assert (rows["seconds"] > 0).all()


def test_what_is_stored_is_what_the_states_take(measured):
    stored = measured.read_all("sweeps").query("metric == 'stored_bytes'").set_index(["recipe", "way"])["value"]
    for recipe, averages in (("sgd", 0), ("adamw", 2)):
        task = tasks.load(TASK, recipe=recipe, n_train=N_TRAIN)
        weights = sum(parameter.nbytes for parameter in task.model().parameters())
        everything = sweeps.RUNS * len(task.batches()) * (1 + averages) * weights
        assert stored[recipe, "memory"] == stored[recipe, "disk"] == everything
        assert stored[recipe, "recomputed"] <= everything / 2


def test_states_in_memory_show_in_the_peak(measured):
    rows = measured.read_all("sweeps").query("metric == 'peak_ratio'")
    peaks = rows.pivot_table(index="recipe", columns="way", values="peak_bytes")
    assert (peaks["disk"] < peaks["recomputed"]).all()
    assert (peaks["recomputed"] < peaks["memory"]).all()


def test_the_same_runs_are_differentiated_and_trained(monkeypatch):
    trained, differentiated, retrain = [], [], tasks.retrain
    monkeypatch.setattr(sweeps, "TURNS", 1)
    monkeypatch.setattr(tasks, "load", partial(tasks.load, n_train=N_TRAIN))
    monkeypatch.setattr(tasks, "retrain", lambda *args: trained.append(retrain(*args)))

    def recorded(*args, **options):
        differentiated.append(differentiate(*args, **options))
        return differentiated[-1]

    monkeypatch.setattr(sweeps, "differentiate", recorded)
    sweeps.measure(units_of("sweeps")[0], {})
    assert {runs.way for runs in differentiated} == set(WAYS)
    for runs, plain in itertools.product(differentiated, trained):
        np.testing.assert_allclose(runs.utilities, plain[:, 0], rtol=1e-4)


def test_the_ratio_is_that_of_a_differentiated_run_to_a_plain_one(monkeypatch):
    seconds = {"trained": 2.0, "differentiated": 7.0}
    clock = [0.0]

    def advance(name):
        clock[0] += seconds[name]
        torch.ones(2).add(1)  # a peak that is not zero
        return Differentiated(np.zeros(8), np.zeros((8, N_TRAIN)), "memory", 1)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(tasks, "load", partial(tasks.load, n_train=N_TRAIN))
    monkeypatch.setattr(tasks, "retrain", lambda *args: advance("trained"))
    monkeypatch.setattr(sweeps, "differentiate", lambda *args, **options: advance("differentiated"))
    rows = pd.DataFrame(sweeps.measure(units_of("sweeps")[0], {})).query("metric == 'trainings'")
    assert set(rows["value"]) == {3.5}
    assert set(rows["seconds"]) == {7.0}


def test_the_table_says_what_the_rows_say(measured):
    rows = measured.read_all("sweeps")
    values = rows.pivot_table(index=["recipe", "way"], columns="metric", values="value")
    lines = lines_of(write_summary(measured, EXPERIMENTS), "Differentiated runs")
    assert [line["recipe"] for line in lines] == list(tasks.CATALOG[TASK].recipes)
    for line in lines:
        assert line["task"] == TASK
        for way in WAYS:
            own = values.loc[line["recipe"], way]
            time, peak, stored = own["trainings"], own["peak_ratio"], own["stored_bytes"] / 1e6
            assert line[way] == f"{time:.1f} / {peak:.1f} / {stored:.2g} MB"
