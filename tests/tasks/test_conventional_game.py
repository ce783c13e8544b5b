"""Conventional games against a plain loop that trains one model on the subset alone, and against their definition."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import tasks
from inrun_bench.runs.peak_memory import peak_bytes
from tasks.recipe import Recipe
from tasks.retraining_game import DivergedError
from tests.tasks.test_trajectory_game import (
    CHANGES,
    RECIPES,
    judged_alone,
    of_images,
    of_numbers,
    of_words,
    small,
    with_first_label_changed,
)

N, SEEDS = 12, (5, 11)
PARTS = ("train", "validation", "test")
SIZES = (0, 1, 3, 5, 6, 10, 11, 12)  # in batches of 5


def coalitions_of(*sizes, n=N):
    rng = np.random.default_rng(0)
    return np.stack([rng.permutation(n) < size for size in sizes])


def trained_alone(task, coalition, seed):
    """Train on the subset as a dataset of its own; each epoch in an order of all samples, without those absent."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = task.architecture().to(task.dtype or task.train.x.dtype)
    if not coalition.any():
        return model
    members = np.flatnonzero(coalition)
    alone = dataclasses.replace(task, train=tasks.Split(task.train.x[members], task.train.y[members]))
    optimizer = alone.optimizer(model)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 3]))
    for _ in range(task.recipe.epochs):
        order = rng.permutation(len(coalition))
        order = order[coalition[order]]
        for start in range(0, len(order), task.recipe.batch_size):
            index = torch.from_numpy(order[start : start + task.recipe.batch_size])
            task.loss(model, task.train, index).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


def alone(task, coalitions, seeds, part="validation"):
    runs = [[judged_alone(task, trained_alone(task, c, seed), part) for c in coalitions] for seed in seeds]
    return np.mean(runs, axis=0)


def logistic():
    return small("breast-cancer-logreg")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("make", [small, logistic, of_images, of_numbers])
def test_utilities_are_those_of_models_trained_on_the_subset_alone(make, recipe):
    task = dataclasses.replace(make(), recipe=RECIPES[recipe])
    coalitions = coalitions_of(*SIZES)
    measured = task.conventional_game(seeds=SEEDS).measure(coalitions)
    np.testing.assert_allclose(measured, alone(task, coalitions, SEEDS), rtol=1e-10)


def test_so_are_those_of_models_that_are_no_chain_and_on_the_test_split():
    task = of_words()
    coalitions = coalitions_of(*SIZES)
    game = task.conventional_game("accuracy", "test", seeds=SEEDS)
    expected = alone(task, coalitions, SEEDS, "test")
    np.testing.assert_allclose(game.measure(coalitions), expected, rtol=1e-10)
    np.testing.assert_allclose(game(coalitions), expected[:, 1], rtol=1e-10)


@pytest.mark.parametrize("name", ["digits-mlp", "breast-cancer-logreg"])
def test_float32_is_as_exact_as_a_loop_in_float32(name):
    task = tasks.load(name, seed=1, n_train=60)
    coalitions = coalitions_of(0, 1, 13, 20, 35, 60, n=60)
    np.testing.assert_allclose(
        task.conventional_game(seeds=(7,))(coalitions), alone(task, coalitions, (7,))[:, 0], rtol=1e-5
    )


def test_everybody_is_the_run_of_another_seed_and_nobody_its_untrained_model():
    task = small()
    empty, full = task.conventional_game(seeds=(5,))(coalitions_of(0, N))
    other = task.rerun(5)
    assert full == pytest.approx(other.trajectory_game()(coalitions_of(N))[0], rel=1e-12)
    assert empty == pytest.approx(-float(task.loss(other.model(), task.validation).detach()), rel=1e-14)
    decayed = small(weight_decay=0.5)
    assert decayed.conventional_game(seeds=(5,))(coalitions_of(0))[0] == empty  # no step, and so no decay


def test_neither_chunks_nor_the_order_of_coalitions_matter(monkeypatch):
    task = small()
    coalitions = coalitions_of(*SIZES, *SIZES[::-1], 4, 8)
    together = task.conventional_game(seeds=3)(coalitions)
    shuffled = np.random.default_rng(1).permutation(len(coalitions))
    np.testing.assert_allclose(task.conventional_game(seeds=3)(coalitions[shuffled]), together[shuffled], rtol=1e-12)
    monkeypatch.setattr("tasks.stacks.sizing.MODELS_AT_A_TIME", 2)
    np.testing.assert_allclose(task.conventional_game(seeds=3)(coalitions), together, rtol=1e-12)
    assert task.conventional_game()(coalitions[:0]).shape == (0,)


def test_the_mean_over_seeds_is_that_of_games_of_one_seed():
    task = small()
    coalitions = coalitions_of(*SIZES)
    single = [task.conventional_game(seeds=(seed,)).measure(coalitions) for seed in (3, 4, 8)]
    np.testing.assert_allclose(
        task.conventional_game(seeds=(3, 4, 8)).measure(coalitions), np.mean(single, 0), rtol=1e-12
    )


def frozen():
    model = nn.Sequential(nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10))
    model[0].requires_grad_(requires_grad=False)
    return model


