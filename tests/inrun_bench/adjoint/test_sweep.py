"""The adjoint sweep on all kinds of models, utilities and budgets; test_recipes.py has every recipe."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from inrun_bench.adjoint import sweep
from inrun_bench.adjoint.checkpoints import Storage
from inrun_bench.adjoint.sweep import DivergedRunError, differentiate, utilities_at
from inrun_bench.runs.peak_memory import peak_bytes
from tasks.stacks import sizing
from tests.inrun_bench.adjoint.small import central_differences, small_task, some_weights
from tests.tasks.small_words import Words


def task_of_words():
    def split(n):
        tokens = torch.randint(7, (n, 5), generator=torch.Generator().manual_seed(n))
        return dataclasses.replace(task.train, x=tokens[:, :4].double(), y=tokens[:, 1:])

    task = small_task(n=4)
    return dataclasses.replace(
        task, n_classes=7, train=split(4), validation=split(6), test=split(6), architecture=Words
    )


def test_sequences_are_differentiated_too():
    task, weights = task_of_words(), 0.1 + 0.8 * some_weights(2, 4)
    expected = central_differences(task, weights)
    np.testing.assert_allclose(differentiate(task, weights).gradients, expected, atol=1e-6 * np.abs(expected).max())


class Wrapped(nn.Module):
    """Hides a chain, so that ``torch.func.vmap`` serves it."""

    def __init__(self, chain):
        super().__init__()
        self.chain = chain

    def forward(self, x):
        return self.chain(x)


@pytest.mark.parametrize("name", ["digits-mlp", "diabetes-ridge"])
def test_chains_and_other_programs_agree(name):
    task = small_task(name)
    hidden = dataclasses.replace(task, architecture=lambda: Wrapped(task.architecture()))
    weights = some_weights(3, task.n_train)
    one, other = differentiate(task, weights), differentiate(hidden, weights)
    np.testing.assert_allclose(one.gradients, other.gradients, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("recipe", ["sgd", "adamw"])
def test_all_ways_to_keep_the_states_give_the_same_bits(recipe, tmp_path):
    task = small_task(recipe=recipe)
    weights = some_weights(3, task.n_train)
    expected = differentiate(task, weights, storage=Storage("memory"))
    for storage in (Storage("disk", directory=tmp_path), Storage("recomputed")):
        found = differentiate(task, weights, storage=storage)
        assert found.way == storage.way
        np.testing.assert_array_equal(found.gradients, expected.gradients)
    assert list(tmp_path.iterdir()) == []


def test_the_budget_chooses_the_way_and_changes_no_values(tmp_path):
    task = small_task("iris-logreg", epochs=20)
    weights = some_weights(9, task.n_train)
    ample = differentiate(task, weights)
    with pytest.raises(ValueError, match="memory_bytes must be at least") as refusal:
        differentiate(task, weights, storage=Storage(memory_bytes=1))
    least = int(str(refusal.value).split("at least ")[1].split(",")[0])
    tight = differentiate(task, weights, storage=Storage(memory_bytes=least))
    on_disk = differentiate(task, weights, storage=Storage(memory_bytes=least, directory=tmp_path))
    assert (ample.way, tight.way, on_disk.way) == ("memory", "recomputed", "disk")
    assert tight.stored_bytes <= least < ample.stored_bytes
    for found in (tight, on_disk):  # one run at a time, and not nine
        np.testing.assert_allclose(found.gradients, ample.gradients, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(("way", "runs"), [("memory", 6), ("disk", 24)])
def test_the_peak_stays_below_the_bound_and_uses_a_good_part_of_it(way, runs, monkeypatch):
    """Twice as many runs as fit; states included, of which Adam has three rows a step: most of what 32 steps take."""
    monkeypatch.setattr(sizing, "LARGEST_TENSOR", 2**40)
    task, bound = small_task(recipe="adamw", n=64, batch_size=32, epochs=16), 2**23
    storage = Storage(way, memory_bytes=bound)
    peak = peak_bytes(lambda: differentiate(task, some_weights(runs, 64), storage=storage))
    assert bound / 3 < peak <= bound


def test_states_of_all_runs_at_a_time_must_fit_to_be_kept_in_memory():
    task, one = small_task(epochs=20), some_weights(1, 8)
    alone = differentiate(task, one, storage=Storage("memory"))
    budget = 5 * alone.stored_bytes
    several = differentiate(task, some_weights(30, 8), storage=Storage(memory_bytes=budget))
    assert differentiate(task, one, storage=Storage(memory_bytes=budget)).way == "memory"
    assert (several.way, several.stored_bytes <= budget) == ("recomputed", True)


@pytest.mark.parametrize(
    "utility", ["expected-accuracy", lambda outputs, y: -(outputs.square().mean() + outputs.logsumexp(-1).mean())]
)
def test_any_differentiable_utility_is_differentiated(utility):
    task, weights = small_task(), 0.1 + 0.8 * some_weights(2, 8)
    expected = central_differences(task, weights, utility=utility)
    found = differentiate(task, weights, utility=utility)
    np.testing.assert_allclose(found.gradients, expected, atol=1e-6 * np.abs(expected).max())


def test_expected_accuracy_is_that_of_drawn_labels():
    task = small_task()
    model = task.model()
    with torch.no_grad():
        chances = torch.softmax(model(task.validation.x), -1)
    expected = chances[torch.arange(len(task.validation)), task.validation.y].mean()
    untrained = utilities_at(task, np.zeros((1, 8)), utility="expected-accuracy")
    np.testing.assert_allclose(untrained, expected.item(), rtol=1e-12)


def test_a_run_that_diverges_is_named_with_its_step():
    task = small_task("diabetes-ridge", learning_rate=1e200, weight_decay=0.0)
    weights = np.stack([np.zeros(8), np.ones(8), np.zeros(8)])
    with pytest.raises(DivergedRunError, match=r"weights are not finite in step 1 of the run with weights\[1\]"):
        differentiate(task, weights)
    alone = Storage(memory_bytes=20_000)  # one run at a time
    with pytest.raises(DivergedRunError, match=r"weights\[1\]"):
        utilities_at(task, weights, storage=alone)


def test_a_derivative_that_is_not_finite_is_an_error_where_the_run_itself_is_finite():
    with pytest.raises(DivergedRunError, match=r"derivatives by the weights are not finite in step \d of the run"):
        differentiate(small_task(), np.ones((1, 8)), utility=lambda outputs, _y: 1e308 * outputs.square().sum())


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_whether_samples_are_coupled_does_not_depend_on_the_unit_of_the_outputs(scale):
    differentiate(with_function(lambda h: h * scale), np.ones((1, 8)), utility=lambda o, y: o.sum() / scale)
    with pytest.raises(ValueError, match="depends on the others in its batch"):
        differentiate(with_function(lambda h: (h - h.mean(0)) * scale), np.ones((1, 8)))


def with_layer(layer):
    task = small_task()
    return dataclasses.replace(task, architecture=lambda: nn.Sequential(nn.Linear(64, 10), layer))


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (with_layer(nn.Dropout(0.5)), {}, "dropout draws anew in each pass, so that '1'"),
        (with_layer(nn.BatchNorm1d(10)), {}, "batch norm couples the samples of a batch, .* '1'"),
        (small_task(), {"utility": "accuracy"}, "must be one of 'loss', 'expected-accuracy', .* got 'accuracy'"),
        (small_task("diabetes-ridge"), {"utility": "r2"}, "utility must be one of 'loss', .* got 'r2'"),
        (small_task(), {"utility": lambda o, y: (o.argmax(-1) == y).double().mean()}, "autograd finds no derivative"),
        (small_task(), {"split": "train"}, "split must be one of 'validation', 'test', got 'train'"),
    ],
)
def test_what_has_no_derivative_is_refused(task, options, message):
    with pytest.raises(ValueError, match=message):
        differentiate(task, np.ones((1, 8)), **options)


class Attention(nn.Module):
    """Attention between the rows of a digit, and a head."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(64, 10)

    def forward(self, x):
        rows = x.view(-1, 8, 8)
        mixed = self.layer(rows, rows, rows)[0] if isinstance(self.layer, nn.MultiheadAttention) else self.layer(rows)
        return self.head(mixed.flatten(1))


