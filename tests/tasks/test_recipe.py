"""Recipes against the formulas of their optimisers, and the order of their batches."""

import numpy as np
import pytest
import torch

from tasks import Recipe


def stepped(recipe, start, gradients):
    """Weights after the steps of the recipe's optimiser that see these gradients."""
    weight = start.clone()
    optimizer = recipe.build_optimizer([weight])
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight


@pytest.fixture
def start():
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def gradients():
    return torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_carries_the_share_of_its_velocity_that_momentum_says(start, gradients, momentum):
    recipe = Recipe("sgd", learning_rate=0.1, batch_size=5, epochs=1, weight_decay=0.2, momentum=momentum)
    weight, velocity = start.clone(), torch.zeros_like(start)
    for gradient in gradients:
        velocity = momentum * velocity + gradient + 0.2 * weight
        weight = weight - 0.1 * velocity
    torch.testing.assert_close(stepped(recipe, start, gradients), weight)


def test_weight_decay_of_adamw_is_apart_from_the_gradient(start, gradients):
    recipe = Recipe("adamw", learning_rate=0.1, batch_size=5, epochs=1, weight_decay=0.2)
    torch.testing.assert_close(stepped(recipe, start, 0 * gradients), start * (1 - 0.1 * 0.2) ** 6)


@pytest.mark.parametrize("settings", [{"optimizer": "sgd", "momentum": 0.5}, {"optimizer": "adamw"}])
def test_one_optimiser_over_a_stack_is_that_of_every_model_in_it(start, gradients, settings):
    recipe = Recipe(learning_rate=0.1, batch_size=5, epochs=1, weight_decay=0.2, **settings)
    starts, seen = torch.stack([start, -start]), torch.stack([gradients, 3 * gradients.flip(0)], dim=1)
    alone = [stepped(recipe, starts[m], seen[:, m]) for m in range(2)]
    torch.testing.assert_close(stepped(recipe, starts, seen), torch.stack(alone), rtol=0, atol=0)


@pytest.mark.parametrize(("n", "sizes"), [(50, [20, 20, 10]), (40, [20, 20]), (7, [7])])
def test_every_sample_once_an_epoch_in_an_order_of_its_own(n, sizes):
    batches = Recipe("sgd", 0.1, batch_size=20, epochs=3).batches(n, np.random.SeedSequence(0))
    assert [len(batch) for batch in batches] == 3 * sizes
    epochs = torch.cat(batches).view(3, n)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(n))
    assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "lion"}, "optimizer must be 'sgd' or 'adamw', got 'lion'"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a positive number"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"epochs": -1}, "epochs must be at least 1, got -1"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative, got -0.1"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"momentum": -0.5}, r"momentum must lie in \[0, 1\), got -0.5"),
        ({"momentum": float("nan")}, r"momentum must lie in \[0, 1\), got nan"),
        ({"optimizer": "adamw", "momentum": 0.9}, "momentum is for optimizer 'sgd' alone, got 0.9 with 'adamw'"),
    ],
)
def test_bad_recipes(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**{"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 5, "epochs": 1, **changes})
