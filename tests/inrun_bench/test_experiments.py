import copy
import dataclasses
import itertools
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import tasks
from baselines import Valuation
from baselines.knn import knn_regression_shapley, knn_shapley
from inrun_bench import benchmark, metrics
from inrun_bench.experiments import EXPERIMENTS, agreement, detection, fidelity, overhead, removal, residual, values
from inrun_bench.methods import METHODS
from inrun_bench.methods.knn import embed
from inrun_bench.runs import stored_values
from inrun_bench.runs.plan import PROFILES
from inrun_bench.runs.unit import Unit
from tests.inrun_bench.tiny import PLAN, TASK, units_of

VALUES = st.lists(st.integers(-(10**6), 10**6), min_size=3, max_size=40, unique=True)
PAIRS = VALUES.flatmap(
    lambda v: st.tuples(st.just(np.array(v, float)), st.permutations(range(len(v))).map(lambda p: np.array(p, float)))
)


def rows_of(vector, evaluations=1, seconds=1.0):
    """The rows of a values unit, samples in no order."""
    frame = pd.DataFrame({"metric": "value", "sample": range(len(vector)), "value": vector}).sample(
        frac=1, random_state=0
    )
    cost = {"metric": "cost", "value": evaluations, "evaluations": evaluations, "seconds": seconds}
    return pd.concat([frame, pd.DataFrame([cost])])


def judged(experiment, vector, task=TASK, **settings):
    """What an experiment says of a method with these values."""
    need = values.values_unit(task, "method", 0)
    unit = Unit("judged", task, "method", 0, settings, needs=(need,))
    return pd.DataFrame(experiment.measure(unit, {need: rows_of(vector)}))


# --- agreement ---


@given(PAIRS)
def test_correlations_are_what_their_definitions_say(pair):
    x, y = pair
    found = metrics.agreement(x, y)
    ranks = [np.argsort(np.argsort(v)) for v in pair]
    assert found["spearman"] == pytest.approx(np.corrcoef(ranks)[0, 1])
    assert found["pearson"] == pytest.approx(np.corrcoef(x, y)[0, 1])
    concordance = [np.sign((x[i] - x[j]) * (y[i] - y[j])) for i, j in itertools.combinations(range(len(x)), 2)]
    assert found["kendall"] == pytest.approx(np.mean(concordance))
    top = max(1, round(len(x) / 10))
    best = [set(np.argsort(-v)[:top]) for v in pair]
    assert found["top10_overlap"] == len(best[0] & best[1]) / top


def test_correlations_are_those_of_scipy_with_ties():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, size=(2, 50)).astype(float)
    found = metrics.agreement(x, y)
    assert found["spearman"] == stats.spearmanr(x, y).statistic
    assert found["kendall"] == stats.kendalltau(x, y).statistic
    assert found["pearson"] == stats.pearsonr(x, y).statistic


@given(PAIRS, st.floats(0.1, 10), st.floats(-5, 5))
def test_agreement_does_not_depend_on_scale_or_side(pair, scale, shift):
    x, y = pair
    found = metrics.agreement(x, y)
    assert metrics.agreement(scale * x + shift, y) == pytest.approx(found, abs=1e-6)
    assert metrics.agreement(y, x) == pytest.approx(found)
    assert metrics.agreement(x, x) == pytest.approx(dict.fromkeys(found, 1.0))


def test_constant_values_agree_with_nothing():
    found = metrics.agreement(np.zeros(20), np.arange(20.0))
    assert np.isnan([found[name] for name in ("spearman", "kendall", "pearson", "top10_overlap")]).all()


def judged_agreement(unit, needs, labels):
    """Return the rows of agreement, by metric, as if the task's samples had these labels."""
    task = SimpleNamespace(train=SimpleNamespace(y=torch.as_tensor(labels)))
    with mock.patch.object(agreement.tasks, "load", return_value=task):
        return pd.DataFrame(agreement.measure(unit, needs)).set_index("metric")


def reference_rows(blocks):
    needs = {Unit("values", TASK, "reference", 0, {"block": i}): rows_of(b, 10, 2.0) for i, b in enumerate(blocks)}
    unit = Unit("agreement", TASK, "reference", 0, needs=tuple(needs))
    return judged_agreement(unit, needs, np.zeros(len(blocks[0]), dtype=np.int64))


def test_the_references_own_row_compares_its_even_with_its_odd_blocks():
    blocks = np.random.default_rng(0).normal(size=(4, 30)) + np.linspace(0, 3, 30)
    rows = reference_rows(blocks)
    halves = (blocks[0] + blocks[2]) / 2, (blocks[1] + blocks[3]) / 2
    r = stats.spearmanr(*halves).statistic
    assert rows["value"]["spearman"] == pytest.approx(r)
    assert rows["value"]["spearman_ceiling"] == pytest.approx(np.sqrt(2 * r / (1 + r)))
    assert rows["evaluations"]["spearman"] == 40
    assert rows["seconds"]["spearman"] == 8.0


def test_the_ceiling_is_what_a_perfect_method_reaches():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=50_000)
    blocks = truth + 1.5 * rng.normal(size=(4, 50_000))
    reached = metrics.agreement(truth, blocks.mean(axis=0))
    assert reference_rows(blocks)["value"]["pearson_ceiling"] == pytest.approx(reached["pearson"], abs=0.01)


def test_no_reliability_means_a_ceiling_of_zero():
    up = np.arange(10.0)
    assert reference_rows([up, -up])["value"]["spearman_ceiling"] == 0


