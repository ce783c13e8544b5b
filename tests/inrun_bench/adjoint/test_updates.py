"""Functional updates against ``torch.optim``, and their derivatives against finite differences."""

import pytest
import torch

from inrun_bench.adjoint.updates import first_state, updated
from tasks import Recipe

RECIPES = {
    "sgd": Recipe("sgd", 0.1, 1, 1),
    "decay": Recipe("sgd", 0.1, 1, 1, weight_decay=0.3),
    "momentum": Recipe("sgd", 0.1, 1, 1, momentum=0.9),
    "momentum and decay": Recipe("sgd", 0.1, 1, 1, weight_decay=0.3, momentum=0.7),
    "nesterov": Recipe("sgd", 0.1, 1, 1, weight_decay=0.3, momentum=0.7, nesterov=True, schedule="cosine", warmup=0.3),
    "adam": Recipe("adam", 0.1, 1, 1, schedule="linear"),
    "adam and decay": Recipe("adam", 0.1, 1, 1, weight_decay=0.3, warmup=0.5),
    "adamw": Recipe("adamw", 0.1, 1, 1),
    "adamw and decay": Recipe("adamw", 0.1, 1, 1, weight_decay=0.3, schedule="cosine"),
}
N_STEPS = 6


def random_rows(count, seed=0):
    return torch.randn(count, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_weights_are_those_of_torch_optim(recipe):
    weights, *gradients = random_rows(7)
    weights[0] = gradients[0][1] = 0.0
    parameter = weights.clone()
    optimizer = recipe.build_optimizer([parameter])
    state = first_state(recipe, weights)
    for step, gradient in enumerate(gradients):
        parameter.grad = gradient.clone()
        optimizer.param_groups[0]["lr"] = recipe.rate(step, N_STEPS)
        optimizer.step()
        state = updated(recipe, step, N_STEPS, state, gradient)
        torch.testing.assert_close(state[0], parameter, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("step", [0, 3])
def test_derivatives_are_those_of_finite_differences(recipe, step):
    gradient, *state = random_rows(1 + len(first_state(recipe, torch.zeros(1))), seed=step)
    if recipe.optimizer in ("adam", "adamw"):
        state[2] = state[2].abs()  # the mean of squares
    inputs = [row.clone().requires_grad_() for row in (gradient, *state)]
    assert torch.autograd.gradcheck(lambda g, *rows: updated(recipe, step, N_STEPS, rows, g), inputs)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_adam_has_its_derivative_where_no_gradient_came_yet(optimizer):
    recipe = Recipe(optimizer, 0.1, 1, 1)
    gradient = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    moved, *_ = updated(recipe, 0, N_STEPS, first_state(recipe, torch.ones(1, dtype=torch.float64)), gradient)
    (slope,) = torch.autograd.grad(moved, gradient)
    # the first step is -lr g / (|g| + eps), whose derivative at zero is -lr / eps
    eps = recipe.build_optimizer([torch.zeros(1)]).defaults["eps"]
    torch.testing.assert_close(slope.item(), -recipe.learning_rate / eps)
