"""Rankings by one trained model: each equals a plain loop over the samples, whatever the task."""

import dataclasses

import numpy as np
import pytest
import torch

import tasks
from inrun_bench.methods import METHODS

SEED = np.random.SeedSequence(0)


def trained(task):
    model = task.model()
    optimizer = task.optimizer(model)
    for index in task.batches():
        task.train_on(model, optimizer, index)
    return model


@pytest.mark.parametrize("name", ["digits-mlp", "diabetes-ridge", "mnist-cnn"])
def test_rankings_equal_a_loop_over_the_samples(name):
    task = tasks.load(name, n_train=60, dtype=torch.float64)
    model = trained(task)
    losses, norms = [], []
    for sample in range(task.n_train):
        model.zero_grad()
        loss = task.loss(model, task.train, torch.tensor([sample]))
        loss.backward()
        losses.append(-float(loss.detach()))
        norms.append(float(torch.cat([p.grad.flatten() for p in model.parameters()]).norm()))
    np.testing.assert_allclose(METHODS["loss"](task, SEED).values, losses, rtol=1e-9)
    np.testing.assert_allclose(METHODS["gradient-norm"](task, SEED).values, norms, rtol=1e-9)


def test_rankings_do_not_look_at_validation_samples():
    task = tasks.load("iris-logreg")
    others = tasks.Split(task.validation.x + 1, task.validation.y)
    blind = dataclasses.replace(task, validation=others)
    for name in ("loss", "gradient-norm"):
        np.testing.assert_array_equal(METHODS[name](task, SEED).values, METHODS[name](blind, SEED).values)


def test_a_small_loss_tells_right_labels_from_wrong_ones():
    task = tasks.load("digits-mlp")
    wrong = np.isin(np.arange(task.n_train), task.flipped)
    losses, norms = (METHODS[name](task, SEED).values for name in ("loss", "gradient-norm"))
    assert losses[wrong].mean() < losses[~wrong].mean()
    assert norms[wrong].mean() > norms[~wrong].mean()  # it takes them for important
