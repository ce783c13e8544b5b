"""The estimate of what a stack takes, against what torch allocates."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import tasks
from inrun_bench.runs.peak_memory import peak_bytes
from tasks.architectures import cnn
from tasks.objective import CLASSIFICATION
from tasks.recipe import Recipe
from tasks.stacks import footprint, program_of, sizing, stack_of
from tasks.stacks.sizing import Footprint, optimizer_copies, stack_size

CPU = torch.device("cpu")


def convolutions():
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, 2), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 8, 3, 2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32, 10)),
    )


ARCHITECTURES = {
    "perceptron": lambda: nn.Sequential(nn.Flatten(), nn.Linear(144, 32), nn.ReLU(), nn.Linear(32, 10)),
    "logistic": lambda: nn.Sequential(nn.Flatten(), nn.Linear(144, 10)),
    "convolutions": convolutions,
    "residual": lambda: cnn(1, 8, 10),
}
RECIPES = {
    "sgd": Recipe("sgd", 0.01, 8, 1),
    "momentum": Recipe("sgd", 0.01, 8, 1, momentum=0.9, weight_decay=0.1),
    "adamw": Recipe("adamw", 0.01, 8, 1),
}


def task_of(architecture, recipe, n_validation=60):
    task = tasks.load("digits-mlp", seed=0, n_train=16)
    parts = {}
    for part, n in (("train", 16), ("validation", n_validation), ("test", 10)):
        x = torch.randn(n, 1, 12, 12, generator=torch.Generator().manual_seed(n))
        parts[part] = tasks.Split(x, getattr(task, part).y[:n])
    return dataclasses.replace(task, architecture=ARCHITECTURES[architecture], recipe=RECIPES[recipe], **parts)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_peak_stays_below_the_bound_and_uses_a_good_part_of_it(architecture, recipe, monkeypatch):
    monkeypatch.setattr(sizing, "LARGEST_TENSOR", 2**40)
    bound = 8 * 2**20
    game = task_of(architecture, recipe).trajectory_game()
    game.memory_bytes = bound
    peak = peak_bytes(lambda: game(np.ones((64, 16), bool)))
    assert bound / 10 < peak <= bound


def test_a_bound_below_one_model_is_refused_and_one_model_fits_into_what_is_asked_for():
    game = task_of("perceptron", "sgd").trajectory_game()
    game.memory_bytes = 1000
    with pytest.raises(ValueError, match=r"memory_bytes must be at least (\d+), .*, got 1000") as error:
        game(np.ones((2, 16), bool))
    game.memory_bytes = int(str(error.value).split("at least ")[1].split(",")[0])
    assert peak_bytes(lambda: game(np.ones((3, 16), bool))) <= game.memory_bytes


def test_sizes_follow_from_the_bound_the_caches_and_what_is_free(monkeypatch):
    each = Footprint(total=1000, largest=100)
    assert stack_size(each, CPU, 5999) == 5
    assert stack_size(each, CPU, 10**9) == sizing.MODELS_AT_A_TIME
    assert stack_size(Footprint(1000, sizing.LARGEST_TENSOR // 3), CPU, 10**9) == 3
    assert stack_size(Footprint(1000, 2 * sizing.LARGEST_TENSOR), CPU, 10**9) == 1
    monkeypatch.setattr(sizing, "free_bytes", lambda device: 6000)
    assert stack_size(each, CPU) == 3
    assert stack_size(Footprint(10**6, 100), CPU) == 1


def test_only_caches_limit_a_processor():
    assert stack_size(Footprint(1000, 100), torch.device("meta"), 10**9) == 10**6


def test_samples_which_all_models_see_are_not_counted_and_outputs_of_judges_are():
    model, batch = nn.Linear(1000, 2), torch.randn(64, 1000)
    program = program_of(model, CLASSIFICATION, batch[:1])
    few, many = (footprint(program, stack_of(model, 1), batch, copies=4, n_judged=n).total for n in (64, 10064))
    assert few < batch.nbytes
    assert many - few >= 10_000 * 2 * batch.element_size()


def test_optimizers_hold_their_state():
    sgd, momentum, adamw = (optimizer_copies(RECIPES[name].build_optimizer) for name in RECIPES)
    assert (momentum - sgd, adamw - sgd) == (1, 2)
