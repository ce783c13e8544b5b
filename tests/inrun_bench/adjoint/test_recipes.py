"""Runs of every recipe differentiated: against autograd through the whole run, and against finite differences."""

import numpy as np
import pytest
import torch
from torch.func import functional_call

from inrun_bench.adjoint.checkpoints import Storage
from inrun_bench.adjoint.sweep import differentiate, utilities_at
from tests.inrun_bench.adjoint.small import central_differences, small_task, some_weights

RECIPES = {
    "sgd": {"name": "digits-mlp"},
    "decay": {"name": "diabetes-ridge", "weight_decay": 0.3},
    "momentum": {"name": "digits-mlp", "recipe": "momentum"},
    "momentum and decay": {"name": "wine-logreg", "momentum": 0.9, "weight_decay": 0.1},
    "nesterov": {"name": "wine-logreg", "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "adamw": {"name": "iris-logreg", "recipe": "adamw", "weight_decay": 0.1},
    "adam": {"name": "iris-logreg", "optimizer": "adam", "weight_decay": 0.1},
    "linear": {"name": "digits-mlp", "schedule": "linear"},
    "cosine after warmup": {"name": "diabetes-ridge", "schedule": "cosine", "warmup": 0.4, "epochs": 3},
    "always clipped": {"name": "digits-mlp", "clip_norm": 0.05},
    "sometimes clipped": {"name": "diabetes-ridge", "learning_rate": 0.1, "clip_norm": 2.8, "epochs": 3},
    "all of it": {"recipe": "momentum", "nesterov": True, "schedule": "cosine", "warmup": 0.3, "clip_norm": 0.3},
    "adam, clipped": {"name": "iris-logreg", "optimizer": "adam", "schedule": "linear", "clip_norm": 0.2},
    "adamw, clipped": {"name": "iris-logreg", "recipe": "adamw", "warmup": 0.5, "clip_norm": 0.2},
    "cnn": {"name": "mnist-cnn", "n": 3, "batch_size": 2},
    "cnn, clipped": {"name": "mnist-cnn", "n": 3, "batch_size": 2, "clip_norm": 0.5, "schedule": "linear"},
}
EVERY_RECIPE = pytest.mark.parametrize("options", RECIPES.values(), ids=RECIPES)


def unrolled(task, weights):
    """Differentiate one whole run by autograd: one model, all of its weights in one row, textbook formulas."""
    recipe, model, x = task.recipe, task.model(), torch.tensor(weights, requires_grad=True)
    names, parameters = zip(*model.named_parameters(), strict=True)

    def named(row):
        parts = row.split([p.numel() for p in parameters])
        return {name: part.view_as(p) for name, part, p in zip(names, parts, parameters, strict=True)}

    w = torch.cat([p.detach().flatten() for p in parameters]).requires_grad_()
    first, second, norms = torch.zeros_like(w), torch.zeros_like(w), []
    batches = task.batches()
    for t, index in enumerate(batches):
        rate = recipe.rate(t, len(batches))
        losses = task.objective.losses(functional_call(model, named(w), (task.train.x[index],)), task.train.y[index])
        (g,) = torch.autograd.grad((losses * x[index]).sum() / len(index), w, create_graph=True)
        norms.append(g.norm())
        if recipe.clip_norm is not None and norms[-1] + 1e-6 > recipe.clip_norm:
            g = g * recipe.clip_norm / (norms[-1] + 1e-6)
        if recipe.optimizer != "adamw":
            g = g + recipe.weight_decay * w
        if recipe.optimizer == "sgd":
            first = recipe.momentum * first + g
            w = w - rate * (g + recipe.momentum * first if recipe.nesterov else first)
            continue
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        quotient = first / (1 - 0.9 ** (t + 1)) / ((second / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8)
        w = w - rate * (quotient + (recipe.weight_decay * w if recipe.optimizer == "adamw" else 0))
    utility = task.objective.utilities["loss"](
        functional_call(model, named(w), (task.validation.x,)), task.validation.y
    )
    (gradient,) = torch.autograd.grad(utility, x)
    return utility.item(), gradient.numpy(), torch.stack(norms).detach().numpy()


@EVERY_RECIPE
def test_derivatives_are_those_of_autograd_through_the_whole_run(options):
    task = small_task(**options)
    weights = some_weights(2, task.n_train)
    found = differentiate(task, weights)
    for row, utility, gradient in zip(weights, found.utilities, found.gradients, strict=True):
        expected, slopes, _ = unrolled(task, row)
        np.testing.assert_allclose(utility, expected, rtol=1e-12)
        np.testing.assert_allclose(gradient, slopes, rtol=0, atol=1e-10 * np.abs(slopes).max())
        np.testing.assert_allclose(gradient, slopes, rtol=1e-8, atol=1e-12 * np.abs(slopes).max())


@EVERY_RECIPE
def test_derivatives_are_those_of_finite_differences(options):
    task = small_task(**options)
    weights = 0.1 + 0.8 * some_weights(2, task.n_train)
    expected = central_differences(task, weights)
    np.testing.assert_allclose(differentiate(task, weights).gradients, expected, atol=1e-6 * np.abs(expected).max())


def test_the_recipes_that_clip_do_so_in_all_or_some_of_these_steps():
    shares = {}
    for name in ("always clipped", "sometimes clipped"):
        task = small_task(**RECIPES[name])
        shares[name] = np.mean(
            [unrolled(task, row)[2] > task.recipe.clip_norm for row in some_weights(2, task.n_train)]
        )
    assert shares["always clipped"] == 1
    assert 0.2 < shares["sometimes clipped"] < 0.8


@EVERY_RECIPE
def test_coalitions_are_worth_what_the_trajectory_game_says(options):
    task = small_task(**options)
    coalitions = some_weights(5, task.n_train) < 0.5
    coalitions[0], coalitions[1] = False, True
    expected = task.trajectory_game()(coalitions)
    np.testing.assert_allclose(utilities_at(task, coalitions.astype(float)), expected, rtol=1e-10)
    np.testing.assert_allclose(differentiate(task, coalitions.astype(float)).utilities, expected, rtol=1e-10)


@pytest.mark.parametrize("clip_norm", [0.05, 1e6])
def test_runs_without_any_sample_have_derivatives_too(clip_norm):
    """The norm of no gradient is zero, where its derivative could be anything: nothing is clipped there."""
    weights = np.zeros((1, 8))
    found = differentiate(small_task(epochs=1, clip_norm=clip_norm), weights).gradients
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, differentiate(small_task(epochs=1), weights).gradients, rtol=1e-12, atol=1e-16)


def test_recomputed_states_give_the_same_bits():
    task = small_task(**RECIPES["all of it"])
    weights = some_weights(3, task.n_train)
    one, other = (differentiate(task, weights, storage=Storage(way)).gradients for way in ("memory", "recomputed"))
    np.testing.assert_array_equal(one, other)