def test_a_method_is_compared_with_the_mean_of_all_blocks_and_pays_for_itself_alone():
    rng = np.random.default_rng(0)
    own, blocks = rng.normal(size=30), rng.normal(size=(2, 30))
    unit = agreement.units(PLAN)[1]
    assert unit.method == "random"
    needs = dict(zip(unit.needs, [rows_of(own, 7, 3.0), *(rows_of(b, 100, 50.0) for b in blocks)], strict=True))
    labels = np.arange(30) % 2
    rows = judged_agreement(unit, needs, labels)
    truth = blocks.mean(axis=0)
    within = [stats.spearmanr(own[labels == label], truth[labels == label]).statistic for label in (0, 1)]
    assert rows["value"].to_dict() == pytest.approx(
        {
            **metrics.agreement(own, truth),
            "bottom10_overlap": len({*np.argsort(own)[:3]} & {*np.argsort(truth)[:3]}) / 3,
            "scaled_rmse": metrics.scaled_rmse(own, truth),
            "spearman_within_classes": np.tanh(np.arctanh(within).mean()),
        }
    )
    assert set(rows["evaluations"]) == {7}
    assert set(rows["seconds"]) == {3.0}
    assert rows["stderr"].dropna().index.tolist() == ["spearman", "pearson"]


@pytest.mark.parametrize("labels", [np.linspace(0, 1, 30), np.arange(30), np.zeros((30, 2), dtype=np.int64)])
def test_where_samples_have_no_classes_of_some_size_nothing_is_said_of_what_is_within_them(labels):
    blocks = np.random.default_rng(0).normal(size=(2, 30))
    needs = {Unit("values", TASK, "reference", 0, {"block": i}): rows_of(b) for i, b in enumerate(blocks)}
    unit = Unit("agreement", TASK, "reference", 0, needs=tuple(needs))
    assert "spearman_within_classes" not in judged_agreement(unit, needs, labels).index


def test_values_that_tell_nothing_but_classes_apart_do_not_agree_within_them():
    rng = np.random.default_rng(0)
    labels = np.arange(100) % 2
    truth, own = 5 * labels + rng.normal(size=100), 5 * labels + rng.normal(size=100)
    needs = {Unit("values", TASK, "knn", 0): rows_of(own)}
    needs |= {Unit("values", TASK, "reference", 0, {"block": i}): rows_of(truth) for i in range(2)}
    found = judged_agreement(Unit("agreement", TASK, "knn", 0, needs=tuple(needs)), needs, labels)["value"]
    assert found["spearman"] > 0.6
    assert abs(found["spearman_within_classes"]) < 0.3


# --- removal ---


@pytest.fixture(scope="module")
def task():
    return tasks.load(TASK, 0)


def trained_without(task, removed):
    """Test accuracy and loss of a plain training run in which some samples contribute nothing."""
    model = task.model()
    optimizer = task.optimizer(model)
    kept = torch.ones(task.n_train)
    kept[list(removed)] = 0
    for index in task.batches():
        losses = torch.nn.functional.cross_entropy(model(task.train.x[index]), task.train.y[index], reduction="none")
        (losses @ kept[index] / len(index)).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        accuracy = (model(task.test.x).argmax(dim=1) == task.test.y).double().mean()
        return float(accuracy), float(task.loss(model, task.test))


def curve(rows, metric, direction):
    return rows[(rows["metric"] == metric) & (rows["direction"] == direction)].set_index("fraction")["value"]


def test_removal_retrains_without_the_share_that_it_names(task):
    vector = np.random.default_rng(0).normal(size=task.n_train)
    rows = judged(removal, vector)
    order = {"top": np.argsort(-vector), "bottom": np.argsort(vector)}
    for direction, fraction in itertools.product(order, (0.0, 0.2, 0.5, 0.9)):
        accuracy, loss = trained_without(task, order[direction][: round(fraction * task.n_train)])
        at = int(np.flatnonzero(np.isclose(curve(rows, "test_loss", direction).index, fraction))[0])
        assert curve(rows, "test_loss", direction).iloc[at] == pytest.approx(loss, rel=1e-4)
        assert curve(rows, "test_accuracy", direction).iloc[at] == pytest.approx(accuracy)


def test_random_removal_starts_at_the_full_model_too(task):
    unit = Unit("removal", TASK, "random", 0, {"draws": 3})
    rows = pd.DataFrame(removal.measure(unit, {}))
    accuracy, loss = trained_without(task, [])
    assert set(rows["direction"]) == {"draw 0", "draw 1", "draw 2"}
    start = rows[rows["fraction"] == 0]
    np.testing.assert_allclose(start[start["metric"] == "test_loss"]["value"], loss, rtol=1e-4)
    np.testing.assert_allclose(start[start["metric"] == "test_accuracy"]["value"], accuracy)
    assert rows[(rows["metric"] == "test_loss") & (rows["fraction"] > 0.4)]["value"].nunique() > 3


