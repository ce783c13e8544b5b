"""Recipes against the formulas of their optimisers, torch's own schedules and clipping, and the order of batches."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

import tasks
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


def test_nesterov_looks_ahead_along_the_velocity(start, gradients):
    recipe = Recipe("sgd", learning_rate=0.1, batch_size=5, epochs=1, weight_decay=0.2, momentum=0.7, nesterov=True)
    weight, velocity = start.clone(), torch.zeros_like(start)
    for gradient in gradients:
        decayed = gradient + 0.2 * weight
        velocity = 0.7 * velocity + decayed
        weight = weight - 0.1 * (decayed + 0.7 * velocity)
    torch.testing.assert_close(stepped(recipe, start, gradients), weight)


def test_weight_decay_of_adam_is_part_of_the_gradient_so_that_its_size_does_not_matter(start):
    without_gradients = torch.zeros(1, 3, 4, dtype=torch.float64)
    recipe = Recipe("adam", learning_rate=0.1, batch_size=5, epochs=1, weight_decay=0.2)
    torch.testing.assert_close(stepped(recipe, start, without_gradients), start - 0.1 * start.sign(), atol=1e-6, rtol=0)


def test_weight_decay_of_adamw_is_apart_from_the_gradient(start, gradients):
    recipe = Recipe("adamw", learning_rate=0.1, batch_size=5, epochs=1, weight_decay=0.2)
    torch.testing.assert_close(stepped(recipe, start, 0 * gradients), start * (1 - 0.1 * 0.2) ** 6)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd", "momentum": 0.5},
        {"optimizer": "sgd", "momentum": 0.5, "nesterov": True},
        {"optimizer": "adam"},
        {"optimizer": "adamw"},
    ],
)
def test_one_optimiser_over_a_stack_is_that_of_every_model_in_it(start, gradients, settings):
    recipe = Recipe(learning_rate=0.1, batch_size=5, epochs=1, weight_decay=0.2, **settings)
    starts, seen = torch.stack([start, -start]), torch.stack([gradients, 3 * gradients.flip(0)], dim=1)
    alone = [stepped(recipe, starts[m], seen[:, m]) for m in range(2)]
    torch.testing.assert_close(stepped(recipe, starts, seen), torch.stack(alone), rtol=0, atol=0)


def torch_schedule(recipe, optimizer, n_steps):
    """Return the schedule as torch has it."""
    warmup = round(recipe.warmup * n_steps)
    rest = n_steps - warmup
    then = {
        "constant": lambda: lr_scheduler.ConstantLR(optimizer, factor=1.0),
        "linear": lambda: lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=rest),
        "cosine": lambda: lr_scheduler.CosineAnnealingLR(optimizer, T_max=rest),
    }[recipe.schedule]
    if not warmup:
        return then()
    growth = lr_scheduler.LinearLR(optimizer, start_factor=1 / warmup, end_factor=1.0, total_iters=warmup - 1)
    return lr_scheduler.SequentialLR(optimizer, [growth, then()], milestones=[warmup])


SCHEDULES = [(schedule, warmup) for schedule in ("constant", "linear", "cosine") for warmup in (0.0, 0.3)]


@pytest.mark.parametrize(("schedule", "warmup"), SCHEDULES)
def test_rates_are_those_of_the_schedules_of_torch(schedule, warmup):
    recipe = Recipe("sgd", 0.2, batch_size=5, epochs=1, schedule=schedule, warmup=warmup)
    optimizer = recipe.build_optimizer([torch.zeros(1)])
    theirs, n_steps = torch_schedule(recipe, optimizer, 17), 17
    for step in range(n_steps):
        assert recipe.rate(step, n_steps) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("n_steps", [1, 2, 7, 100])
@pytest.mark.parametrize(("schedule", "warmup"), [*SCHEDULES, ("cosine", 0.99)])
def test_the_rate_grows_to_the_full_one_and_then_never_grows(schedule, warmup, n_steps):
    recipe = Recipe("sgd", 0.2, batch_size=5, epochs=1, schedule=schedule, warmup=warmup)
    rates = [recipe.rate(step, n_steps) for step in range(n_steps)]
    assert max(rates) == 0.2
    top = rates.index(0.2)
    assert all(np.diff(rates[: top + 1]) > 0)
    assert all(np.diff(rates[top:]) <= 0)
    assert min(rates) > 0
    assert recipe.rate(n_steps, n_steps) == recipe.rate(2 * n_steps, n_steps) == (0.2 if schedule == "constant" else 0)


EVERYTHING = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "nesterov": True,
    "schedule": "cosine",
    "warmup": 0.2,
    "clip_norm": 0.5,
    "epochs": 2,
}


def of_task(**changes):
    task = tasks.load("digits-mlp", n_train=60, dtype=torch.float64)
    return dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        EVERYTHING,
        {"optimizer": "adam", "schedule": "linear"},
        {"optimizer": "adamw", "warmup": 0.5},
        {"clip_norm": 0.3},
    ],
)
def test_a_loop_with_the_tasks_optimiser_is_the_loop_that_one_would_write_with_torch(changes):
    task = of_task(**changes)
    ours, theirs = task.model(), task.model()
    optimizer = task.optimizer(ours)
    plain = task.recipe.build_optimizer(theirs.parameters())
    schedule = torch_schedule(task.recipe, plain, len(task.batches()))
    clips = 0
    for index in task.batches():
        task.train_on(ours, optimizer, index)
        task.loss(theirs, task.train, index).backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), task.recipe.clip_norm or np.inf)
        clips += bool(task.recipe.clip_norm and norm > task.recipe.clip_norm)
        plain.step()
        schedule.step()
        plain.zero_grad()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    assert (clips > 0) == (task.recipe.clip_norm is not None)


def test_a_run_goes_on_from_the_state_of_its_optimiser():
    task = of_task(**EVERYTHING)
    whole = task.model()
    optimizer = task.optimizer(whole)
    for step, index in enumerate(task.batches()):
        if step == 3:
            resumed, state = copy.deepcopy(whole), copy.deepcopy(optimizer.state_dict())
        task.train_on(whole, optimizer, index)
    optimizer = task.optimizer(resumed)
    optimizer.load_state_dict(state)
    for index in task.batches()[3:]:
        task.train_on(resumed, optimizer, index)
    assert all(map(torch.equal, resumed.parameters(), whole.parameters()))


def test_settings_that_came_later_are_named_only_where_they_are_in_use():
    """Stored references are keyed by what a recipe prints."""
    first = "optimizer='sgd', learning_rate=0.1, batch_size=20, epochs=5, weight_decay=0.0, momentum="
    assert repr(Recipe("sgd", 0.1, 20, 5)) == f"Recipe({first}0.0)"
    assert repr(Recipe("sgd", 0.1, 20, 5, nesterov=False, schedule="constant", clip_norm=None)) == f"Recipe({first}0.0)"
    later = "nesterov=True, schedule='cosine', warmup=0.2, clip_norm=0.5"
    assert repr(Recipe(**{"learning_rate": 0.1, "batch_size": 20, **EVERYTHING, "epochs": 5})) == (
        f"Recipe({first}0.9, {later})"
    )


@pytest.mark.parametrize("changes", [{}, EVERYTHING])
def test_what_a_recipe_prints_makes_it_again(changes):
    recipe = Recipe(**{"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 20, "epochs": 5, **changes})
    assert eval(repr(recipe)) == recipe  # noqa: S307 - its own text


@pytest.mark.parametrize(("n", "sizes"), [(50, [20, 20, 10]), (40, [20, 20]), (7, [7])])
def test_every_sample_once_an_epoch_in_an_order_of_its_own(n, sizes):
    batches = Recipe("sgd", 0.1, batch_size=20, epochs=3).batches(n, np.random.SeedSequence(0))
    assert [len(batch) for batch in batches] == 3 * sizes
    assert Recipe("sgd", 0.1, batch_size=20, epochs=3).n_steps(n) == len(batches)
    epochs = torch.cat(batches).view(3, n)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(n))
    assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "lion"}, "optimizer must be one of 'sgd', 'adam', 'adamw', got 'lion'"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a positive number"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"epochs": -1}, "epochs must be at least 1, got -1"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative, got -0.1"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"momentum": -0.5}, r"momentum must lie in \[0, 1\), got -0.5"),
        ({"momentum": float("nan")}, r"momentum must lie in \[0, 1\), got nan"),
        ({"optimizer": "adamw", "momentum": 0.9}, "momentum is for optimizer 'sgd' alone, got 0.9 with 'adamw'"),
        ({"nesterov": True}, "nesterov is for optimizer 'sgd' with momentum above 0, got 'sgd' with 0.0"),
        ({"optimizer": "adam", "nesterov": True}, "nesterov is for optimizer 'sgd' .* got 'adam' with 0.0"),
        ({"schedule": "step"}, "schedule must be one of 'constant', 'linear', 'cosine', got 'step'"),
        ({"warmup": 1.0}, r"warmup must lie in \[0, 1\), got 1.0"),
        ({"warmup": -0.1}, r"warmup must lie in \[0, 1\), got -0.1"),
        ({"clip_norm": 0.0}, "clip_norm must be a positive number or None, got 0.0"),
        ({"clip_norm": float("inf")}, "clip_norm must be a positive number or None, got inf"),
    ],
)
def test_bad_recipes(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**{"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 5, "epochs": 1, **changes})
