import numpy as np
import pytest
import torch

import tasks
from tasks.data import flip_labels, partition, standardise
from tasks.task import TaskSpec

NAMES = tasks.names()


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
def test_a_tenth_of_the_training_labels_is_flipped_and_recorded(name):
    noisy, clean = tasks.load(name), tasks.load(name, flipped=0.0)
    changed = np.flatnonzero((noisy.train.y != clean.train.y).numpy())
    np.testing.assert_array_equal(noisy.flipped, changed)
    assert len(changed) == round(0.1 * noisy.n_train)
    assert len(clean.flipped) == 0
    assert torch.equal(noisy.train.x, clean.train.x)
    assert same(noisy.validation, clean.validation)
    assert same(noisy.test, clean.test)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("recipe", ["sgd", "adamw"])
def test_training_is_stable_and_learns(name, recipe):
    task = tasks.load(name, recipe=recipe)
    empty, full = task.trajectory_game("accuracy", "test")(np.repeat([[False], [True]], task.n_train, axis=1))
    assert full > max(0.6, empty + 0.2)
    losses = -task.trajectory_game("loss")(np.repeat([[False], [True]], task.n_train, axis=1))
    assert losses[1] < 0.75 * losses[0]


def test_every_sample_once_an_epoch():
    task = tasks.load("digits-mlp", n_train=50)
    batches = task.batches()
    assert [len(batch) for batch in batches] == [20, 20, 10] * task.recipe.epochs
    for epoch in range(task.recipe.epochs):
        assert sorted(torch.cat(batches[3 * epoch : 3 * epoch + 3]).tolist()) == list(range(50))


def test_dtype_rounds_the_same_task():
    single, double = tasks.load("mnist-mlp"), tasks.load("mnist-mlp", dtype=torch.float64)
    assert single.train.x.dtype == torch.float32
    assert torch.equal(single.train.x, double.train.x.float())
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
        ({"flipped": 1.5}, r"fraction of flipped labels must lie in \[0, 1\], got 1.5"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"recipe": "sdg"}, "unknown recipe 'sdg'; did you mean 'sgd'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        tasks.load("digits-mlp", **options)


def test_labels_outside_the_classes():
    spec = TaskSpec(
        dataset=lambda: (np.zeros((30, 2)), np.repeat([0, 1, 7], 10)),
        architecture=lambda: torch.nn.Linear(2, 3),
        recipes={"sgd": tasks.Recipe("sgd", 0.1, 5, 1)},
        n_classes=3,
        n_train=10,
        n_validation=10,
        n_test=10,
        scaling="feature",
        summary="",
    )
    with pytest.raises(ValueError, match=r"labels of the train set of task 'x' lie in 0 .. 7.*n_classes = 3.*0 .. 2"):
        spec.build("x", seed=0, recipe="sgd", n_train=None, flipped=0.0, dtype=torch.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "lion"}, "optimizer must be 'sgd' or 'adamw', got 'lion'"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a positive number"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"epochs": -1}, "epochs must be at least 1, got -1"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative, got -0.1"),
    ],
)
def test_bad_recipes(changes, message):
    with pytest.raises(ValueError, match=message):
        tasks.Recipe(**{"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 5, "epochs": 1, **changes})
