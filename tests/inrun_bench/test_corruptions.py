"""Corruptions: what is known of a method's values decides what it finds, and how it shares a value among copies."""

import dataclasses
from functools import partial

import numpy as np
import pandas as pd
import pytest

import tasks
from baselines import Valuation
from inrun_bench import metrics
from inrun_bench.experiments import corruptions, units_of
from inrun_bench.experiments.corruptions import precision_of_lowest, shared
from inrun_bench.methods import METHODS
from inrun_bench.report.looks import MANY
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.store import Store
from tasks.corruption import corrupt
from tests.inrun_bench.tiny import run

PLAN = Plan("quick", tasks=("iris-logreg",), methods=("inrun-first", "knn", "random"), seeds=(0, 1))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("corruptions"))
    assert run(corruptions.units(PLAN), store, jobs=1).failed == ()
    return store.read_all("corruptions")


def test_rows_are_what_the_metrics_say_of_values_on_the_corrupted_task(found):
    task = tasks.load("iris-logreg", seed=1, flipped=0.0)
    for kind, share in (("labels", 0.3), ("noise", 0.1), ("outliers", 0.1)):
        bad = corrupt(task, kind, share)
        values = METHODS["knn"](bad.task, 0).values
        expected = metrics.detection(values, bad.samples)
        expected["precision_at_k"] = precision_of_lowest(values, bad.samples)
        own = found.query("corruption == @kind and share == @share and method == 'knn' and seed == 1")
        assert dict(zip(own["metric"], own["value"], strict=True)) == expected
    copied = corrupt(task, "copies", 0.2)
    expected = shared(*(METHODS["knn"](t, 0).values for t in (task, copied.task)), copied.samples, copied.originals)
    own = found.query("corruption == 'copies' and method == 'knn' and seed == 1")
    assert dict(zip(own["metric"], own["value"], strict=True)) == expected


def test_a_value_that_counts_every_copy_in_full_makes_two_and_one_that_is_split_makes_one():
    before, copies, originals = np.array([3.0, -1.0, 2.0, 5.0]), np.array([1, 3]), np.array([0, 2])
    whole = np.array([3.0, 3.0, 2.0, 2.0])
    assert shared(before, whole, copies, originals) == {"pair_worth": pytest.approx(2), "pair_apart": 0}
    halved = shared(before, whole / 2, copies, originals)
    assert halved == {"pair_worth": pytest.approx(1), "pair_apart": 0}
    uneven = shared(before, np.array([3.0, 0.0, 2.0, 0.0]), copies, originals)  # who came first takes all
    assert uneven["pair_worth"] == pytest.approx(1)
    assert uneven["pair_apart"] == pytest.approx(np.sqrt((9 + 4) / 2) / np.std([3, 0, 2, 0]))
    assert np.isnan(list(shared(0 * before, 0 * before, copies, originals).values())).all()


def test_exact_copies_have_the_same_value_by_a_symmetric_method(found):
    apart = found.query("metric == 'pair_apart'").groupby("method")["value"].max()
    assert apart["knn"] < 1e-9
    assert apart["random"] > 0.1


def test_tokens_are_refused_by_name():
    plan = dataclasses.replace(PLAN, tasks=("stdlib-gpt",))
    with pytest.raises(ValueError, match="nothing to do on stdlib-gpt; it needs tasks whose features are numbers"):
        units_of("corruptions", corruptions, plan)


def test_every_method_and_kind_is_told_and_of_many_methods_the_foremost_are_drawn(found):
    more = [found.assign(method=found["method"].replace("knn", f"other-{i}")) for i in range(MANY)]
    rows = pd.concat([found, found.assign(method="knn-embedding"), *more]).drop_duplicates()
    table = corruptions.table(rows)
    for method in ("KNN-Shapley on embeddings", "other-3", "random"):
        assert f"| {method}" in table
    for head in ("labels 30 %, AUROC", "noise 10 %, precision at k", "copies 20 %, worth of a pair"):
        assert head in table
    legend = {text.get_text() for text in corruptions.draw(rows).legends[0].get_texts()}
    assert "other-3" in legend
    assert "KNN-Shapley on embeddings" not in legend
    assert corruptions.draw(rows[:0]).axes == []
    assert corruptions.table(rows[:0]) == ""


@pytest.mark.parametrize("ties", [False, True])
def test_precision_at_k_is_the_mean_over_orders_of_equal_values(ties):
    rng = np.random.default_rng(3)
    values = rng.integers(0, 4, 30).astype(float) if ties else rng.permutation(30).astype(float)
    wrong = rng.permutation(30)[:7]
    by_orders = []
    for _ in range(4000 if ties else 1):
        order = np.lexsort((rng.random(30), values))
        by_orders.append(np.isin(order[:7], wrong).mean())
    assert precision_of_lowest(values, wrong) == pytest.approx(np.mean(by_orders), abs=0.01)


def test_a_method_sees_the_corrupted_task_alone(monkeypatch):
    seen = []

    def spy(task, _seed, which):
        seen.append((which, len(task.flipped)))
        return Valuation(np.arange(task.n_train, dtype=float), None, 0, 0.0, "spy")

    monkeypatch.setitem(METHODS._all(), "knn", partial(spy, which="knn"))
    unit = next(u for u in corruptions.units(PLAN) if u.method == "knn" and u.settings["corruption"] == "noise")
    corruptions.measure(unit, {})
    assert seen == [("knn", 0)]