def test_the_area_is_that_between_the_curves_and_turns_with_the_values(task):
    vector = np.zeros(task.n_train) + np.linspace(0, 1e-3, task.n_train)
    vector[task.flipped] -= 1  # what any good method finds
    rows, turned = judged(removal, vector), judged(removal, -vector)
    for metric, sign in (("loss", 1), ("accuracy", -1)):
        top, bottom = (curve(rows, f"test_{metric}", d).to_numpy() for d in ("top", "bottom"))
        gap = sign * (top - bottom)  # losing what is valuable should cost more
        expected = 0.1 * (gap.sum() - (gap[0] + gap[-1]) / 2)
        (area,) = rows[rows["metric"] == f"area_{metric}"]["value"]
        (opposite,) = turned[turned["metric"] == f"area_{metric}"]["value"]
        assert area == pytest.approx(expected)
        assert opposite == pytest.approx(-area)
    assert float(rows[rows["metric"] == "area_loss"]["value"].iloc[0]) > 0
    accuracies = curve(rows, "test_accuracy", "top").to_numpy()
    steps = -np.diff(accuracies)  # as in the paper: the mean of the first j drops, summed over j
    expected = sum(steps[:j].sum() / j for j in range(1, len(steps) + 1))
    assert rows[rows["metric"] == "weighted_accuracy_drop"]["value"].item() == pytest.approx(expected)


def test_a_regression_is_judged_by_its_loss_alone():
    regression = tasks.load("diabetes-ridge", 0)
    vector = np.random.default_rng(0).normal(size=regression.n_train)
    vector[regression.flipped] -= 10
    rows = judged(removal, vector, "diabetes-ridge")
    assert set(rows["metric"]) == {"test_loss", "area_loss"}
    model = regression.model()
    optimizer = regression.optimizer(model)
    for index in regression.batches():
        regression.train_on(model, optimizer, index)
    loss = regression.loss(model, regression.test).item()
    for direction in ("top", "bottom"):
        assert curve(rows, "test_loss", direction)[0.0] == pytest.approx(loss, rel=1e-4)


def test_curves_of_tasks_with_and_without_an_accuracy_share_a_figure():
    vector = np.random.default_rng(0).normal(size=150)
    named = {"method": "inrun-first", "seed": 0}
    regression = judged(removal, vector, "diabetes-ridge").assign(task="diabetes-ridge", **named)
    classification = judged(removal, vector[:100]).assign(task=TASK, **named)
    both = EXPERIMENTS["removal"].draw(pd.concat([regression, classification]))
    panels = np.array(both.axes).reshape(5, 2)
    has_curves = [[bool(ax.lines) for ax in row] for row in panels]
    assert has_curves == [[False, True], [False, True], [True, True], [True, True], [True, True]]
    assert {text.get_text() for ax in panels[:2, 0] for text in ax.texts} == {"none:\nno classes"}
    assert len(EXPERIMENTS["removal"].draw(regression).axes) == 3
    table = removal.table(pd.concat([regression, classification]))
    assert table.count("area loss") == 2
    assert table.count("weighted accuracy drop") == 2  # in the sentence, and of the task with classes


@pytest.mark.parametrize("method", ["random", "knn"])
def test_removal_by_conventional_retraining_trains_on_what_is_kept_alone(method):
    task = tasks.load(TASK, 0)
    vector = np.random.default_rng(0).normal(size=task.n_train)
    if method == "random":
        unit = Unit("removal", TASK, method, 0, {"draws": 2, "runs": 2})
        rows = pd.DataFrame(removal.measure(unit, {}))
        orders = {f"draw {i}": None for i in range(2)}
    else:
        rows, orders = judged(removal, vector, runs=2), {"top": np.argsort(-vector), "bottom": np.argsort(vector)}
    alone = task.conventional_game("accuracy", "test", seeds=2)
    everybody = alone(np.ones((1, task.n_train), dtype=bool)).item()
    for direction, order in orders.items():
        found = curve(rows, "conventional_test_accuracy", direction)
        assert found[0.0] == pytest.approx(everybody)
        assert found.index.tolist() == curve(rows, "test_accuracy", direction).index.tolist()
        if order is not None:
            kept = np.ones(task.n_train, dtype=bool)
            kept[order[: round(0.3 * task.n_train)]] = False
            assert found.iloc[np.isclose(found.index, 0.3)].item() == pytest.approx(alone(kept[None]).item())
    if method == "knn":
        top, bottom = (curve(rows, "conventional_test_loss", direction).to_numpy() for direction in orders)
        gap = top - bottom
        (area,) = rows[rows["metric"] == "conventional_area_loss"]["value"]
        assert area == pytest.approx(0.1 * (gap.sum() - (gap[0] + gap[-1]) / 2))


# --- detection ---


def test_wrong_numbers_are_detected_as_wrong_labels_are():
    regression = tasks.load("diabetes-ridge", 0)
    vector = np.zeros(regression.n_train)
    vector[regression.flipped] = -1
    rows = judged(detection, vector, "diabetes-ridge").set_index("metric")["value"]
    assert rows.to_dict() == {"auroc": 1, "average_precision": 1, "share_flipped": 0.1}


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_detection_counts_pairs_and_searches_from_below(seed):
    task = tasks.load(TASK, 0)
    vector = np.random.default_rng(seed).permutation(task.n_train).astype(float)
    rows = judged(detection, vector).set_index("metric")["value"]
    flipped = np.isin(np.arange(task.n_train), task.flipped)
    found = vector[flipped][:, None] < vector[~flipped]
    assert rows["auroc"] == pytest.approx(found.mean())
    hits = np.flatnonzero(flipped[np.argsort(vector)]) + 1  # the place of each flipped sample in the search
    assert rows["average_precision"] == pytest.approx(np.mean(np.arange(1, len(hits) + 1) / hits))
    assert rows["share_flipped"] == len(task.flipped) / task.n_train


