"""Adam's runs are smoothed before they are differentiated: by how much, and what that is good for."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import tasks
from baselines import exact_shapley
from inrun_bench.adjoint import (
    coalition_gradient_shapley,
    control_variate_shapley,
    few_run_shapley,
    unrolled_influence,
)
from inrun_bench.adjoint.smoothing import smoothed


def adam_task(**changes):
    task = tasks.load("iris-logreg", recipe="adamw", n_train=12, dtype=torch.float64)
    return dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, **changes))


def test_eps_is_a_share_of_the_size_of_the_gradients():
    one_step = adam_task(batch_size=12, epochs=1)
    model = one_step.model()
    one_step.loss(model, one_step.train).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    size = float(gradient.norm()) / math.sqrt(len(gradient))
    assert smoothed(one_step, 0.3).recipe.eps == pytest.approx(0.3 * size, rel=1e-12)


def test_the_size_is_the_root_mean_square_over_the_steps_each_with_a_gradient_of_its_own():
    task = adam_task(batch_size=4, epochs=2)
    model = task.model()
    optimizer, parameters, squares = task.optimizer(model), list(model.parameters()), []
    for index in task.batches():
        gradients = torch.autograd.grad(task.loss(model, task.train, index), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        squares.append(float(torch.cat([g.flatten() for g in gradients]).square().mean()))
        optimizer.step()
    assert smoothed(task, 0.3).recipe.eps == pytest.approx(0.3 * math.sqrt(np.mean(squares)), rel=1e-12)


def test_gradients_are_measured_as_they_are_received():
    clipped = adam_task(clip_norm=0.01)
    numbers = sum(p.numel() for p in clipped.model().parameters())
    assert smoothed(clipped, 1.0).recipe.eps == pytest.approx(0.01 / math.sqrt(numbers), rel=1e-3)


def test_what_is_smooth_stays_as_it_is():
    sgd, adam = tasks.load("iris-logreg"), adam_task()
    assert smoothed(sgd, 0.3) is sgd
    assert smoothed(adam, 0.0) is adam
    assert smoothed(adam_task(eps=7.0), 0.3).recipe.eps == 7.0


@pytest.mark.parametrize("smoothing", [-0.1, math.nan, math.inf])
def test_a_smoothing_that_is_none_is_refused(smoothing):
    with pytest.raises(ValueError, match="smoothing must be a number of at least 0, got"):
        few_run_shapley(adam_task(), smoothing=smoothing)


def test_it_brings_values_nearer_to_enumeration():
    task = adam_task()
    truth = exact_shapley(task.trajectory_game()).values

    def agreement(valuation):
        return np.corrcoef(valuation.values, truth)[0, 1]

    for estimate in (
        lambda **options: few_run_shapley(task, 8, **options),
        lambda **options: coalition_gradient_shapley(task, 64, rng=0, **options),
    ):
        assert agreement(estimate()) > agreement(estimate(smoothing=0.0))
    assert agreement(few_run_shapley(task, 8)) > 0.9


def test_the_values_add_up_to_what_the_smoothed_run_gains():
    task = adam_task()
    found = few_run_shapley(task, 32)
    alone = few_run_shapley(smoothed(task, 0.3), 32, smoothing=0.0)
    np.testing.assert_allclose(found.values, alone.values, rtol=1e-12)
    assert alone.parameters["sum"] == pytest.approx(alone.parameters["gain"], rel=0.01)
    assert abs(few_run_shapley(task, 32, smoothing=0.0).parameters["sum"]) < 0.1 * found.parameters["gain"]
    assert found.parameters["gain"] != alone.parameters["gain"]  # that of the recipe itself


def test_the_control_variate_judges_the_recipe_itself():
    task = adam_task()
    truth = exact_shapley(task.trajectory_game())
    found = control_variate_shapley(task, budget=4000, rng=0)
    assert np.abs((found.values - truth.values) / found.stderr).max() < 4


def test_the_influence_on_a_run_is_that_of_the_run_itself():
    task = adam_task()
    assert not np.allclose(unrolled_influence(task).values, unrolled_influence(smoothed(task, 0.3)).values, rtol=0.01)
