"""What every embedded task promises: it learns by each of its recipes, and its data are what the catalogue says."""

import dataclasses

import numpy as np
import pytest
import torch

import tasks
from baselines import exact_shapley

NAMES = tasks.names(large=False)
RECIPES = pytest.mark.parametrize("recipe", ["sgd", "momentum", "adamw"])
EACH = pytest.mark.parametrize("name", NAMES)


def trained(task):
    """Return the untrained and the trained model, and the loss over the training set after every epoch."""
    model = task.model()
    optimizer = task.optimizer(model)
    batches = task.batches()
    losses = []
    for step, index in enumerate(batches, 1):
        task.train_on(model, optimizer, index)
        if step % (len(batches) // task.recipe.epochs) == 0:
            losses.append(task.loss(model, task.train).item())
    return task.model(), model, losses


@RECIPES
@EACH
def test_training_is_stable_and_learns(name, recipe):
    task = tasks.load(name, recipe=recipe)
    start, end, losses = trained(task)
    assert (np.diff(losses) < 0).all()
    with torch.no_grad():
        assert task.loss(end, task.validation) < 0.75 * task.loss(start, task.validation)
        if "accuracy" in task.objective.utilities:
            before, after = (task.objective.utilities["accuracy"](m(task.test.x), task.test.y) for m in (start, end))
            assert after > max(0.6, before + 0.2)


@EACH
def test_a_model_takes_the_datas_shape_and_says_one_thing_a_class_or_one_number(name):
    task = tasks.load(name)
    output = task.model()(task.train.x[:7])
    assert output.shape == (7, 1 if task.n_classes is None else task.n_classes)
    assert task.train.y.dtype == (torch.float32 if task.n_classes is None else torch.int64)
    assert len({split.x.shape[1:] for split in (task.train, task.validation, task.test)}) == 1


@EACH
def test_every_class_is_there_to_learn_and_to_judge(name):
    task = tasks.load(name, flipped=0.0)
    for split in (task.train, task.validation, task.test):
        if task.n_classes is None:
            assert len(split.y.unique()) > 0.5 * len(split)
        else:
            assert split.y.unique().tolist() == list(range(task.n_classes))


@EACH
def test_a_task_fits_its_dataset_with_samples_to_spare_for_more_players(name):
    assert tasks.load(name, n_train=40).n_train == 40


def test_a_mean_predictor_is_beaten_in_regression():
    """Targets have unit variance on the training set: a loss below it is a share of variance explained."""
    task = tasks.load("diabetes-ridge", flipped=0.0)
    _, model, _ = trained(task)
    with torch.no_grad():
        assert task.loss(model, task.test) < 0.65 * task.test.y.square().mean()


def test_images_are_those_of_the_flat_task():
    images, flat = tasks.load("mnist-cnn", 1), tasks.load("mnist-mlp", 1)
    assert images.train.x.shape == (200, 1, 28, 28)
    torch.testing.assert_close(images.train.x.flatten(1), flat.train.x)
    assert torch.equal(images.train.y, flat.train.y)


def test_the_large_learning_rate_is_all_that_is_new():
    large, usual = tasks.load("digits-sgd-large-lr", 1), tasks.load("digits-mlp", 1)
    assert torch.equal(large.train.x, usual.train.x)
    assert all(map(torch.equal, large.model().parameters(), usual.model().parameters()))
    assert all(map(torch.equal, large.batches(), usual.batches()))
    assert large.recipe.learning_rate == 5 * usual.recipe.learning_rate


@pytest.mark.parametrize("name", tasks.names(large=False))
def test_momentum_is_plain_sgd_with_a_tenth_of_its_rate(name):
    plain, heavy = (tasks.CATALOG[name].recipes[recipe] for recipe in ("sgd", "momentum"))
    assert heavy.learning_rate == pytest.approx(plain.learning_rate / 10)
    assert dataclasses.replace(heavy, learning_rate=plain.learning_rate, momentum=0.0) == plain
    assert heavy.momentum == 0.9


def test_iris_is_small_enough_to_enumerate():
    task = tasks.load("iris-logreg", n_train=8)
    game = task.trajectory_game()
    empty, full = game(np.repeat([[False], [True]], 8, axis=1))
    assert exact_shapley(game).values.sum() == pytest.approx(full - empty, rel=1e-5)
    assert tasks.load("iris-logreg").n_train == 16
