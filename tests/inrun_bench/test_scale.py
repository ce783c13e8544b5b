"""Scale: what is true at a point is what games and tasks of that size say, and methods are judged by it."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

import tasks
from inrun_bench import agreement, linear_datamodelling_score
from inrun_bench.experiments import scale, units_of
from inrun_bench.report.figures import draw_figures
from inrun_bench.report.looks import MANY
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.store import Store
from tests.inrun_bench.tiny import run

POINTS = {"iris-logreg": ((16, 2), (16, 6), (30, 2))}
PLAN = Plan("tiny-scale", tasks=("iris-logreg",), methods=("inrun-first", "knn"), seeds=(0, 1))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    scale.KNOBS["tiny-scale"] = scale.Knobs(POINTS, subsets=20, runs=2, training_steps=12_000)
    try:
        store = Store(tmp_path_factory.mktemp("scale"))
        assert run(scale.units(PLAN), store, jobs=1).failed == ()
        yield store
    finally:
        del scale.KNOBS["tiny-scale"]


def of(rows, **told):
    return rows.query(" and ".join(f"{name} == {value!r}" for name, value in told.items()))


def test_a_point_is_the_task_with_so_many_samples_and_epochs(found):
    rows = found.read_all("scale")
    assert set(zip(rows["n"], rows["epochs"], rows["steps"], strict=True)) == {(16, 2, 8), (16, 6, 24), (30, 2, 16)}
    task = tasks.load("iris-logreg", seed=1)
    longer = dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, epochs=6))
    point = scale._task(next(u for u in scale.units(PLAN) if u.seed == 1 and u.settings["epochs"] == 6))
    assert point.recipe == longer.recipe
    assert np.array_equal(point.train.x, longer.train.x)
    whole = np.ones((1, 16), dtype=bool)
    assert point.trajectory_game()(whole) == longer.trajectory_game()(whole)


def test_methods_are_judged_by_random_halves_and_by_shapley_values(found):
    rows = found.read_all("scale")
    for unit in scale.units(PLAN):
        if unit.method == "reference" or unit.seed or unit.settings["n"] != 16 or unit.settings["epochs"] != 2:
            continue
        task = scale._task(unit)
        values = scale.valued(unit.method, task, unit.random_seed).values
        (truth,) = unit.needs
        rng = truth.random_seed.spawn(3)[2]
        own = of(rows, method=unit.method, n=16, epochs=2, seed=0).set_index(["metric", "judge"])["value"]
        asked = {"subsets": 20, "rng": rng}
        assert own["lds", "own"] == pytest.approx(linear_datamodelling_score(task, values, **asked))
        alone = task.conventional_game(seeds=2)
        assert own["lds", "conventional"] == pytest.approx(linear_datamodelling_score(alone, values, **asked))
        stored = of(rows, method="reference", metric="value", n=16, epochs=2, seed=0)
        reference = stored.groupby("sample")["value"].mean().to_numpy()
        assert own["spearman", "own"] == pytest.approx(agreement(values, reference)["spearman"])
        one, other = (half.sort_values("sample")["value"].to_numpy() for _, half in stored.groupby("half"))
        r = agreement(one, other)["spearman"]
        ceiling = of(rows, method="reference", metric="spearman_ceiling", n=16, epochs=2, seed=0)["value"].item()
        assert ceiling == pytest.approx(np.sqrt(2 * r / (1 + r)))


def test_where_permutations_are_too_dear_random_halves_judge_alone(found):
    rows = found.read_all("scale")
    assert of(rows, metric="spearman", n=30).empty
    assert of(rows, metric="spearman", epochs=6).empty
    assert len(of(rows, metric="lds", n=30, method="knn")) == 4  # two seeds, two games


def test_a_method_is_judged_up_to_the_most_samples_it_is_given(found, monkeypatch):
    limited = dataclasses.replace(scale.KNOBS["tiny-scale"], most_samples={"knn": 16})
    monkeypatch.setitem(scale.KNOBS, "tiny-scale", limited)
    largest = {}
    for unit in scale.units(PLAN):
        largest[unit.method] = max(unit.settings["n"], largest.get(unit.method, 0))
    assert largest == {"reference": 30, "inrun-first": 30, "knn": 16}


def test_every_point_is_told_and_drawn(found):
    table = scale.table(found.read_all("scale"))
    assert "| KNN-Shapley" in table
    assert "16 samples, 24 steps" in table
    (_, svg) = draw_figures(found, ["scale"], {"scale": scale})
    assert svg.read_text().count(">iris-logreg<") == 1
    assert all(fixed in svg.read_text() for fixed in ("2 epochs", "16 samples"))
    assert scale.draw(pd.DataFrame({"metric": ["utility"], "judge": ["own"]})).axes == []


def test_of_many_methods_those_that_go_along_with_another_are_in_the_table_alone(found):
    rows = found.read_all("scale")
    more = [rows.assign(method=rows["method"].replace("knn", name)) for name in ("knn-embedding", "someone-s")]
    others = [rows.assign(method=rows["method"].replace("knn", f"other-{i}")) for i in range(MANY - 3)]
    for shown, told in (([rows, *more, *others], True), ([rows, *more], False)):
        figure = scale.draw(pd.concat(shown).drop_duplicates())
        labels = {text.get_text() for text in figure.legends[0].get_texts()}
        assert ("KNN-Shapley on embeddings" in labels) != told
        assert "someone-s" in labels
        assert (figure.get_suptitle() == "in the table alone: 1 more method") == told


def test_tasks_without_points_and_sizes_that_are_not_there_are_refused(monkeypatch):
    plan = dataclasses.replace(PLAN, profile="standard", tasks=("mnist-cnn",))
    with pytest.raises(ValueError, match=r"nothing to do on mnist-cnn; it needs .*, it runs on breast-cancer-logreg"):
        units_of("scale", scale, plan)
    monkeypatch.setitem(scale.KNOBS, "tiny-scale", scale.Knobs({"iris-logreg": ((101, 1),)}, 3, 1, 0))
    with pytest.raises(ValueError, match=r"'iris-logreg' has 100 samples to train on.*got n=101"):
        scale.measure(scale.units(PLAN)[0], {})