class Noted(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(64, 10))
        self.register_buffer("shift", torch.randn(10), persistent=False)

    def forward(self, x):
        return super().forward(x) + self.shift


@pytest.mark.parametrize("architecture", [frozen, Noted])
def test_what_is_not_trained_is_of_its_own_seed(architecture):
    task = dataclasses.replace(small(), architecture=architecture)
    coalitions = coalitions_of(4, 9)
    measured = task.conventional_game(seeds=SEEDS).measure(coalitions)
    np.testing.assert_allclose(measured, alone(task, coalitions, SEEDS), rtol=1e-10)


def test_a_sample_outside_of_a_coalition_cannot_harm_it():
    task = small()
    x = task.train.x.clone()
    x[0] = torch.inf
    task = dataclasses.replace(task, train=tasks.Split(x, task.train.y))
    coalitions = coalitions_of(3, 6, 11)
    coalitions[:, 0] = False
    measured = task.conventional_game(seeds=(2,)).measure(coalitions)
    np.testing.assert_allclose(measured, alone(task, coalitions, (2,)), rtol=1e-10)


def test_memory_stays_below_the_bound_where_batches_take_most_of_it(monkeypatch):
    monkeypatch.setattr("tasks.stacks.sizing.LARGEST_TENSOR", 2**40)
    task = dataclasses.replace(small("breast-cancer-logreg"), recipe=Recipe("sgd", 0.1, N, 1))
    wide = {part: tasks.Split(getattr(task, part).x.repeat(1, 10), getattr(task, part).y) for part in PARTS}
    task = dataclasses.replace(task, architecture=lambda: nn.Linear(300, 2), **wide)
    game = tasks.ConventionalGame(task, seeds=(1,), memory_bytes=2**21)
    assert game.memory_bytes / 10 < peak_bytes(lambda: game(np.ones((200, N), bool))) <= game.memory_bytes
    game.memory_bytes = 1000
    with pytest.raises(ValueError, match=r"memory_bytes must be at least \d+"):
        game(coalitions_of(3))


def test_the_identity_tells_games_apart_by_all_that_changes_their_utilities():
    changes = {name: change for name, change in CHANGES.items() if name != "seed"}  # of the data alone
    identities = {name: change(small()).conventional_game(seeds=(1,)).identity() for name, change in changes.items()}
    games = {f"seeds {seeds}": small().conventional_game(seeds=seeds) for seeds in ((1,), (2,), (1, 2), 1, 2)}
    games["split"] = small().conventional_game("loss", "test", seeds=(1,))
    games["another game"] = small().rerun(1).trajectory_game()
    games["renormalised"] = small().rerun(1).trajectory_game(renormalised=True)
    identities |= {name: game.identity() for name, game in games.items()}
    assert len(set(identities.values())) == len(identities)


def test_the_identity_does_not_depend_on_what_leaves_utilities_as_they_are():
    identity = small().conventional_game(seeds=(1,)).identity()
    assert small().conventional_game("accuracy", seeds=[1]).identity() == identity
    assert tasks.ConventionalGame(small(), seeds=(1,), memory_bytes=10**8, device="cpu").identity() == identity
    assert small().rerun(9).conventional_game(seeds=(1,)).identity() == identity
    other_test = dataclasses.replace(small(), test=with_first_label_changed(small().test))
    assert other_test.conventional_game(seeds=(1,)).identity() == identity


def test_what_an_identity_follows_from_cannot_be_changed():
    game = small().conventional_game(seeds=(1,))
    with pytest.raises(AttributeError, match="seeds of a ConventionalGame cannot be changed"):
        game.seeds = (2,)
    game.task.train.x[0] += 1
    for use in (game.identity, partial(game, coalitions_of(3))):
        with pytest.raises(ValueError, match=r"train\.x of the task was changed in place"):
            use()


def test_a_coalition_of_which_one_run_diverged_has_no_utility():
    game = dataclasses.replace(small(), recipe=Recipe("sgd", 1e200, 5, 4)).conventional_game(seeds=2)
    coalitions = coalitions_of(0, N)
    np.testing.assert_array_equal(np.isnan(game.measure(coalitions)).all(1), [False, True])
    with pytest.raises(DivergedError, match="1 of 2 models diverged"):
        game(coalitions)


@pytest.mark.parametrize("coalitions", [np.ones((2, 5), bool), np.ones(N, bool), np.ones((2, N))])
def test_bad_coalitions(coalitions):
    with pytest.raises(ValueError, match=r"coalitions must be a bool array of shape \[m, 12\], got"):
        small().conventional_game()(coalitions)


def test_bad_arguments():
    with pytest.raises(ValueError, match="utility must be one of 'loss', 'accuracy', got 'f1'"):
        small().conventional_game("f1")
    with pytest.raises(ValueError, match="split must be one of 'validation', 'test', got 'train'"):
        small().conventional_game("loss", "train")
    with pytest.raises(ValueError, match="seeds must be those of at least one run"):
        tasks.ConventionalGame(small(), seeds=())
    coupled = dataclasses.replace(small(), architecture=lambda: nn.Sequential(nn.Linear(64, 10), nn.Softmax(0)))
    with pytest.raises(ValueError, match="mixes the samples of a batch"):
        coupled.conventional_game()(coalitions_of(3))