def test_equal_values_detect_nothing(task):
    rows = judged(detection, np.zeros(task.n_train)).set_index("metric")["value"]
    assert rows["auroc"] == 0.5
    assert rows["average_precision"] == pytest.approx(rows["share_flipped"])


# --- fidelity ---

RUN = ["optimizer", "seed", "rate_factor", "batch_size"]
OWN = "seed == 0 and rate_factor == 1"


def steps_of_run(unit):
    """Yield the steps of the run that a unit of fidelity looks at: number, model, optimiser and batch before each."""
    task = fidelity._load(unit)
    model = task.model()
    optimizer = task.optimizer(model)
    for number, index in enumerate(task.batches()):
        yield number, task, model, optimizer, index
        task.train_on(model, optimizer, index)


def judge_of(**settings):
    """Return the one judge's unit of the plan that has these settings, and those of its own rate and seed."""
    wanted = {"rate_factor": 1.0, "batch_size": 4, **settings}
    judges = {unit.needs[0] for unit in fidelity.units(PLAN) if unit.seed == 0}
    (found,) = (unit for unit in judges if wanted.items() <= unit.settings.items())
    return found


def test_small_batches_are_judged_by_enumeration_and_others_by_permutations_of_as_many_coalitions(results):
    judge = results.read_all("fidelity").query("method == 'step-shapley' and metric == 'value'")
    steps = judge.groupby([*RUN, "stage"])
    assert len(steps) == 4 * 2 * 3 * 2 * 2  # optimisers, seeds, learning rates, batch sizes, stages
    small, large = judge.query("batch_size == 4"), judge.query("batch_size == 10")
    assert set(small["evaluations"]) == {2**4}
    assert set(small["stderr"]) == {0.0}
    assert (large["stderr"] > 0).any()
    assert (large["evaluations"] <= 40).all()
    assert set(steps["sample"].nunique()) == {4, 10}
    assert set(steps["sample"].size()) == {4, 10}


