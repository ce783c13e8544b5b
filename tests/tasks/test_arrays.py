"""A task of one's own arrays is that of the catalogue, bit for bit, however the same samples are given."""

import dataclasses
import pickle
from functools import partial
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

import tasks
from inrun_bench.adjoint import few_run_shapley
from inrun_bench.methods import valued
from tasks.content import content_identity

SEED = np.random.SeedSequence(0)
SGD = tasks.Recipe("sgd", learning_rate=0.1, batch_size=10, epochs=2)
ADAM = tasks.Recipe("adamw", learning_rate=0.01, batch_size=10, epochs=2)
N, D = 60, 4
X = np.random.default_rng(0).normal(size=(N, D))
LABELS = np.argmax(X[:, :3], axis=1)
NAMES = np.array(["cat", "dog", "owl"])[LABELS]
NUMBERS = X @ np.arange(1.0, D + 1)
PARTS = ("train", "validation", "test")


def linear(n_out=3, n_in=D):
    return partial(nn.Linear, n_in, n_out)


def make(x=X, y=LABELS, **changes):
    n_out = 1 if changes.get("classification") is False or y is NUMBERS else 3
    return tasks.from_arrays(x, y, **{"model": linear(n_out), "recipe": SGD, **changes})


def assert_same(one, other):
    """The samples, weights and batches of two tasks have the same bits."""
    for part in PARTS:
        for name in ("x", "y"):
            a, b = (getattr(getattr(task, part), name) for task in (one, other))
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
    assert all(map(torch.equal, one.model().state_dict().values(), other.model().state_dict().values()))
    assert all(map(torch.equal, one.batches(), other.batches()))
    np.testing.assert_array_equal(one.flipped, other.flipped)
    np.testing.assert_array_equal(one.rows, other.rows)
    assert (one.n_classes, one.learner, one.dtype, one.classes) == (
        other.n_classes,
        other.learner,
        other.dtype,
        other.classes,
    )


# --- the catalogue's tasks, from their arrays ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["breast-cancer-logreg", "digits-mlp", "diabetes-ridge", "iris-logreg", "mnist-cnn"])
def test_arrays_of_the_catalogue_make_the_task_of_the_catalogue(name, dtype):
    spec = tasks.CATALOG[name]
    x, y = spec.dataset()
    theirs = tasks.load(name, 3, flipped=0.2, dtype=dtype)
    ours = tasks.from_arrays(
        x,
        y,
        model=spec.architecture,
        recipe=spec.recipes,
        validation=spec.n_validation,
        test=spec.n_test,
        n_train=spec.n_train,
        classification=False if spec.n_classes is None else None,  # targets of diabetes are floats, all of them whole
        scaling=spec.scaling,
        dtype=dtype,
        seed=3,
        flipped=0.2,
    )
    assert_same(dataclasses.replace(theirs, spec=ours.spec), ours)
    assert ours.recipe == theirs.recipe
    assert ours.recipe_name == theirs.recipe_name


def test_sequences_stay_integers():
    spec = tasks.CATALOG["stdlib-gpt"]
    tokens, following, _ = (array[:40] for array in spec.dataset())
    task = tasks.from_arrays(
        tokens, following, model=spec.architecture, recipe=SGD, scaling=None, n_classes=256, flipped=0.5
    )
    assert task.train.x.dtype == task.train.y.dtype == torch.int64
    np.testing.assert_array_equal(task.train.x, tokens[task.rows])
    changed = (task.train.y.numpy() != following[task.rows]).any(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(changed), task.flipped)
    assert (task.dtype, task.classes, task.learner) == (torch.float32, None, None)


# --- the same samples in other clothes ---


class Pairs(Dataset):
    """Samples as a user's own Dataset returns them: tensors, and labels as plain Python."""

    def __init__(self, x, y):
        self.x, self.y = torch.tensor(x), y.tolist()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index]


FORMS = {
    "lists": lambda x, y: (x.tolist(), y.tolist()),
    "tensors": lambda x, y: (torch.tensor(x, requires_grad=True), torch.tensor(y)),
    "frame and series": lambda x, y: (pd.DataFrame(x).rename(columns=str), pd.Series(y)),
    "frames": lambda x, y: (pd.DataFrame(x), pd.DataFrame({"target": y})),
    "nullable columns": lambda x, y: (pd.DataFrame(x).convert_dtypes(), pd.Series(y).convert_dtypes()),
    "objects": lambda x, y: (x.astype(object), y.astype(object)),
    "a column": lambda x, y: (x, y[:, None]),
    "a tensor data set": lambda x, y: (TensorDataset(torch.tensor(x), torch.tensor(y)), None),
    "a data set": lambda x, y: (Pairs(x, y), None),
    "a part of a data set": lambda x, y: (Subset(Pairs(np.tile(x, (2, 1)), np.tile(y, 2)), range(len(x))), None),
}


