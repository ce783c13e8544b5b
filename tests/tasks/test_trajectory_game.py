"""Trajectory games against a plain training loop, and against the axioms of their definition."""

import copy
import dataclasses
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import tasks
from baselines import exact_shapley
from inrun_bench.attribution import InRunShapley, Integrated
from tasks.architectures import GPT
from tasks.recipe import Recipe
from tasks.trajectory_game import DivergedError, TrajectoryGame
from tests.tasks.small_words import Words

NAMES = tasks.names(large=False)


def small(name="digits-mlp", recipe="sgd", **changes):
    task = tasks.load(name, seed=3, n_train=12, recipe=recipe, dtype=torch.float64)
    return dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, batch_size=5, epochs=2, **changes))


def trained_alone(task, coalition, renormalised=False):
    """Train one model in a loop without the absent samples; a batch of which none is left has a zero gradient."""
    model = task.model()
    optimizer = task.optimizer(model)
    for index in task.batches():
        kept = index[torch.from_numpy(coalition)[index]]
        if len(kept):
            losses = task.objective.losses(model(task.train.x[kept]), task.train.y[kept])
            (losses.sum() / (len(kept) if renormalised else len(index))).backward()
        else:
            (0 * task.loss(model, task.train, index)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def judged_alone(task, model, part):
    split = getattr(task, part)
    with torch.no_grad():
        return [float(u(model(split.x), split.y)) for u in task.objective.utilities.values()]


def random_coalitions(n, m=6, seed=0):
    rng = np.random.default_rng(seed)
    return np.concatenate([np.zeros((1, n), bool), np.ones((1, n), bool), rng.random((m, n)) < rng.random((m, 1))])


@pytest.mark.parametrize("recipe", ["sgd", "adamw"])
@pytest.mark.parametrize("name", NAMES)
def test_utilities_equal_those_of_a_training_loop(name, recipe):
    task = small(name, recipe, weight_decay=0.05)
    coalitions = random_coalitions(12)
    models = [trained_alone(task, coalition) for coalition in coalitions]
    for part in ("validation", "test"):
        expected = [judged_alone(task, model, part) for model in models]
        game = task.trajectory_game("loss", part)
        np.testing.assert_allclose(game.measure(coalitions), expected, rtol=1e-10)


def of_words():
    def split(n):
        tokens = torch.randint(7, (n, 5), generator=torch.Generator().manual_seed(n))
        return tasks.Split(tokens[:, :-1].double(), tokens[:, 1:])

    return dataclasses.replace(
        small(), architecture=Words, n_classes=7, train=split(12), validation=split(9), test=split(8)
    )


def of_images():
    def seen(split):
        return tasks.Split(split.x.view(-1, 1, 8, 8), split.y)

    task = small()
    return dataclasses.replace(
        task,
        architecture=lambda: nn.Sequential(
            *(nn.Conv2d(1, 4, 3, 2), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 5, 2), nn.Flatten(), nn.Linear(20, 10))
        ),
        **{part: seen(getattr(task, part)) for part in ("train", "validation", "test")},
    )


def of_numbers():
    task = small()
    parts = {
        part: tasks.Split(getattr(task, part).x, getattr(task, part).y.double() / 5)
        for part in ("train", "validation", "test")
    }
    model = partial(nn.Sequential, nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 1))
    return dataclasses.replace(task, n_classes=None, learner=None, architecture=lambda: copy.deepcopy(model()), **parts)


RECIPES = {
    "sgd": Recipe("sgd", 0.1, 5, 2),
    "momentum and decay": Recipe("sgd", 0.1, 5, 2, momentum=0.9, weight_decay=0.1),
    "nesterov": Recipe("sgd", 0.1, 5, 2, momentum=0.9, nesterov=True, schedule="linear", clip_norm=0.1),
    "scheduled": Recipe("sgd", 0.1, 5, 2, schedule="linear", warmup=0.3),
    "clipped": Recipe("sgd", 0.1, 5, 2, clip_norm=0.1),
    "adam": Recipe("adam", 0.05, 5, 2, weight_decay=0.1, schedule="cosine", warmup=0.3, clip_norm=0.1),
    "adamw": Recipe("adamw", 0.05, 5, 2, weight_decay=0.1),
}


