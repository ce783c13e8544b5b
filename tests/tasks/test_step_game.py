"""Step games against optimiser steps taken one coalition at a time."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

import tasks
from baselines import exact_shapley
from inrun_bench.attribution import InRunShapley

CLIPPED = {"schedule": "cosine", "warmup": 0.3, "clip_norm": 0.2}


def started(name, recipe, steps, **changes):
    """Return a task with a model and optimiser that have taken a few steps, and the next batch."""
    task = tasks.load(name, seed=2, n_train=40, recipe=recipe, dtype=torch.float64)
    task = dataclasses.replace(
        task, recipe=dataclasses.replace(task.recipe, batch_size=6, **{"weight_decay": 0.1} | changes)
    )
    model = task.model()
    optimizer = task.optimizer(model)
    batches = task.batches()
    for index in batches[:steps]:
        task.train_on(model, optimizer, index)
    return task, model, optimizer, batches[steps]


def loss_after(task, model, optimizer, index, coalition):
    """Step a copy of the model with the coalition's part of what the optimiser receives; return the validation loss."""
    model = copy.deepcopy(model)
    state = copy.deepcopy(optimizer.state_dict())
    optimizer = task.recipe.build_optimizer(model.parameters())
    optimizer.load_state_dict(state)
    factor = 1.0
    if task.recipe.clip_norm is not None:
        gradient = torch.autograd.grad(task.loss(model, task.train, index), list(model.parameters()))
        norm = torch.cat([part.flatten() for part in gradient]).norm()
        factor = min(1.0, task.recipe.clip_norm / (norm + 1e-6))
    losses = task.objective.losses(model(task.train.x[index]), task.train.y[index])
    (factor * (losses * torch.from_numpy(coalition)).sum() / len(index)).backward()
    optimizer.step()
    return float(task.loss(model, task.validation).detach())


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("changes", [{}, CLIPPED], ids=["as it is", "clipped and scheduled"])
@pytest.mark.parametrize("recipe", ["sgd", "momentum", "adamw"])
@pytest.mark.parametrize("name", tasks.names(large=False))
def test_utilities_equal_steps_taken_one_at_a_time(name, recipe, changes, steps):
    task, model, optimizer, index = started(name, recipe, steps, **changes)
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


@pytest.mark.parametrize("changes", [CLIPPED, {"clip_norm": 1e9}], ids=["clipped", "never clipped"])
@pytest.mark.parametrize("optimizer", [{}, {"momentum": 0.9, "nesterov": True}, {"optimizer": "adam"}])
def test_in_run_scores_are_the_values_of_the_step_that_is_taken(optimizer, changes):
    """The engine sees gradients that were clipped, and the rate of the step."""
    task, model, optimizer, index = started("digits-mlp", "sgd", 7, learning_rate=0.01, **optimizer, **changes)
    expected = exact_shapley(tasks.StepGame(task, model, optimizer, index)).values
    before = float(task.loss(model, task.validation).detach())
    engine = InRunShapley(
        model, optimizer, task.n_train, "integrated", validation=lambda: task.loss(model, task.validation)
    )
    with engine.step(index):
        task.train_on(model, optimizer, index)
    (step,) = engine.ledger.steps
    assert np.linalg.norm(step.scores - expected) < 0.03 * np.linalg.norm(expected)
    assert step.drop == pytest.approx(before - float(task.loss(model, task.validation).detach()), rel=1e-9)
    assert step.scores.sum() + step.optimizer == pytest.approx(step.drop, rel=1e-3)


def test_frozen_weights_stay_where_they_are():
    task, model, optimizer, index = started("digits-mlp", "sgd", 2)
    model[0].requires_grad_(requires_grad=False)
    model[0].zero_grad(set_to_none=True)
    game = tasks.StepGame(task, model, optimizer, index)
    coalitions = np.stack([np.zeros(6, bool), np.ones(6, bool)])
    losses = [loss_after(task, model, optimizer, index, coalition) for coalition in coalitions]
    np.testing.assert_allclose(game(coalitions)[1], losses[0] - losses[1], rtol=1e-9)
