"""Step games against optimiser steps taken one coalition at a time."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

import tasks


def started(name, recipe, steps):
    """Return a task with a model and optimiser that have taken a few steps, and the next batch."""
    task = tasks.load(name, seed=2, n_train=40, recipe=recipe, dtype=torch.float64)
    task = dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, batch_size=6, weight_decay=0.1))
    model = task.model()
    optimizer = task.optimizer(model)
    batches = task.batches()
    for index in batches[:steps]:
        task.train_on(model, optimizer, index)
    return task, model, optimizer, batches[steps]


def loss_after(task, model, optimizer, index, coalition):
    """Step a copy of the model with the gradient of the coalition's loss terms; return the validation loss."""
    model = copy.deepcopy(model)
    state = copy.deepcopy(optimizer.state_dict())
    optimizer = task.optimizer(model)
    optimizer.load_state_dict(state)
    losses = task.objective.losses(model(task.train.x[index]), task.train.y[index])
    ((losses * torch.from_numpy(coalition)).sum() / len(index)).backward()
    optimizer.step()
    return float(task.loss(model, task.validation).detach())


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("recipe", ["sgd", "adamw"])
@pytest.mark.parametrize("name", tasks.names())
def test_utilities_equal_steps_taken_one_at_a_time(name, recipe, steps):
    task, model, optimizer, index = started(name, recipe, steps)
    weights = copy.deepcopy(model.state_dict())
    coalitions = np.random.default_rng(0).random((8, 6)) < 0.5
    coalitions[:2] = [[False], [True]]
    losses = np.array([loss_after(task, model, optimizer, index, coalition) for coalition in coalitions])
    game = tasks.StepGame(task, model, optimizer, index)
    assert game.n_players == 6
    np.testing.assert_allclose(game(coalitions), losses[0] - losses, rtol=1e-9, atol=1e-13)
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())


def test_the_game_keeps_the_step_it_was_made_for():
    """Training on does not change a game that was made before."""
    task, model, optimizer, index = started("digits-mlp", "adamw", 2)
    game = tasks.StepGame(task, model, optimizer, index)
    everyone = np.ones((1, 6), dtype=bool)
    before = game(everyone)
    task.train_on(model, optimizer, index)
    np.testing.assert_array_equal(game(everyone), before)
