"""In-run values of a stack of runs against the engine on each of them."""

import dataclasses

import numpy as np
import pytest
from torch import nn

from inrun_bench.methods import METHODS
from inrun_bench.methods.inrun import inrun
from inrun_bench.methods.stacked_inrun import first_order_values
from inrun_bench.runs.peak_memory import peak_bytes
from tasks.recipe import Recipe
from tests.inrun_bench.adjoint.small import small_task
from tests.tasks.test_trajectory_game import RECIPES, of_images, of_numbers, of_words, small

SEEDS = (4, 9, 10)
SGD = {name: recipe for name, recipe in RECIPES.items() if recipe.optimizer == "sgd"}


def values_of_engine(task, seeds, order="first"):
    return np.stack([inrun(task.rerun(seed), None, order=order).values for seed in seeds])


@pytest.mark.parametrize(
    ("make", "recipe"),
    [*((make, recipe) for make in (small, of_images, of_numbers) for recipe in SGD), (of_words, "clipped")],
)
def test_values_are_those_of_the_engine_run_by_run(make, recipe):
    task = dataclasses.replace(make(), recipe=SGD[recipe])
    expected = values_of_engine(task, SEEDS)
    found = first_order_values([task.rerun(seed) for seed in SEEDS])
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8 * np.abs(expected).max())


def test_neither_memory_nor_what_is_not_trained_matters(monkeypatch):
    def frozen():
        model = nn.Sequential(nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10))
        model[0].requires_grad_(requires_grad=False)
        return model

    task = dataclasses.replace(small(), architecture=frozen)
    runs = [task.rerun(seed) for seed in SEEDS]
    np.testing.assert_allclose(first_order_values(runs), values_of_engine(task, SEEDS), rtol=1e-6)
    task = small()
    runs = [task.rerun(seed) for seed in SEEDS]
    expected = values_of_engine(task, SEEDS)
    monkeypatch.setattr("tasks.stacks.sizing.MODELS_AT_A_TIME", 2)
    np.testing.assert_allclose(first_order_values(runs), expected, rtol=1e-6)


def test_memory_stays_below_the_bound(monkeypatch):
    monkeypatch.setattr("tasks.stacks.sizing.LARGEST_TENSOR", 2**40)
    for make in (small, of_images):
        task, bound = make(), 8 * 2**20
        runs = [task.rerun(seed) for seed in range(32)]
        assert bound / 10 < peak_bytes(lambda r=runs, b=bound: first_order_values(r, memory_bytes=b)) <= bound
    with pytest.raises(ValueError, match="memory_bytes must be at least"):
        first_order_values(runs, memory_bytes=1000)


def test_other_optimisers_are_refused_and_valued_by_the_engine():
    task = dataclasses.replace(small_task(), recipe=Recipe("adamw", 0.01, 3, 2))
    with pytest.raises(ValueError, match=r"must be those of SGD, .* got 'adamw'"):
        first_order_values([task])


@pytest.mark.parametrize(("order", "optimizer"), [("first", "sgd"), ("first", "adamw"), ("integrated", "sgd")])
def test_methods_are_the_mean_over_runs_with_its_spread(order, optimizer):
    task = dataclasses.replace(small_task(), recipe=Recipe(optimizer, 0.05, 8, 1))
    found = METHODS[f"inrun-{order}-seeds-20"](task, np.random.SeedSequence(1))
    assert (found.evaluations, len(set(found.parameters["seeds"]))) == (20, 20)
    alone = values_of_engine(task, found.parameters["seeds"], order)
    np.testing.assert_allclose(found.values, alone.mean(0), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(found.stderr, alone.std(0, ddof=1) / np.sqrt(20), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(found.halves, [alone[::2].mean(0), alone[1::2].mean(0)], rtol=1e-6, atol=1e-12)
    assert found.parameters["samples"] == pytest.approx(alone.sum(1).mean())