@pytest.mark.parametrize("y", [LABELS, NUMBERS], ids=["labels", "numbers"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_however_the_samples_are_given_the_task_is_the_same(form, y):
    options = {"recipe": SGD, "model": linear(1 if y is NUMBERS else 3), "flipped": 0.1}
    plain, other = (tasks.from_arrays(*given, **options) for given in ((X, y), form(X, y)))
    assert_same(plain, other)


@pytest.mark.parametrize("form", [form for name, form in FORMS.items() if name != "objects"])
def test_however_the_held_out_samples_are_given_the_task_is_the_same(form):
    x, y = form(X[:40], LABELS[:40])
    of_parts = [form(X[part], LABELS[part]) for part in (slice(40, 50), slice(50, None))]
    held_out = [pair[0] if pair[1] is None else pair for pair in of_parts]
    plain = make(X[:40], LABELS[:40], validation=(X[40:50], LABELS[40:50]), test=(X[50:], LABELS[50:]))
    assert_same(plain, make(x, y, validation=held_out[0], test=held_out[1]))


KINDS = {
    "strings": (NAMES, ("cat", "dog", "owl")),
    "objects": (NAMES.astype(object), ("cat", "dog", "owl")),
    "numbers with gaps between them": (np.array([-7, 3, 1000])[LABELS], (-7, 3, 1000)),
    "strings of NumPy in a list": (list(NAMES), ("cat", "dog", "owl")),
    "unsigned numbers": (np.array([5, 6, 7], dtype=np.uint8)[LABELS], (5, 6, 7)),
    "pandas' strings": (pd.Series(NAMES, dtype="string"), ("cat", "dog", "owl")),
    "categories": (pd.Categorical(NAMES), ("cat", "dog", "owl")),
    "categories in an order of their own": (
        pd.Series(pd.Categorical(NAMES, categories=["owl", "newt", "cat", "dog"], ordered=True)),
        ("owl", "cat", "dog"),
    ),
}


@pytest.mark.parametrize(("y", "classes"), KINDS.values(), ids=KINDS)
def test_labels_of_any_kind_are_numbered_and_the_numbers_are_told(y, classes):
    task = make(X, y)
    assert task.classes == classes
    assert [type(label) for label in task.classes] == [type(label) for label in classes]
    assert [task.classes[label] for label in task.train.y.tolist()] == np.asarray(y)[task.rows].tolist()
    assert set(task.validation.y.tolist()) | set(task.test.y.tolist()) <= {0, 1, 2}


def test_two_truth_values_are_two_classes():
    task = make(X, LABELS == 0, model=linear(2))
    assert task.classes == (False, True)
    np.testing.assert_array_equal(task.train.y.bool(), (LABELS == 0)[task.rows])


def test_order_of_columns_is_order_of_features_and_boolean_columns_are_numbers():
    order = [2, 0, 3, 1]
    frame = pd.DataFrame(X, columns=list("abcd")).assign(d=X[:, 3] > 0)
    plain, other = make(frame, scaling=None), make(frame.iloc[:, order], scaling=None)
    assert torch.equal(plain.train.x[:, order], other.train.x)
    assert set(plain.train.x[:, 3].tolist()) == {0.0, 1.0}
    scaled, permuted = make(frame), make(frame.iloc[:, order])
    assert torch.equal(scaled.train.x[:, order], permuted.train.x)


def test_floats_are_numbers_unless_said_otherwise():
    floats = LABELS.astype(float)
    assert make(X, floats, classification=True, model=linear()).classes == (0.0, 1.0, 2.0)
    assert make(X, floats, n_classes=3, model=linear()).n_classes == 3
    assert make(X, floats, classification=False).n_classes is None
    assert make(X, NUMBERS).n_classes is None
    assert_same(make(X, LABELS, classification=False), make(X, floats, classification=False))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_of_few_bits_are_taken_to_the_last(dtype):
    few = torch.tensor(X).to(dtype)
    assert_same(make(few), make(few.double()))


def test_whole_measurements_are_scaled_where_scaling_is_named():
    whole = np.round(X * 10).astype(np.int16)
    for scaling in ("feature", "global"):
        assert_same(make(whole, scaling=scaling), make(whole.astype(float), scaling=scaling))


# --- parts ---


def test_each_training_sample_tells_its_row_and_no_sample_is_in_two_parts():
    task = make(scaling=None, dtype=torch.float64)
    np.testing.assert_array_equal(task.train.x, X[task.rows])
    np.testing.assert_array_equal(task.train.y, LABELS[task.rows])
    drawn = np.concatenate([getattr(task, part).x.numpy() for part in PARTS])
    np.testing.assert_array_equal(np.sort(drawn, axis=0), np.sort(X, axis=0))
    assert [len(getattr(task, part)) for part in PARTS] == [36, 12, 12]


def test_parts_are_drawn_in_the_proportions_of_the_labels():
    y = np.repeat(["rare", "common"], [20, 80])
    task = make(np.random.default_rng(1).normal(size=(100, D)), y, model=linear(2))
    for part in PARTS:
        assert getattr(task, part).y.double().mean() == pytest.approx(0.2, abs=0.05)


def test_samples_that_are_held_out_by_the_user_stay_as_they_are_and_the_others_in_their_order():
    task = make(X[:40], LABELS[:40], validation=(X[40:45], LABELS[40:45]), test=(X[45:], LABELS[45:]), scaling=None,
                dtype=torch.float64)  # fmt: skip
    for part, rows in (("train", slice(40)), ("validation", slice(40, 45)), ("test", slice(45, None))):
        np.testing.assert_array_equal(getattr(task, part).x, X[rows])
        np.testing.assert_array_equal(getattr(task, part).y, LABELS[rows])
    np.testing.assert_array_equal(task.rows, np.arange(40))


def test_one_part_may_be_held_out_and_the_other_drawn():
    task = make(X[:40], LABELS[:40], test=(X[40:], LABELS[40:]), validation=10, scaling=None, dtype=torch.float64)
    np.testing.assert_array_equal(task.test.x, X[40:])
    np.testing.assert_array_equal(task.train.x, X[task.rows])
    np.testing.assert_array_equal(np.sort(np.r_[task.train.x, task.validation.x], axis=0), np.sort(X[:40], axis=0))
    assert len(task.validation) == 10


def test_held_out_samples_are_scaled_by_the_training_samples():
    shifted = make(X[:40], LABELS[:40], validation=(X[40:50] + 9, LABELS[40:50]), test=(X[50:], LABELS[50:]))
    expected = (X[40:50] + 9 - X[:40].mean(axis=0)) / X[:40].std(axis=0)
    np.testing.assert_allclose(shifted.validation.x, expected, rtol=1e-5)


def test_what_becomes_of_the_arrays_and_the_model_later_does_not_change_the_task():
    x, y, model = X.copy(), LABELS.copy(), nn.Linear(D, 3)
    task, expected = (make(x, y, model=model, scaling=None) for _ in range(2))
    before, weight = {part: getattr(task, part).x.clone() for part in PARTS}, model.weight.detach().clone()
    x[:], y[:] = 0, 0
    nn.init.zeros_(model.weight)
    assert all(torch.equal(getattr(task, part).x, before[part]) for part in PARTS)
    assert torch.equal(task.model().weight, weight)
    assert_same(task.rebuilt(), expected)


# --- seeds, recipes, models ---


def test_a_task_is_rebuilt_from_another_seed_or_with_another_recipe():
    recipes = {"plain": SGD, "adaptive": ADAM}
    task = make(recipe=recipes, flipped=0.1, n_train=30, dtype=torch.float64)
    assert (task.recipe_name, task.recipe) == ("plain", SGD)
    assert_same(task.rebuilt(), task)
    assert_same(task.rebuilt(seed=5), make(recipe=recipes, flipped=0.1, n_train=30, dtype=torch.float64, seed=5))
    adaptive = task.rebuilt(recipe="adaptive")
    assert (adaptive.recipe_name, adaptive.recipe) == ("adaptive", ADAM)
    assert torch.equal(adaptive.train.x, task.train.x)
    with pytest.raises(ValueError, match="unknown recipe 'adaptiv'; did you mean 'adaptive'"):
        task.rebuilt(recipe="adaptiv")
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        task.rebuilt(seed=-1)


def test_tasks_of_the_catalogue_are_rebuilt_too_and_those_put_together_are_not():
    task = tasks.load("wine-logreg", 1, flipped=0.2)
    assert_same(task.rebuilt(seed=2, recipe="adamw"), tasks.load("wine-logreg", 2, recipe="adamw", flipped=0.2))
    with pytest.raises(ValueError, match=r"'wine-logreg' was put together from its parts.*tasks\.from_arrays"):
        dataclasses.replace(task, spec=None).rebuilt(seed=2)


def test_a_single_recipe_is_called_by_its_optimiser():
    assert make(recipe=ADAM).recipe_name == "adamw"


def test_a_callable_draws_other_weights_for_each_seed_and_a_model_has_the_same():
    drawn, given = make(), make(model=nn.Linear(D, 3))
    assert not torch.equal(drawn.model().weight, drawn.rebuilt(seed=1).model().weight)
    assert torch.equal(given.model().weight, given.rebuilt(seed=1).model().weight)
    assert given.model() is not given.model()
    for task in (drawn, given):
        assert torch.equal(task.model().weight, task.model().weight)


def test_a_class_is_a_callable():
    class Net(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, 3))

    assert make(model=Net).learner is None


class Noisy(nn.Linear):
    """Draws random numbers whatever its mode, and notes that."""

    modes: ClassVar = []

    def forward(self, x):
        self.modes.append(self.training)
        return super().forward(x) + torch.randn(3)


def test_random_states_and_the_mode_of_the_model_stay_as_they_were():
    model = Noisy(D, 3)
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    assert make(model=model).model().training
    assert model.training
    assert Noisy.modes == [False]  # it was run once
    assert torch.equal(states[0], torch.random.get_rng_state())
    np.testing.assert_array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002


def frozen():
    model = nn.Linear(D, 3)
    model.bias.requires_grad_(False)
    return model


def hooked():
    model = nn.Linear(D, 3)
    model.register_forward_hook(lambda _module, _inputs, output: output.tanh())
    return model


LEARNERS = {
    "linear": (linear(), LABELS, "logistic"),
    "of images": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(D, 3)), LABELS, "logistic"),
    "numbers": (linear(1), NUMBERS, "ridge"),
    "no intercept": (partial(nn.Linear, D, 3, bias=False), LABELS, None),
    "deep": (lambda: nn.Sequential(nn.Linear(D, 5), nn.Linear(5, 3)), LABELS, None),
    "a frozen intercept": (frozen, LABELS, None),
    "a hook": (hooked, LABELS, None),
    "not linear": (lambda: nn.Sequential(nn.Linear(D, 3), nn.Tanh()), LABELS, None),
}


