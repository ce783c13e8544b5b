import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss

import tasks
from tasks.data import exchange_targets, flip_labels, partition, standardise
from tasks.objective import CLASSIFICATION, REGRESSION
from tasks.task import TaskSpec

NAMES = tasks.names(large=False)


def same(a, b):
    return torch.equal(a.x, b.x) and torch.equal(a.y, b.y)


@pytest.mark.parametrize("name", NAMES)
def test_name_and_seed_determine_the_task(name):
    one, again, other = tasks.load(name, 1), tasks.load(name, 1), tasks.load(name, 2)
    for part in ("train", "validation", "test"):
        assert same(getattr(one, part), getattr(again, part))
        assert not same(getattr(one, part), getattr(other, part))
    np.testing.assert_array_equal(one.flipped, again.flipped)
    weights = [torch.cat([p.detach().flatten() for p in t.model().parameters()]) for t in (one, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert all(map(torch.equal, one.batches(), again.batches()))
    assert not all(map(torch.equal, one.batches(), other.batches()))


@pytest.mark.parametrize("name", NAMES)
def test_a_tenth_of_the_training_targets_is_made_wrong_and_recorded(name):
    noisy, clean = tasks.load(name), tasks.load(name, flipped=0.0)
    changed = np.flatnonzero((noisy.train.y != clean.train.y).numpy())
    np.testing.assert_array_equal(noisy.flipped, changed)
    assert len(changed) == round(0.1 * noisy.n_train)
    assert len(clean.flipped) == 0
    assert torch.equal(noisy.train.x, clean.train.x)
    assert same(noisy.validation, clean.validation)
    assert same(noisy.test, clean.test)


@pytest.mark.parametrize("name", ["mnist-mlp", "mnist-cnn", "diabetes-ridge"])
def test_dtype_rounds_the_same_task(name):
    single, double = tasks.load(name), tasks.load(name, dtype=torch.float64)
    assert single.train.x.dtype == torch.float32
    assert torch.equal(single.train.x, double.train.x.float())
    assert torch.equal(single.train.y, double.train.y.to(single.train.y.dtype))
    for p, q in zip(single.model().parameters(), double.model().parameters(), strict=True):
        assert q.dtype == torch.float64
        assert torch.equal(p, q.float())


def test_building_a_model_leaves_the_random_stream_alone():
    task = tasks.load("digits-mlp")
    before = torch.random.get_rng_state()
    task.model()
    assert torch.equal(before, torch.random.get_rng_state())


def test_partition_is_disjoint_stratified_and_bounded():
    labels = np.repeat([0, 1, 2], [300, 150, 50])
    parts = partition(labels, [100, 200, 200], np.random.SeedSequence(0))
    assert sorted(np.concatenate(parts).tolist()) == list(range(500))
    for part in parts:
        np.testing.assert_allclose(np.bincount(labels[part]) / len(part), [0.6, 0.3, 0.1], atol=0.02)
    with pytest.raises(ValueError, match=r"400 \+ 101 = 501 samples, but the dataset has 500"):
        partition(labels, [400, 101], np.random.SeedSequence(0))


@pytest.mark.parametrize("scaling", ["feature", "global"])
def test_standardise_looks_at_training_samples_only(scaling):
    rng = np.random.default_rng(0)
    x = rng.normal(3, [1, 10, 0], size=(200, 3))
    train = np.arange(100)
    scaled = standardise(x, train, scaling)
    np.testing.assert_allclose(scaled[train].mean(axis=0), 0, atol=1e-12)
    x[150] = 1e6
    np.testing.assert_array_equal(standardise(x, train, scaling)[train], scaled[train])
    if scaling == "feature":
        np.testing.assert_allclose(scaled[train].std(axis=0), [1, 1, 0], atol=1e-12)
    else:
        assert scaled[train].std() == pytest.approx(1)


def test_flips_are_wrong_labels_evenly_drawn():
    labels = np.repeat(np.arange(5), 2000)
    noisy, flipped = flip_labels(labels, 5, 0.4, np.random.SeedSequence(0))
    assert len(flipped) == 4000
    assert np.all(noisy[flipped] != labels[flipped])
    assert set(np.flatnonzero(noisy != labels)) == set(flipped)
    shifts = np.bincount((noisy - labels)[flipped] % 5, minlength=5) / 4000
    np.testing.assert_allclose(shifts, [0, 0.25, 0.25, 0.25, 0.25], atol=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_train": 0}, "n_train must be at least 1, got 0"),
        ({"n_train": -3}, "n_train must be at least 1, got -3"),
        ({"n_train": 10_000}, "but the dataset has 1797"),
        ({"flipped": 1.5}, r"share of wrong training targets, must lie in \[0, 1\], got 1.5"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"recipe": "sdg"}, "unknown recipe 'sdg'; did you mean 'sgd'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        tasks.load("digits-mlp", **options)


def spec(**changes):
    return TaskSpec(
        **{
            "dataset": lambda: (np.zeros((30, 2)), np.repeat([0, 1, 7], 10)),
            "architecture": lambda: torch.nn.Linear(2, 3),
            "recipes": {"sgd": tasks.Recipe("sgd", 0.1, 5, 1)},
            "n_classes": 3,
            "n_train": 10,
            "n_validation": 10,
            "n_test": 10,
            "scaling": "feature",
            "summary": "",
            **changes,
        }
    )


def build(spec, flipped=0.0, seed=0):
    return spec.build("x", seed=seed, recipe="sgd", n_train=None, flipped=flipped, dtype=torch.float64)


def test_labels_outside_the_classes():
    with pytest.raises(ValueError, match=r"labels of the train set of task 'x' lie in 0 .. 7.*n_classes = 3.*0 .. 2"):
        build(spec())


# --- regression ---


def heights(n=400):
    """Numbers in units of their own, a few of them the same."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 2)), np.round(rng.normal(170, 10, size=n))


UNITS = (lambda centimetres: centimetres / 100, lambda centimetres: centimetres / 2.54 - 60)


@pytest.fixture
def regression():
    return spec(
        dataset=heights, n_classes=None, architecture=lambda: torch.nn.Linear(2, 1), n_train=200, n_validation=100
    )


def test_the_number_of_classes_tells_the_objective(regression):
    assert build(regression).objective is REGRESSION
    assert tasks.load("digits-mlp").objective is CLASSIFICATION


def test_numbers_are_in_units_of_the_true_training_targets(regression):
    clean, noisy = build(regression), build(regression, flipped=0.5)
    assert clean.train.y.mean().item() == pytest.approx(0, abs=1e-12)
    assert clean.train.y.std(correction=0).item() == pytest.approx(1)
    assert same(noisy.validation, clean.validation)
    assert same(noisy.test, clean.test)


def test_numbers_in_other_units_make_the_same_task(regression):
    x, y = heights()
    metres, inches = (build(dataclasses.replace(regression, dataset=lambda u=u: (x, u(y))), 0.3) for u in UNITS)
    np.testing.assert_array_equal(metres.flipped, inches.flipped)
    for part in ("train", "validation", "test"):
        torch.testing.assert_close(getattr(metres, part).y, getattr(inches, part).y)


def test_wrong_numbers_are_those_of_other_samples_evenly_drawn():
    targets = np.repeat(np.arange(4.0), [100, 200, 300, 400])
    noisy, wrong = exchange_targets(targets, 0.6, np.random.SeedSequence(0))
    assert len(wrong) == 600
    assert set(np.flatnonzero(noisy != targets)) == set(wrong)
    given = [np.bincount(noisy[wrong][targets[wrong] == t].astype(int), minlength=4) for t in range(4)]
    for own, counts in enumerate(given):
        others = np.array([100, 200, 300, 400]) * (np.arange(4) != own)
        np.testing.assert_allclose(counts / counts.sum(), others / others.sum(), atol=0.1)


def test_where_all_targets_are_the_same_none_can_be_made_wrong():
    with pytest.raises(ValueError, match=r"all 5 training targets are 2\.0: none can be made wrong"):
        exchange_targets(np.full(5, 2.0), 0.4, np.random.SeedSequence(0))
    noisy, wrong = exchange_targets(np.full(5, 2.0), 0.0, np.random.SeedSequence(0))
    assert (noisy == 2).all()
    assert len(wrong) == 0


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_a_share_is_between_none_and_all(fraction):
    with pytest.raises(ValueError, match=rf"flipped, the share of wrong .* must lie in \[0, 1\], got {fraction}"):
        exchange_targets(np.arange(5.0), fraction, np.random.SeedSequence(0))


def test_regression_has_no_accuracy(regression):
    with pytest.raises(ValueError, match=r"utility must be .*'loss'.* got 'accuracy'"):
        build(regression).trajectory_game("accuracy")


# --- games of the optimum ---


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("name", ["breast-cancer-logreg", "wine-logreg"])
def test_the_logistic_twin_is_the_regression_of_scikit_learn_on_the_tasks_samples(name, split):
    task = tasks.load(name, 1)
    judges = getattr(task, split)
    x, x_judges = (np.c_[part.x.double(), np.ones(len(part))] for part in (task.train, judges))
    fitted = LogisticRegression(C=1 / 3, fit_intercept=False, tol=1e-10, max_iter=10_000).fit(x, task.train.y)
    everyone = np.ones((1, task.n_train), dtype=bool)
    loss, accuracy = (task.optimum_game(utility, split, l2=3.0)(everyone)[0] for utility in ("loss", "accuracy"))
    assert loss == pytest.approx(-log_loss(judges.y, fitted.predict_proba(x_judges)), rel=1e-6)
    assert accuracy == fitted.score(x_judges, judges.y)


def test_the_ridge_twin_is_the_regression_of_scikit_learn_on_the_tasks_samples():
    task = tasks.load("diabetes-ridge", 1)
    x, x_judges = (np.c_[part.x.double(), np.ones(len(part))] for part in (task.train, task.validation))
    fitted = Ridge(alpha=3.0, fit_intercept=False).fit(x, task.train.y.double())
    everyone = np.ones((1, task.n_train), dtype=bool)
    errors = fitted.predict(x_judges) - task.validation.y.double().numpy()
    assert task.optimum_game(l2=3.0)(everyone)[0] == pytest.approx(-np.mean(errors**2))


def test_a_model_without_a_single_optimum_has_no_game_of_it():
    with pytest.raises(ValueError, match=r"task 'digits-mlp' declares no learner .* only trajectory_game"):
        tasks.load("digits-mlp").optimum_game()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("wine-logreg", {"split": "train"}, "split must be one of 'validation', 'test', got 'train'"),
        ("wine-logreg", {"utility": "r2"}, "utility must be one of 'loss', 'accuracy', got 'r2'"),
        ("diabetes-ridge", {"utility": "accuracy"}, "utility must be one of 'loss', 'r2', got 'accuracy'"),
        ("diabetes-ridge", {"l2": 0.0}, "l2 must be a positive finite number, got 0.0"),
    ],
)
def test_bad_arguments_of_the_optimum(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        tasks.load(name).optimum_game(**arguments)


def test_another_run_of_a_task_has_its_data_and_the_chance_of_another_seed():
    task, other = tasks.load("digits-mlp", seed=3), tasks.load("digits-mlp", seed=7)
    again = task.rerun(7)
    assert again.seed == 3
    assert again.train is task.train
    assert again.validation is task.validation
    assert again.flipped is task.flipped
    assert all(torch.equal(a, b) for a, b in zip(again.batches(), other.batches(), strict=True))
    weights = again.model().state_dict()
    assert all(torch.equal(weights[name], value) for name, value in other.model().state_dict().items())
    assert again.rerun(3).trajectory_game().identity() == task.trajectory_game().identity()
    assert again.trajectory_game().identity() != task.trajectory_game().identity()


def test_seeds_of_runs_are_not_that_of_the_task_nor_of_another_s_runs():
    task = tasks.load("iris-logreg", seed=3)
    assert task.run_seeds(3) == (1003, 2003, 3003)
    assert task.rerun(2003).run_seeds(3) == (1003, 3003, 4003)
    assert not set(task.run_seeds(50)) & set(tasks.load("iris-logreg", seed=4).run_seeds(50))
    assert task.run_seeds((3, np.int64(0))) == (3, 0)
    assert task.run_seeds([4]) == (4,)


@pytest.mark.parametrize(
    ("seeds", "error", "message"),
    [
        (0, ValueError, "seeds must be at least 1, got 0"),
        (2.0, TypeError, "seeds must be an integer"),
        (True, TypeError, "seeds must be an integer"),
        ((), ValueError, "seeds must be at least one"),
        ((1, 1), ValueError, r"different from each other, got \(1, 1\)"),
        ((1, -1), ValueError, "each of seeds must be at least 0, got -1"),
        ((1, 0.5), TypeError, "each of seeds must be an integer"),
    ],
)
def test_bad_seeds_of_runs(seeds, error, message):
    with pytest.raises(error, match=message):
        tasks.load("iris-logreg").run_seeds(seeds)
    with pytest.raises(error, match=message):
        tasks.load("iris-logreg").conventional_game(seeds=seeds)