def attention(dropout):
    return with_architecture(lambda: Attention(nn.MultiheadAttention(8, 2, dropout=dropout, batch_first=True)))


def encoder(dropout):
    return with_architecture(lambda: Attention(nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True)))


class Function(nn.Module):
    """A linear map, and a function of what it gives."""

    def __init__(self, function):
        super().__init__()
        self.head, self.function = nn.Linear(64, 10), function

    def forward(self, x):
        return self.function(self.head(x))


def with_architecture(architecture):
    return dataclasses.replace(small_task(), architecture=architecture)


def with_function(function):
    return with_architecture(lambda: Function(function))


def bags(h):
    """Return h, each row of which is a bag of its own: an operation that torch does not differentiate twice."""
    return nn.functional.embedding_bag(torch.arange(len(h))[:, None], h)


@pytest.mark.parametrize(
    "task",
    [
        attention(0.1),
        encoder(0.1),
        with_layer(nn.RReLU()),
        with_layer(nn.FeatureAlphaDropout(0.1)),
        with_function(nn.functional.dropout),
        with_function(nn.functional.gumbel_softmax),
        with_function(lambda h: h + torch.randn(10, dtype=h.dtype, generator=torch.Generator().manual_seed(0))),
    ],
)
def test_a_model_that_draws_random_numbers_is_refused_and_draws_none(task):
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"draws .*, so that .* makes no repeatable run"):
        differentiate(task, np.ones((1, 8)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "function",
    [
        lambda h: h - h.mean(0),
        lambda h: h / h.norm(),
        lambda h: h.cumsum(0).flip(0),
        lambda h: h + float(np.random.default_rng().random()),
    ],
)
def test_a_model_that_couples_samples_or_changes_from_pass_to_pass_is_refused(function):
    with pytest.raises(ValueError, match="the output of Function for a sample depends on the others in its batch"):
        differentiate(with_function(function), np.ones((1, 8)))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # nor does torch batch it
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (bags, "a training step of Function cannot be differentiated: .*derivative for .*embedding_bag_backward.* not"),
        (torch.Tensor.detach, "cannot be differentiated: .* does not require grad"),
        (lambda h: h if h[0].sum().item() > 100 else 2 * h, r"cannot be differentiated: vmap: .*\.item\(\)"),
    ],
)
def test_an_operation_without_a_derivative_is_told_before_the_run(function, message, monkeypatch):
    monkeypatch.setattr(sweep, "run_then_reverse", None)
    with pytest.raises(ValueError, match=message):
        differentiate(with_function(function), np.ones((1, 8)))


@pytest.mark.parametrize(
    "task",
    [
        attention(0.0),
        encoder(0.0),
        with_layer(nn.Dropout(0.0)),
        with_architecture(lambda: nn.Sequential(nn.Linear(64, 10), nn.BatchNorm1d(10), nn.Dropout(0.5)).eval()),
    ],
)
def test_layers_that_draw_nothing_and_couple_nothing_are_differentiated(task):
    weights = 0.1 + 0.8 * some_weights(1, 8)
    expected = central_differences(task, weights)
    np.testing.assert_allclose(differentiate(task, weights).gradients, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(8), r"shape \[m, 8\], got \[8\]"),
        (np.ones((2, 9)), r"shape \[m, 8\], got \[2, 9\]"),
        (np.full((1, 8), 1.5), r"lie in \[0, 1\], got 1.5 to 1.5"),
        (np.full((1, 8), np.nan), r"lie in \[0, 1\]"),
    ],
)
def test_weights_out_of_range_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        differentiate(small_task(), weights)