def test_runs_of_all_batch_sizes_are_equally_long_but_for_whole_epochs():
    for size in (4, 10):
        task = fidelity._load(judge_of(optimizer="SGD", batch_size=size))
        an_epoch = -(-task.n_train // size)
        assert {len(index) for index in task.batches()[: an_epoch - 1]} == {size}
        assert 20 <= len(task.batches()) < 20 + an_epoch
        assert len(task.validation) == 32


def test_only_its_own_optimizer_warms_up():
    recipes = {name: fidelity._load(judge_of(optimizer=name)).recipe for name in fidelity.OPTIMIZERS}
    assert [recipe.optimizer for recipe in recipes.values()] == ["sgd", "sgd", "adamw", "adamw"]
    assert [recipe.warmup for recipe in recipes.values()] == [0, 0, 0, 0.2]
    assert recipes["momentum"].momentum == 0.9


@pytest.mark.parametrize("name", ["SGD", "AdamW, warm-up"])
def test_the_judge_hands_out_the_drop_of_the_validation_loss_but_for_what_nobody_did(results, name):
    judge = results.read_all("fidelity").query(
        f"method == 'step-shapley' and metric == 'value' and optimizer == @name and batch_size == 4 and {OWN}"
    )
    looked_at = 0
    for number, task, model, optimizer, index in steps_of_run(judge_of(optimizer=name)):
        own = judge[judge["step"] == number]
        if len(own):
            looked_at += 1
            game = tasks.StepGame(task, model, optimizer, index)
            assert sorted(own["sample"]) == sorted(index.tolist())
            assert own["value"].sum() == pytest.approx(game(np.ones((1, 4), dtype=bool))[0], rel=1e-9)
            if name == "SGD":  # AdamW would step without any sample, too
                before, after = task.loss(model, task.validation).item(), copy.deepcopy(model)
                stepped = task.optimizer(after)
                task.train_on(after, stepped, index)
                drop = before - task.loss(after, task.validation).item()
                assert own["value"].sum() == pytest.approx(drop, rel=1e-9)
    assert looked_at == 2


def test_the_training_loss_is_that_of_the_run_at_every_quarter(results):
    losses = results.read_all("fidelity").query("metric == 'training_loss'")
    assert set(losses["method"]) == {"step-shapley"}
    assert set(losses.groupby(RUN)["done"].agg(tuple)) == {(0.0, 0.25, 0.5, 0.75, 1.0)}
    own = losses.query(f"optimizer == 'AdamW' and batch_size == 10 and {OWN}").set_index("done")["value"]
    steps = steps_of_run(judge_of(optimizer="AdamW", batch_size=10))
    by_step = [task.loss(model, task.train).item() for _, task, model, _, _ in steps]
    assert own[0.0] == pytest.approx(by_step[0])
    assert own[0.5] == pytest.approx(by_step[round(0.5 * len(by_step))])


def test_integrated_scores_are_nearer_to_the_step_game_than_first_order_ones(results):
    errors = results.read_all("fidelity").query("metric == 'relative_error' and batch_size == 4")
    by_method = errors.pivot_table(index=[*RUN, "step"], columns="method", values="value")
    assert set(by_method) == {f"inrun-{order}" for order in ("first", "midpoint", "trapezoid", "integrated")}
    sgd = by_method.loc["SGD"].query("rate_factor <= 5")  # AdamW's first steps are another story
    assert len(sgd) == 8
    for order in ("midpoint", "trapezoid", "integrated"):
        assert (sgd[f"inrun-{order}"] < sgd["inrun-first"]).all()
    assert (sgd["inrun-integrated"] < 0.05).all()
    first = sgd["inrun-first"].unstack("rate_factor")
    assert (first[5.0] > first[1.0]).all()


def test_later_adamw_steps_are_scored_from_the_state_that_they_start_from(results):
    errors = results.read_all("fidelity").query(
        "metric == 'relative_error' and optimizer == 'AdamW' and step > 5 and rate_factor == 1 and batch_size == 4"
    )
    by_method = errors.groupby("method")["value"].max()
    assert by_method["inrun-integrated"] < 0.05  # as if fresh, the optimiser would step in other directions
    assert by_method["inrun-first"] > by_method["inrun-integrated"]


def test_the_residual_share_needs_no_judge(results):
    shares = results.read_all("fidelity").query(f"metric == 'residual_share' and optimizer == 'SGD' and {OWN}")
    by_method = shares.groupby("method")["value"].max()
    assert by_method["inrun-integrated"] < 0.01
    assert by_method["inrun-integrated"] < by_method["inrun-first"]


def test_scoring_a_step_leaves_the_run_as_it_was():
    steps = steps_of_run(judge_of(optimizer="AdamW"))
    _, task, model, optimizer, index = next(step for step in steps if step[0] == 3)
    tensors = (*model.parameters(), *(s["exp_avg_sq"] for s in optimizer.state.values()))
    before = [t.clone() for t in tensors]
    fidelity._score("integrated", fidelity._Moment({}, task, model, optimizer, index))
    assert all(map(torch.equal, before, tensors))


def test_the_error_is_relative_to_the_judge():
    unit = next(unit for unit in fidelity.units(PLAN) if unit.method == "inrun-first")
    (judge,) = unit.needs
    truth = pd.DataFrame(fidelity.measure(judge, {}))
    plain = pd.DataFrame(fidelity.measure(unit, {judge: truth})).query("metric == 'relative_error'")
    far = truth.assign(value=1e6 * truth["value"], stderr=0.25e6 * truth["value"].abs())
    rows = pd.DataFrame(fidelity.measure(unit, {judge: far}))
    errors = rows.query("metric == 'relative_error'")
    assert (plain["value"] < 0.5).all()
    np.testing.assert_allclose(errors["value"], 1, rtol=1e-5)
    np.testing.assert_allclose(errors["stderr"], 0.25)
    sizes = [np.sqrt(np.square(own["value"]).mean()) for _, own in far.query("metric == 'value'").groupby("step")]
    np.testing.assert_allclose(rows.query("metric == 'rmse'")["value"], sizes, rtol=1e-5)


@pytest.mark.parametrize(
    ("methods", "runs"),
    [
        (("inrun-second", "knn"), {"inrun-second"}),
        (("inrun-integrated",), {"inrun-integrated"}),
        (("inrun-acme", "random"), set()),
    ],
)
def test_orders_run_with_the_methods_that_are_named(methods, runs):
    found = fidelity.units(dataclasses.replace(PLAN, methods=methods))
    assert {unit.method for unit in found} == runs


def test_a_task_is_trained_by_the_recipes_that_it_has(monkeypatch):
    spec = tasks.CATALOG[TASK]
    only = {"sgd": spec.recipes["sgd"]}
    monkeypatch.setitem(tasks.CATALOG._all(), TASK, dataclasses.replace(spec, recipes=only))
    assert {unit.settings["optimizer"] for unit in fidelity.units(PLAN)} == {"SGD"}


def test_batches_are_no_larger_than_the_training_set():
    found = fidelity.units(dataclasses.replace(PLAN, profile="standard", tasks=("iris-logreg",)))
    assert {unit.settings["batch_size"] for unit in found} == {4, 16}


def test_steps_of_a_run_that_diverges_are_no_numbers_and_a_sample_alone_is_a_step(monkeypatch, tmp_path):
    """41 samples in batches of 4: the last step of an epoch is on one of them."""
    grid = fidelity.Grid((1.0, 30.0), (4,), coalitions=40, steps=22, validation=8)
    monkeypatch.setitem(fidelity.KNOBS, "quick", fidelity.Knobs({"default": grid}, stages=(0.0, 1.0)))
    chance = np.random.default_rng(0)
    x = chance.normal(size=(90, 4))
    net = lambda: torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))  # noqa: E731
    task = tasks.from_arrays(
        x, x @ chance.normal(size=4), model=net, recipe=tasks.Recipe("sgd", 0.1, 4, 2), n_train=41, name="own"
    )
    asked = ["fidelity", "residual"]
    found = benchmark([task], ["inrun-first", "inrun-integrated"], asked, out=tmp_path, seeds=[0], jobs=1)
    assert found.failed == {}
    rows = found.rows("fidelity")
    errors = rows[rows["metric"] == "relative_error"]
    assert errors[errors["rate_factor"] == 1.0]["value"].notna().all()
    late = errors[(errors["rate_factor"] == 30.0) & (errors["stage"] == 1.0)]
    assert len(late) == 4
    assert late["value"].isna().all()
    assert fidelity.failing(rows) == {("own", "SGD", 30.0, 4)}
    assert set(rows[rows["metric"] == "spearman"]["stage"]) == {0.0}
    values = rows[(rows["metric"] == "value") & (rows["rate_factor"] == 1.0)].groupby("stage").size()
    assert values.to_dict() == {0.0: 4, 1.0: 1}
    steps = found.rows("residual").query("metric == 'relative_error'")
    assert set(steps["value"]) == set(errors["value"].dropna())


