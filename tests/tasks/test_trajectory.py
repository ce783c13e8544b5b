"""Trajectory games against a plain training loop, and against the axioms of their definition."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

import tasks
from baselines import exact_shapley
from inrun_bench.attribution import InRunShapley, Integrated

NAMES = tasks.names()


def small(name="digits-mlp", recipe="sgd", **changes):
    task = tasks.load(name, seed=3, n_train=12, recipe=recipe, dtype=torch.float64)
    return dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, batch_size=5, epochs=2, **changes))


def trained_alone(task, coalition):
    """Train one model in a loop, the loss of absent samples multiplied by zero."""
    model = task.model()
    optimizer = task.optimizer(model)
    present = torch.from_numpy(coalition).double()
    for index in task.batches():
        losses = F.cross_entropy(model(task.train.x[index]), task.train.y[index], reduction="none")
        ((losses * present[index]).sum() / len(index)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def random_coalitions(n, m=6, seed=0):
    rng = np.random.default_rng(seed)
    return np.concatenate([np.zeros((1, n), bool), np.ones((1, n), bool), rng.random((m, n)) < rng.random((m, 1))])


@pytest.mark.parametrize("recipe", ["sgd", "adamw"])
@pytest.mark.parametrize("name", NAMES)
def test_utilities_equal_those_of_a_training_loop(name, recipe):
    task = small(name, recipe, weight_decay=0.05)
    coalitions = random_coalitions(12)
    models = [trained_alone(task, coalition) for coalition in coalitions]
    for part in ("validation", "test"):
        split = getattr(task, part)
        losses = [float(task.loss(model, split).detach()) for model in models]
        right = [float((model(split.x).argmax(1) == split.y).double().mean()) for model in models]
        np.testing.assert_allclose(task.trajectory_game("loss", part)(coalitions), -np.array(losses), rtol=1e-12)
        np.testing.assert_array_equal(task.trajectory_game("accuracy", part)(coalitions), right)


def test_the_empty_coalition_learns_nothing_and_the_full_one_is_the_run_itself():
    task = small()
    empty, full = task.trajectory_game()(random_coalitions(12, m=0))
    model = task.model()
    assert empty == pytest.approx(-float(task.loss(model, task.validation).detach()), rel=1e-14)
    optimizer = task.optimizer(model)
    for index in task.batches():
        task.train_on(model, optimizer, index)
    assert full == pytest.approx(-float(task.loss(model, task.validation).detach()), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_utilities_do_not_depend_on_what_else_is_asked(name, monkeypatch):
    task = tasks.load(name, seed=0, n_train=30)
    coalitions = random_coalitions(30, m=40)
    together = task.trajectory_game()(coalitions)
    monkeypatch.setattr("tasks.trajectory.COALITIONS_AT_A_TIME", 7)
    np.testing.assert_allclose(task.trajectory_game()(coalitions), together, rtol=3e-6)
    np.testing.assert_allclose(task.trajectory_game()(coalitions[5:6]), together[5:6], rtol=3e-6)


def test_several_measures_cost_one_training():
    task = small()
    coalitions = random_coalitions(12)
    measured = tasks.retrain(task, coalitions, [("accuracy", "test"), ("loss", "validation")])
    np.testing.assert_array_equal(measured[:, 0], task.trajectory_game("accuracy", "test")(coalitions))
    np.testing.assert_array_equal(measured[:, 1], task.trajectory_game("loss")(coalitions))


def test_in_run_values_of_a_single_step_are_the_shapley_values_of_retraining():
    """With one step for all samples, step game and trajectory game are the same; the diagonal's error is O(lr^2)."""
    errors = []
    for rate in (0.02, 0.005):
        task = tasks.load("breast-cancer-logreg", seed=1, n_train=10, dtype=torch.float64)
        changes = {"batch_size": 10, "epochs": 1, "learning_rate": rate}
        task = dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, **changes))
        exact = exact_shapley(task.trajectory_game())
        values = in_run_values(task)
        errors.append(np.linalg.norm(values - exact.values) / np.linalg.norm(exact.values))
    assert errors[0] < 1e-3
    assert errors[1] < errors[0] / 10


def in_run_values(task):
    model = task.model()
    optimizer = task.optimizer(model)
    engine = InRunShapley(
        model, optimizer, task.n_train, Integrated(8), validation=lambda: task.loss(model, task.validation)
    )
    (index,) = task.batches()
    with engine.step(index):
        task.train_on(model, optimizer, index)
    return engine.values()


@pytest.mark.parametrize(
    "coalitions", [np.ones((2, 5), bool), np.ones(12, bool), np.ones((2, 12)), np.ones((2, 12), np.int64)]
)
def test_bad_coalitions(coalitions):
    with pytest.raises(ValueError, match=r"coalitions must be a bool array of shape \[m, 12\], got"):
        small().trajectory_game()(coalitions)


def test_bad_utility_and_split():
    with pytest.raises(ValueError, match="utility must be one of 'loss', 'accuracy', got 'f1'"):
        small().trajectory_game("f1")
    with pytest.raises(ValueError, match="split must be one of 'validation', 'test', got 'train'"):
        small().trajectory_game("loss", "train")