@pytest.mark.parametrize("renormalised", [False, True])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("make", [small, of_words, of_images, of_numbers])
def test_absent_samples_are_as_if_they_were_dropped(make, recipe, renormalised):
    """Renormalised, the mean is over the rest of the batch; else over the batch as it was."""
    task = dataclasses.replace(make(), recipe=RECIPES[recipe])
    coalitions = random_coalitions(12)
    coalitions[2] = np.arange(12) == 7  # most batches have no sample of it
    expected = [judged_alone(task, trained_alone(task, c, renormalised), "validation") for c in coalitions]
    measured = TrajectoryGame(task, renormalised=renormalised).measure(coalitions)
    np.testing.assert_allclose(measured, expected, rtol=1e-10)


def test_renormalising_matters_unless_everyone_is_present():
    task = small()
    coalitions = random_coalitions(12)
    plain, renormalised = (TrajectoryGame(task, renormalised=r)(coalitions) for r in (False, True))
    partial_ones = ~np.isin(coalitions.sum(1), (0, 12))
    np.testing.assert_allclose(plain[~partial_ones], renormalised[~partial_ones], rtol=1e-13)
    assert (np.abs(plain - renormalised)[partial_ones] > 1e-6).all()


def test_each_model_is_clipped_by_its_own_gradient():
    """A norm that no gradient reaches changes nothing; one below all changes everybody but the empty coalition."""
    coalitions = random_coalitions(12)
    plain, ample, tight = (small(clip_norm=c).trajectory_game()(coalitions) for c in (None, 1e6, 0.01))
    np.testing.assert_allclose(ample, plain, rtol=1e-13)
    assert tight[0] == plain[0]
    assert (np.abs(tight - plain)[1:] > 1e-3).all()


def test_the_empty_coalition_learns_nothing_and_the_full_one_is_the_run_itself():
    task = small()
    empty, full = task.trajectory_game()(random_coalitions(12, m=0))
    model = task.model()
    assert empty == pytest.approx(-float(task.loss(model, task.validation).detach()), rel=1e-14)
    optimizer = task.optimizer(model)
    for index in task.batches():
        task.train_on(model, optimizer, index)
    assert full == pytest.approx(-float(task.loss(model, task.validation).detach()), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_utilities_do_not_depend_on_what_else_is_asked(name, monkeypatch):
    task = tasks.load(name, seed=0, n_train=30)
    coalitions = random_coalitions(30, m=40)
    together = task.trajectory_game()(coalitions)
    monkeypatch.setattr("tasks.stacks.sizing.MODELS_AT_A_TIME", 7)
    np.testing.assert_allclose(task.trajectory_game()(coalitions), together, rtol=3e-6)
    np.testing.assert_allclose(task.trajectory_game()(coalitions[5:6]), together[5:6], rtol=3e-6)


def test_measures_are_columns_in_the_order_asked_for():
    task = small()
    coalitions = random_coalitions(12)
    game = task.trajectory_game("accuracy")
    assert game.measures == ("loss", "accuracy")
    np.testing.assert_array_equal(game.measure(coalitions)[:, 1], game(coalitions))
    measured = tasks.retrain(task, coalitions, [("accuracy", "test"), ("loss", "validation")])
    np.testing.assert_array_equal(measured[:, 0], task.trajectory_game("accuracy", "test")(coalitions))
    np.testing.assert_array_equal(measured[:, 1], task.trajectory_game("loss")(coalitions))


def test_in_run_values_of_a_single_step_are_the_shapley_values_of_retraining():
    """With one step for all samples, step game and trajectory game are the same; the diagonal's error is O(lr^2)."""
    errors = []
    for rate in (0.02, 0.005):
        task = tasks.load("breast-cancer-logreg", seed=1, n_train=10, dtype=torch.float64)
        changes = {"batch_size": 10, "epochs": 1, "learning_rate": rate}
        task = dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, **changes))
        exact = exact_shapley(task.trajectory_game())
        values = in_run_values(task)
        errors.append(np.linalg.norm(values - exact.values) / np.linalg.norm(exact.values))
    assert errors[0] < 1e-3
    assert errors[1] < errors[0] / 10