# --- residual ---


def test_the_residual_is_set_beside_the_error_of_every_step(results):
    told = results.read_all("residual").query("metric == 'relative_error' and seed == 1")
    seen = results.read_all("fidelity").query("seed == 1")
    for (method, optimizer), own in told.groupby(["method", "optimizer"]):
        of_method = seen[(seen["method"] == method) & (seen["optimizer"] == optimizer)]
        for name, column in (("relative_error", "value"), ("residual_share", "residual_share")):
            expected = of_method[of_method["metric"] == name]["value"]
            np.testing.assert_allclose(np.sort(own[column]), np.sort(expected))
    assert set(told["method"]) == {"inrun-first", "inrun-integrated", "inrun-midpoint", "inrun-trapezoid"}


def residuals_of(errors, residuals):
    """Return what residual tells of steps with these errors and residuals, by metric."""
    steps = [
        {"method": "inrun-first", "step": step, "metric": name, "value": value}
        for step, pair in enumerate(zip(errors, residuals, strict=True))
        for name, value in zip(("relative_error", "residual_share"), pair, strict=True)
    ]
    unit = next(unit for unit in fidelity.units(PLAN) if unit.method == "inrun-first")
    rows = pd.DataFrame(residual.measure(unit, {unit: pd.DataFrame(steps)}))
    return rows[rows["residual_share"].isna()].set_index("metric")["value"]


def test_the_residual_is_told_of_the_steps_that_are_numbers_whatever_became_of_other_runs():
    def run(factor, errors):
        unit = Unit("fidelity", TASK, "inrun-first", 0, {"optimizer": "SGD", "rate_factor": factor})
        pairs = {"relative_error": errors, "residual_share": [error / 2 for error in errors if np.isfinite(error)]}
        told = [
            {"method": "inrun-first", "step": step, "metric": metric, "value": value}
            for metric, values in pairs.items()
            for step, value in enumerate(values)
        ]
        return unit, pd.DataFrame(told)

    unit = Unit("residual", TASK, "inrun-first", 0)
    alone = residual.measure(unit, dict([run(1.0, [0.02, 0.3, 0.05])]))
    beside = residual.measure(unit, dict([run(1.0, [0.02, 0.3, 0.05]), run(30.0, [np.nan, np.nan])]))
    assert beside == alone
    assert sum(row["metric"] == "relative_error" for row in alone) == 3


def test_a_residual_that_rises_with_the_error_warns_and_one_that_falls_does_not():
    errors = np.geomspace(1e-4, 1.0, 20)
    told = residuals_of(errors, 2 * errors)
    assert told["spearman"] == pytest.approx(1)
    assert told["auroc"] == 1
    assert told["share_wrong"] == np.mean(errors > residual.WRONG)
    assert told["error_where_small"] <= residual.SMALL / 2
    against = residuals_of(errors, 1 / errors)
    assert against["spearman"] == pytest.approx(-1)
    assert against["auroc"] == 0
    assert against["share_small"] == 0
    assert np.isnan(against["error_where_small"])


def test_steps_that_have_no_error_are_left_out():
    told = residuals_of([0.01, 0.5, np.nan, np.inf], [0.01, 0.2, 0.1, 0.1])
    assert told["share_wrong"] == 0.5


# --- methods ---

SEED = np.random.SeedSequence(0)


def trained(task):
    model = task.model()
    optimizer = task.optimizer(model)
    for index in task.batches():
        task.train_on(model, optimizer, index)
    return model


@pytest.mark.parametrize("name", ["breast-cancer-logreg", "diabetes-ridge"])
def test_the_embedding_of_a_linear_model_is_its_features_and_costs_one_training(name):
    linear = tasks.load(name)
    plain, embedded = (METHODS[method](linear, SEED) for method in ("knn", "knn-embedding"))
    np.testing.assert_array_equal(embedded.values, plain.values)
    assert (plain.evaluations, embedded.evaluations) == (0, 1)


@pytest.mark.parametrize("name", ["digits-mlp", "mnist-cnn"])
def test_neighbours_are_those_of_what_the_last_layer_of_the_trained_model_sees(name):
    deep = tasks.load(name, n_train=40)
    body = trained(deep)[:-1]
    with torch.no_grad():
        train, validation = (body(split.x).flatten(1).double().numpy() for split in (deep.train, deep.validation))
    expected = knn_shapley(train, deep.train.y, validation, deep.validation.y, k=5)
    np.testing.assert_array_equal(METHODS["knn-embedding"](deep, SEED).values, expected.values)
    assert not np.allclose(METHODS["knn"](deep, SEED).values, expected.values)


def test_neighbours_in_regression_tell_numbers():
    linear = tasks.load("diabetes-ridge")
    train, validation = linear.train, linear.validation
    expected = knn_regression_shapley(*(part.numpy() for part in (train.x, train.y, validation.x, validation.y)), k=5)
    np.testing.assert_array_equal(METHODS["knn"](linear, SEED).values, expected.values)


def test_a_model_without_a_linear_layer_has_no_embedding():
    with pytest.raises(ValueError, match=r"ReLU has no nn\.Linear"):
        embed(torch.nn.ReLU(), torch.ones(2, 3))


KINDS = ("iris-logreg", "diabetes-ridge", "mnist-cnn")


