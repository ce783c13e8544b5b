"""Selection, budget and datamodelling scores: each number is what a plain computation of the same gives."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import tasks
from inrun_bench.experiments import budget, lds, selection, units_of
from inrun_bench.methods import METHODS
from inrun_bench.runs import stored_values
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.store import Store
from inrun_bench.runs.stored_values import read_values, values_unit
from tests.inrun_bench.tiny import run

PLAN = Plan("tiny-questions", tasks=("iris-logreg",), methods=("inrun-first", "knn", "random"), seeds=(0, 1))
KNOBS = [
    (selection.KNOBS, selection.Knobs(runs=2, draws=3)),
    (budget.KNOBS, budget.Knobs(validation=(5, 20, 1000), every=(2, 4, 1000), draws=2)),
    (lds.KNOBS, lds.Knobs(subsets=30, runs=2, queries=2)),
    (stored_values.REFERENCES, stored_values.ReferenceKnobs({"default": 20}, blocks=2)),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    for knobs, tiny in KNOBS:
        knobs["tiny-questions"] = tiny
    try:
        store = Store(tmp_path_factory.mktemp("questions"))
        units = [unit for experiment in (selection, budget, lds) for unit in experiment.units(PLAN)]
        assert run(units, store, jobs=1).failed == ()
        yield store
    finally:
        for knobs, _ in KNOBS:
            del knobs["tiny-questions"]


def of(rows, **told):
    return rows[np.logical_and.reduce([rows[name] == value for name, value in told.items()])]


# --- selection ---


def test_what_is_selected_is_the_top_and_is_trained_on_alone(found):
    task = tasks.load("iris-logreg", 1)
    values = read_values(found.read(values_unit("iris-logreg", "knn", 1)))
    game = task.conventional_game("accuracy", "test", seeds=2)
    for share in selection.SHARES:
        top = np.zeros(task.n_train, dtype=bool)
        top[np.argsort(-values, kind="stable")[: round(share * task.n_train)]] = True
        rows = of(found.read_all("selection"), method="knn", seed=1, metric="test_accuracy", share=share)
        assert rows["value"].item() == pytest.approx(game(top[None])[0], abs=1e-7)


def test_all_samples_are_the_run_itself_and_random_subsets_are_those_of_their_draws(found):
    task = tasks.load("iris-logreg", 0)
    rows = of(found.read_all("selection"), method="random", seed=0, metric="test_loss")
    everybody = task.conventional_game("loss", "test", seeds=2)(np.ones((1, task.n_train), dtype=bool))[0]
    assert of(rows, share=1.0)["value"].item() == pytest.approx(-everybody, rel=1e-6)
    assert sorted(rows["share"]) == [*selection.SHARES, 1.0]


@pytest.mark.parametrize("n", [1, 7, 16, 100])
def test_shares_of_an_order_are_nested_and_of_their_size(n):
    order = np.random.default_rng(n).permutation(n)
    kept = selection.selected(order, (*selection.SHARES, 1.0))
    assert kept.sum(axis=1).tolist() == [round(share * n) for share in (*selection.SHARES, 1.0)]
    assert (kept[:-1] <= kept[1:]).all()
    for row in kept:
        assert set(np.flatnonzero(row)) == set(order[: row.sum()])


# --- budget ---


def unit_of(method="inrun-first"):
    return next(unit for unit in budget.units(PLAN) if unit.method == method)


def test_scores_of_steps_add_up_to_the_values_of_the_run(found):
    task = tasks.load("iris-logreg", 0)
    whole = budget.by_step(unit_of(), task)
    np.testing.assert_allclose(whole.sum(axis=0), METHODS["inrun-first"](task, 0).values, rtol=1e-12)
    assert [set(np.flatnonzero(row)) for row in whole] == [set(b.tolist()) for b in task.batches()]


def test_values_by_parts_of_the_validation_set_have_the_mean_of_the_whole():
    task = tasks.load("iris-logreg", 0, dtype=torch.float64)
    parts = torch.randperm(len(task.validation), generator=torch.Generator().manual_seed(0)).chunk(5)
    by_parts = [len(part) * budget.by_step(unit_of(), task, part) for part in parts]
    np.testing.assert_allclose(
        np.sum(by_parts, axis=0) / len(task.validation), budget.by_step(unit_of(), task), rtol=1e-9, atol=1e-15
    )


def test_nothing_spared_is_the_whole_and_what_the_task_has_not_is_not_asked_for(found):
    rows = found.read_all("budget")
    whole = {budget.VALIDATION: len(tasks.load("iris-logreg").validation), budget.EVERY: 1}
    for what, amount in whole.items():
        whole_run = of(rows, spared=what, amount=amount, metric="spearman_whole")["value"]
        assert whole_run.tolist() == pytest.approx([1.0] * len(PLAN.seeds))
    assert set(of(rows, spared=budget.VALIDATION)["amount"]) == {5, 20, whole[budget.VALIDATION]}
    assert set(of(rows, spared=budget.EVERY)["amount"]) == {1, 2, 4}
    assert set(rows["method"]) == {"inrun-first"}


def test_every_second_step_is_the_mean_over_where_it_begins(found):
    task = tasks.load("iris-logreg", 0)
    scores = budget.by_step(unit_of(), task)
    expected = [stats.spearmanr(scores[start::2].sum(0), scores.sum(0)).statistic for start in (0, 1)]
    rows = of(found.read_all("budget"), seed=0, spared=budget.EVERY, amount=2, metric="spearman_whole")
    assert rows["value"].item() == pytest.approx(np.mean(expected))


def test_methods_that_follow_no_run_are_refused():
    with pytest.raises(ValueError, match=r"nothing to do .*inrun-first, inrun-second, inrun-integrated"):
        units_of("budget", budget, dataclasses.replace(PLAN, profile="quick", methods=("knn",)))


# --- the datamodelling score ---


def test_scores_are_rank_correlations_with_halves_that_were_retrained(found):
    task = tasks.load("iris-logreg", 1)
    unit = next(u for u in lds.units(PLAN) if u.method == "knn" and u.seed == 1)
    truth = unit.needs[0]
    chosen = lds.halves(truth, task.n_train)
    assert (chosen.sum(axis=1) == task.n_train // 2).all()
    rows = of(found.read_all("lds"), method="knn", seed=1)
    for judge, make in (("own", tasks.Task.trajectory_game), ("conventional", tasks.Task.conventional_game)):
        of_game = {"seeds": 2} if judge == "conventional" else {}
        mean = stats.spearmanr(chosen @ METHODS["knn"](task, 0).values, make(task, **of_game)(chosen)).statistic
        assert of(rows, metric="lds", judge=judge)["value"].item() == pytest.approx(mean)
        single = []
        for query in lds.chosen_queries(truth, task):
            alone = tasks.Split(task.validation.x[[query]], task.validation.y[[query]])
            judged = dataclasses.replace(task, validation=alone)
            values = METHODS["knn"](judged, 0).values
            single.append(stats.spearmanr(chosen @ values, make(judged, **of_game)(chosen)).statistic)
        assert of(rows, metric="lds_each", judge=judge)["value"].item() == pytest.approx(np.mean(single))


def test_queries_are_validation_samples_each_once(found):
    truth = lds.units(PLAN)[0]
    task = tasks.load("iris-logreg")
    many = dataclasses.replace(truth, settings={**truth.settings, "queries": 10_000})
    assert lds.chosen_queries(many, task) == list(range(len(task.validation)))
    assert len(set(lds.chosen_queries(truth, task))) == 2


# --- all three ---


@pytest.mark.parametrize(("name", "experiment"), [("selection", selection), ("budget", budget), ("lds", lds)])
def test_all_is_told_and_drawn_and_nothing_of_nothing(found, name, experiment):
    rows = found.read_all(name)
    told = experiment.table(rows)
    for method in set(rows["method"]) - {"reference"}:
        assert experiment.look(method).label in told
    assert experiment.draw(rows).axes
    nothing = pd.DataFrame(columns=rows.columns)
    assert experiment.table(nothing) == ""
    assert experiment.draw(nothing).axes == []


@pytest.mark.parametrize(("name", "experiment"), [("selection", selection), ("budget", budget), ("lds", lds)])
def test_large_tasks_are_refused(name, experiment):
    plan = dataclasses.replace(PLAN, profile="quick", tasks=("stdlib-gpt",))
    with pytest.raises(ValueError, match=r"nothing to do on stdlib-gpt.*; it needs .*tasks that are not large"):
        units_of(name, experiment, plan)