def in_run_values(task):
    model = task.model()
    optimizer = task.optimizer(model)
    engine = InRunShapley(
        model, optimizer, task.n_train, Integrated(8), validation=lambda: task.loss(model, task.validation)
    )
    (index,) = task.batches()
    with engine.step(index):
        task.train_on(model, optimizer, index)
    return engine.values()


@pytest.mark.parametrize(
    "coalitions", [np.ones((2, 5), bool), np.ones(12, bool), np.ones((2, 12)), np.ones((2, 12), np.int64)]
)
def test_bad_coalitions(coalitions):
    with pytest.raises(ValueError, match=r"coalitions must be a bool array of shape \[m, 12\], got"):
        small().trajectory_game()(coalitions)


def test_bad_utility_and_split():
    with pytest.raises(ValueError, match="utility must be one of 'loss', 'accuracy', got 'f1'"):
        small().trajectory_game("f1")
    with pytest.raises(ValueError, match="split must be one of 'validation', 'test', got 'train'"):
        small().trajectory_game("loss", "train")
    with pytest.raises(ValueError, match="utility must be one of 'loss', got 'accuracy'"):
        of_numbers().trajectory_game("accuracy")
    with pytest.raises(ValueError, match="utility must be one of 'loss', 'accuracy', got 'f1'"):
        tasks.retrain(small(), np.ones((1, 12), bool), [("f1", "test")])


def test_diverged_models_have_no_utility_whatever_the_measure():
    task = dataclasses.replace(small(), recipe=Recipe("sgd", 1e200, 5, 4))
    coalitions = random_coalitions(12)
    columns = [("accuracy", "test"), ("loss", "test"), ("accuracy", "validation")]
    measured = tasks.retrain(task, coalitions, columns)
    assert np.isfinite(measured[0]).all()
    assert np.isnan(measured[1]).all()
    assert (np.isnan(measured).all(1) | np.isfinite(measured).all(1)).all()


def test_divergence_names_the_first_coalition_and_keeps_the_other_utilities():
    task = dataclasses.replace(small(), recipe=Recipe("sgd", 1e200, 5, 4))
    coalitions = np.zeros((4, 12), bool)
    coalitions[1:3] = True
    coalitions[1, 3] = False
    game = task.trajectory_game("accuracy")
    match = r"2 of 4 models diverged .* size 11 with members \[0, 1, 2, 4, 5, 6, 7, 8, 9, 10, \.\.\.\]"
    with pytest.raises(DivergedError, match=match) as caught:
        game(coalitions)
    error = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - as a worker process hands it back
    assert str(error) == str(caught.value)
    np.testing.assert_array_equal(np.isnan(error.utilities), [False, True, True, False])
    np.testing.assert_array_equal(error.utilities[[0, 3]], game(coalitions[[0, 3]]))


def with_first_number_nudged(split):
    x = split.x.clone()
    x.view(-1)[0] = torch.nextafter(x.view(-1)[0], torch.tensor(torch.inf, dtype=x.dtype))
    return tasks.Split(x, split.y)


def with_first_label_changed(split):
    y = split.y.clone()
    y[0] = (y[0] + 1) % 10
    return tasks.Split(split.x, y)


def with_recipe(**changes):
    return lambda task: dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, **changes))


def perceptron(activation, scale=1.0):
    def build():
        model = nn.Sequential(nn.Linear(64, 32), activation, nn.Linear(32, 10))
        with torch.no_grad():
            model[2].bias *= scale
        return model

    return build