@pytest.mark.parametrize(
    ("task_name", "name"),
    [
        (kind, name)
        for kind, name in itertools.product(KINDS, METHODS)
        if kind == KINDS[0] or not name.endswith("-seeds-20")  # means of twenty others, each of which is among them
    ],
)
def test_every_method_values_the_samples_of_every_kind_of_task(task_name, name):
    few = tasks.load(task_name, n_train=12)
    valuation = METHODS[name](few, SEED)
    assert valuation.values.shape == (12,)
    assert np.isfinite(valuation.values).all()


# --- values and overhead ---


@pytest.mark.parametrize("length", [0, 99, 101])
def test_a_method_that_returns_another_number_of_values_is_refused_by_name(monkeypatch, length):
    answer = Valuation(values=np.zeros(length), stderr=None, evaluations=0, seconds=0.0, method="x")
    monkeypatch.setitem(METHODS._all(), "careless", lambda _task, _seed: answer)
    with pytest.raises(ValueError, match=rf"'careless' must return 100 finite values, got shape \({length},\)"):
        values.measure(values.values_unit(TASK, "careless", 0), {})


def test_a_method_that_returns_no_valuation_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(METHODS._all(), "careless", lambda _task, _seed: np.zeros(100))
    with pytest.raises(TypeError, match=r"'careless' must return a baselines.Valuation, got ndarray; wrap"):
        values.measure(values.values_unit(TASK, "careless", 0), {})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_method_that_returns_what_is_no_number_is_refused_by_name(monkeypatch, bad):
    answer = Valuation(values=np.r_[bad, np.zeros(99)], stderr=None, evaluations=0, seconds=0.0, method="x")
    monkeypatch.setitem(METHODS._all(), "careless", lambda _task, _seed: answer)
    with pytest.raises(ValueError, match=r"'careless' must return 100 finite values.*with 1 not finite"):
        values.measure(values.values_unit(TASK, "careless", 0), {})


def test_a_method_gets_the_task_and_the_units_own_stream_and_its_account_is_kept(monkeypatch):
    seen = []

    def method(task, seed):
        seen.append((task.name, task.seed, seed.entropy))
        parameters = {"k": 5, "share": 0.5, "kind": "x", "flag": True}
        return Valuation(np.arange(100.0), np.ones(100), evaluations=12, seconds=3.5, method="m", parameters=parameters)

    monkeypatch.setitem(METHODS._all(), "acme", method)
    unit = values.values_unit(TASK, "acme", 1)
    rows = pd.DataFrame(values.measure(unit, {}))
    assert seen == [(TASK, 1, unit.random_seed.entropy)]
    np.testing.assert_array_equal(stored_values.read_values(rows), np.arange(100.0))
    assert (rows[rows["metric"] == "value"]["stderr"] == 1).all()
    (cost,) = rows[rows["metric"] == "cost"].to_dict("records")
    assert (cost["evaluations"], cost["seconds"]) == (12, 3.5)
    assert rows.set_index("metric")["value"][["k", "share"]].to_dict() == {"k": 5.0, "share": 0.5}
    assert not {"kind", "flag"} & set(rows["metric"])


def test_every_method_values_every_sample(results):
    found = results.read_all("values").query("metric == 'value'")
    assert set(found.groupby(["method", "seed"]).size()) == {100, 200}  # the reference has two blocks
    assert set(found.query("method == 'reference'").groupby(["seed", "block"]).size()) == {100}
    assert np.isfinite(found["value"]).all()


def test_the_reference_is_made_of_independent_blocks_that_each_share_out_what_training_gains(results):
    found = results.read_all("values").query("method == 'reference' and metric == 'value' and seed == 0")
    blocks = [own.sort_values("sample")["value"].to_numpy() for _, own in found.groupby("block")]
    empty, full = tasks.load(TASK, 0).trajectory_game()(np.array([[False] * 100, [True] * 100]))
    np.testing.assert_allclose([b.sum() for b in blocks], full - empty, rtol=1e-5)
    assert not np.allclose(*blocks)


def test_overhead_is_in_units_of_regular_training(results):
    rows = results.read_all("overhead")
    regular = rows.query("metric == 'step_ratio' and method == 'regular'")
    assert regular["value"].tolist() == [1.0, 1.0, 1.0]
    steps = rows[rows["metric"] == "step_ratio"]
    assert (steps["low"] <= steps["value"]).all()
    assert (steps["value"] <= steps["high"]).all()
    assert (steps["peak_bytes"] > 0).all()
    runs = rows[rows["metric"] == "run_ratio"].set_index("method")
    np.testing.assert_allclose(runs["value"], runs["seconds"] / runs["plain_seconds"])
    spent = results.read_all("values").query("metric == 'cost' and seed == 0").groupby("method")["seconds"].sum()
    assert runs["seconds"].to_dict() == pytest.approx(spent.drop("random").to_dict())


def test_the_net_cost_of_scores_leaves_one_validation_pass_out(results):
    rows = results.read_all("overhead").query("task == 'mlp'")
    ratios = rows.pivot_table(index="method", columns="metric", values="value")
    net = rows[rows["metric"] == "net_ratio"].set_index("method")
    late = {"inrun-second", "inrun-midpoint", "inrun-integrated"}
    assert set(net.index) == {"inrun-first", *overhead.FORCED} | late | set(overhead.ADAMW)
    assert (net["low"] <= net["value"]).all()
    assert (net["value"] <= net["high"]).all()
    # with two rounds the median is the mean; late orders take part in the first round alone
    prompt = ratios.loc[sorted(set(net.index) - late - set(overhead.ADAMW))]
    np.testing.assert_allclose(prompt["net_ratio"], prompt["step_ratio"] - ratios["step_ratio"]["validation"])
    peaks = rows[rows["metric"] == "peak_ratio"].set_index("method")
    bases = [peaks["peak_bytes"]["regular-adamw" if "adamw" in name else "regular"] for name in peaks.index]
    np.testing.assert_allclose(peaks["value"], peaks["peak_bytes"] / bases)
    assert peaks["value"]["regular"] == peaks["value"]["regular-adamw"] == 1
    assert net["rule"]["inrun-first-adamw"] == "late: keep"
    assert "late" not in net["rule"]["inrun-first-adamw-lagged"]