@pytest.mark.parametrize(("model", "y", "learner"), LEARNERS.values(), ids=LEARNERS)
def test_a_linear_model_has_a_game_of_its_optimum_and_no_other(model, y, learner):
    x = X.reshape(N, 2, 2) if learner and "Sequential" in repr(model()) else X
    task = make(x, y, model=model)
    assert task.learner == learner
    if learner:
        assert np.isfinite(task.optimum_game()(np.ones((1, task.n_train), bool))).all()


# --- it is a task as any other ---


@pytest.mark.parametrize("y", [NAMES, NUMBERS], ids=["labels", "numbers"])
def test_games_runs_and_methods_take_it_as_any_other(y):
    task = make(X, y, model=linear(3 if y is NAMES else 1))
    game = task.trajectory_game()
    everyone = np.ones((1, task.n_train), bool)
    assert tasks.retrain(task, everyone, [("loss", "validation")])[0] == game(everyone)
    assert len(game.identity()) == 64
    first, integrated = (valued(f"inrun-{order}", task, SEED).values for order in ("first", "integrated"))
    few = few_run_shapley(task, points=2).values
    assert np.corrcoef(first, integrated)[0, 1] > 0.9
    assert np.corrcoef(integrated, few)[0, 1] > 0.5
    assert valued("knn", task, SEED).values.shape == (task.n_train,)


def test_its_content_is_told_from_another():
    digest = partial(content_identity, seed=0, recipe="sgd")
    task = make(X, NAMES)
    assert digest(task.spec) == digest(make(X.copy(), NAMES.astype(object)).spec)
    held_out = make(X, NAMES, validation=(X[:12], NAMES[:12]))
    for other in (make(X + 1, NAMES), make(X, LABELS), held_out, make(X, NAMES, validation=13)):
        assert digest(task.spec) != digest(other.spec)


def test_digests_are_those_from_before_there_were_names_of_classes_and_parts_that_are_held_out(monkeypatch):
    digest = partial(content_identity, tasks.CATALOG["iris-logreg"], seed=0, recipe="sgd")
    now, fields = digest(), dataclasses.fields(tasks.TaskSpec)
    older = [field for field in fields if field.name not in ("classes", "held_out")]
    monkeypatch.setattr(dataclasses, "fields", lambda _: older)
    assert digest() == now


def test_a_task_of_a_models_own_weights_can_be_sent_to_another_process():
    task = make(model=nn.Linear(D, 3))
    assert_same(pickle.loads(pickle.dumps(task)), task)  # noqa: S301