CHANGES = {
    "training features": lambda t: dataclasses.replace(t, train=with_first_number_nudged(t.train)),
    "training labels": lambda t: dataclasses.replace(t, train=with_first_label_changed(t.train)),
    "judging features": lambda t: dataclasses.replace(t, validation=with_first_number_nudged(t.validation)),
    "judging labels": lambda t: dataclasses.replace(t, validation=with_first_label_changed(t.validation)),
    "activation": lambda t: dataclasses.replace(t, architecture=perceptron(nn.GELU())),
    "setting of the activation": lambda t: dataclasses.replace(t, architecture=perceptron(nn.GELU("tanh"))),
    "float setting": lambda t: dataclasses.replace(t, architecture=perceptron(nn.LeakyReLU(0.1))),
    "other float setting": lambda t: dataclasses.replace(t, architecture=perceptron(nn.LeakyReLU(0.2))),
    "shape": lambda t: dataclasses.replace(t, train=tasks.Split(t.train.x.view(-1, 8, 8), t.train.y)),
    "the same bits as integers": lambda t: dataclasses.replace(
        t, train=tasks.Split(t.train.x.view(torch.int64), t.train.y), dtype=torch.float64
    ),
    "squared errors of the same labels": lambda t: dataclasses.replace(t, n_classes=None),
    "initial weights": lambda t: dataclasses.replace(t, architecture=perceptron(nn.ReLU(), 1.01)),
    "seed": lambda t: dataclasses.replace(t, seed=t.seed + 1),
    "learning rate": with_recipe(learning_rate=0.2),
    "epochs": with_recipe(epochs=3),
    "batch size": with_recipe(batch_size=4),
    "momentum": with_recipe(momentum=0.5),
    "weight decay": with_recipe(weight_decay=0.1),
    "nesterov": with_recipe(momentum=0.5, nesterov=True),
    "schedule": with_recipe(schedule="linear"),
    "warmup": with_recipe(warmup=0.5),
    "clipping": with_recipe(clip_norm=1.0),
    "optimiser": with_recipe(optimizer="adamw"),
    "other optimiser": with_recipe(optimizer="adam"),
    "heads": lambda t: dataclasses.replace(t, architecture=lambda: GPT(7, 4, 8, 2, 1)),
    "other heads": lambda t: dataclasses.replace(t, architecture=lambda: GPT(7, 4, 8, 4, 1)),
}


class Backwards(tasks.Task):
    """A task with its batches in the opposite order."""

    def batches(self):
        return super().batches()[::-1]


def test_the_identity_tells_games_apart_by_all_that_changes_their_utilities():
    identities = {name: change(small()).trajectory_game().identity() for name, change in CHANGES.items()}
    identities["task"] = small().trajectory_game().identity()
    parts = {field.name: getattr(small(), field.name) for field in dataclasses.fields(tasks.Task)}
    identities["batches"] = Backwards(**parts).trajectory_game().identity()
    identities["split"] = small().trajectory_game("loss", "test").identity()
    identities["renormalised"] = TrajectoryGame(small(), renormalised=True).identity()
    identities["dtype"] = tasks.load("digits-mlp", seed=3, n_train=12).trajectory_game().identity()
    identities["objective"] = of_numbers().trajectory_game().identity()
    assert len(set(identities.values())) == len(identities)


def test_the_identity_does_not_depend_on_what_leaves_utilities_as_they_are():
    identity = small().trajectory_game().identity()
    assert len(identity) == 64
    assert small().trajectory_game("accuracy").identity() == identity
    assert TrajectoryGame(small(), memory_bytes=10**8, device="cpu").identity() == identity
    rebuilt = dataclasses.replace(small(), name="other name", architecture=perceptron(nn.ReLU()))
    assert rebuilt.trajectory_game().identity() == identity
    other_test = dataclasses.replace(small(), test=with_first_label_changed(small().test))
    assert other_test.trajectory_game().identity() == identity
    torch.randn(3)
    assert small().trajectory_game().identity() == identity