def test_a_step_with_few_validation_rows_is_timed_with_all_that_it_includes(results):
    rows = results.read_all("overhead")
    whole = rows[rows["metric"] == overhead.WHOLE].set_index("method")
    assert set(whole.index) == set(overhead.FEW)
    assert (whole["low"] <= whole["value"]).all()
    peaks = rows[rows["metric"] == overhead.WHOLE_PEAK].set_index("method")["value"]
    assert (peaks > 0.5).all()
    assert set(overhead.of_workloads(rows)["metric"]) == {"step_ratio", "net_ratio", "peak_ratio"}
    told = overhead.table(rows)
    assert all(f"{whole['value'][name]:.2f} / {peaks[name]:.2f}" in told for name in overhead.FEW)


def test_queries_are_timed_beside_regular_steps():
    unit = Unit("overhead", "gpt-queries", overhead.WORKLOAD, 0, {"repeats": 1})
    rows = overhead.measure(unit, {})
    assert {(row["method"], row["metric"]) for row in rows} == {
        (name, metric) for name in overhead.QUERIES for metric in (overhead.WHOLE, overhead.WHOLE_PEAK)
    }
    assert all(row["value"] > 0.5 for row in rows)


def test_the_rule_that_was_chosen_stands_beside_the_one_that_was_fastest(results):
    net = results.read_all("overhead").query("task == 'mlp' and metric == 'net_ratio'").set_index("method")
    forced = ["project", "weight-gradient", "gram"]
    for rule in forced:
        assert net["rule"][f"inrun-first-{rule}"] == f"{rule} 4"
    layers = [part.split() for part in net["rule"]["inrun-first"].split(", ")]
    assert {rule for rule, _ in layers} <= set(forced)
    assert sum(int(number) for _, number in layers) == 4
    (fastest,) = set(net["fastest_rule"])
    assert net["value"][f"inrun-first-{fastest}"] == net["value"][[f"inrun-first-{rule}" for rule in forced]].min()


@pytest.mark.parametrize("name", overhead.WORKLOADS)
def test_workloads_are_the_same_each_time_and_judged_by_as_many_samples_as_they_train_on(name):
    one, other = overhead.WORKLOADS[name](), overhead.WORKLOADS[name]()
    for part in ("train", "validation"):
        a, b = getattr(one, part), getattr(other, part)
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
    assert name in overhead.OF_QUERIES or one.train.x.shape == one.validation.x.shape
    assert not torch.equal(one.train.x, one.validation.x)
    if name.startswith("gpt"):
        assert torch.equal(one.train.x.flatten()[1:], one.train.y.flatten()[:-1])  # told is the next byte


# --- plans ---


def test_units_are_the_same_at_each_call_and_each_is_one_file():
    names = [name for name, experiment in EXPERIMENTS.items() if experiment.DEFAULT]
    found = units_of(*names)
    assert found == units_of(*names)
    assert len({unit.key for unit in found}) == len(found)
    everything = {unit.key: unit for unit in found}
    assert {need.key for unit in found for need in unit.needs if need.experiment == "values"} <= set(everything)


def test_a_units_definition_does_not_depend_on_what_else_is_planned():
    for name in ("values", "agreement", "removal", "detection", "fidelity"):
        all_keys = {u.key for u in units_of(name)}
        few = type(PLAN)(PLAN.profile, PLAN.tasks, PLAN.methods[1:2], PLAN.seeds[1:])
        few_keys = {u.key for u in units_of(name, plan=few)}
        assert few_keys
        assert few_keys < all_keys


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_name_what_there_is(name):
    profile = PROFILES[name]
    assert set(profile.tasks) <= set(tasks.names())
    assert set(profile.methods) <= set(METHODS)
    assert profile.like in PROFILES


def test_knobs_are_of_profiles_and_can_be_cut_into_their_blocks():
    every = [knobs for experiment in EXPERIMENTS.values() for knobs in [getattr(experiment, "KNOBS", {})] if knobs]
    for knobs in (*every, stored_values.REFERENCES):
        assert knobs.keys() <= {*PROFILES, "tiny"}
        assert knobs.keys() >= {profile.like for profile in PROFILES.values()}
    for own in fidelity.KNOBS.values():
        assert "default" in own.grids
        assert all(1.0 in grid.rate_factors for grid in own.grids.values())  # the recipe's own learning rate
        for grid in own.grids.values():  # of one permutation and its reverse there is no telling how exact it is
            assert all(min(2**size, 4 * size) <= grid.coalitions for size in grid.batch_sizes)
    for own in overhead.KNOBS.values():
        assert own.workloads.keys() <= overhead.WORKLOADS.keys()
    for own in stored_values.REFERENCES.values():
        assert own.blocks % 2 == 0
        assert all(number % (2 * own.blocks) == 0 < number for number in own.permutations.values())
