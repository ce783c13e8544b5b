"""The task of the standard library's text: sequences, whose targets are sequences, from domains that have names."""

import dataclasses
import re
import sysconfig

import numpy as np
import pytest
import torch

import tasks
from baselines import GroupedGame
from inrun_bench.adjoint import Storage, few_run_shapley
from inrun_bench.methods import METHODS
from tasks.catalog import stdlib_gpt
from tasks.data import exchange_targets
from tests.tasks.test_trajectory_game import judged_alone, random_coalitions, trained_alone

NAME = "stdlib-gpt"
PARTS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def task():
    return tasks.load(NAME)


def short(n_train=16, n_judges=6, dtype=torch.float32, **changes):
    """The same task with few sequences, the first bytes of each, and two epochs."""
    task = tasks.load(NAME, n_train=n_train, dtype=dtype)
    cut = {part: tasks.Split(s.x[:n_judges, :12], s.y[:n_judges, :12]) for part in PARTS for s in [getattr(task, part)]}
    cut["train"] = tasks.Split(task.train.x[:, :12], task.train.y[:, :12])
    recipe = dataclasses.replace(task.recipe, batch_size=4, epochs=2, **changes)
    return dataclasses.replace(task, recipe=recipe, **cut)


def test_samples_are_windows_of_bytes_and_targets_the_bytes_that_follow():
    x, y, domains = stdlib_gpt.dataset()
    assert x.shape == y.shape == (len(domains), stdlib_gpt.CONTEXT)
    np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
    assert x.min() >= 0
    assert x.max() < stdlib_gpt.BYTES
    windows = np.concatenate([x, y[:, -1:]], axis=1).astype(np.uint8)
    for domain, name in enumerate(stdlib_gpt.DOMAINS):
        text = stdlib_gpt.source_of(name).encode()
        assert all(window.tobytes() in text for window in windows[domains == domain][::10])


def test_tokens_stay_as_they_are_in_any_dtype(task):
    double = tasks.load(NAME, dtype=torch.float64)
    for part in PARTS:
        split, other = getattr(task, part), getattr(double, part)
        assert split.x.dtype == split.y.dtype == torch.int64
        assert torch.equal(split.x, other.x)
        assert torch.equal(split.y, other.y)
    assert {p.dtype for p in task.model().parameters()} == {torch.float32}
    assert {p.dtype for p in double.model().parameters()} == {torch.float64}


def test_the_split_is_that_of_the_seed_and_keeps_the_domains_shares(task):
    again, other = tasks.load(NAME), tasks.load(NAME, 1)
    assert torch.equal(task.train.x, again.train.x)
    assert not torch.equal(task.train.x, other.train.x)
    np.testing.assert_array_equal(task.domains, again.domains)
    assert np.bincount(task.domains).tolist() == [task.n_train // 8] * 8
    assert len(tasks.CATALOG[NAME].domains) == 8


def test_domains_say_where_samples_come_from(task):
    x, _, domains = stdlib_gpt.dataset()
    of = {row.tobytes(): domain for row, domain in zip(x, domains, strict=True)}
    assert [of[row.tobytes()] for row in task.train.x.numpy()] == task.domains.tolist()
    assert tasks.load("digits-mlp").domains is None


def test_wrong_targets_are_those_of_other_sequences(task):
    clean = tasks.load(NAME, flipped=0.0)
    changed = (task.train.y != clean.train.y).any(1).numpy()
    np.testing.assert_array_equal(np.flatnonzero(changed), task.flipped)
    assert len(task.flipped) == round(0.1 * task.n_train)
    known = {row.tobytes() for row in clean.train.y.numpy()}
    assert all(row.tobytes() in known for row in task.train.y.numpy())
    assert torch.equal(task.train.x, clean.train.x)
    assert torch.equal(task.validation.y, clean.validation.y)


def test_where_all_sequences_are_the_same_none_can_be_made_wrong():
    with pytest.raises(ValueError, match=r"all 4 training targets are \[1, 2\]: none can be made wrong"):
        exchange_targets(np.tile([1, 2], (4, 1)), 0.5, np.random.SeedSequence(0))


@pytest.mark.parametrize("recipe", list(tasks.CATALOG[NAME].recipes))
def test_a_training_learns_more_than_how_often_bytes_occur(recipe):
    task = tasks.load(NAME, recipe=recipe)
    counts = np.bincount(task.train.y.flatten(), minlength=task.n_classes) + 0.1
    frequencies = torch.from_numpy(np.log(counts / counts.sum()))
    unigram = -frequencies[task.validation.y].mean().item()
    model = task.model()
    optimizer = task.optimizer(model)
    for index in task.batches():
        task.train_on(model, optimizer, index)
    with torch.no_grad():
        loss = task.loss(model, task.validation).item()
    assert loss < unigram - 0.3


def test_the_game_is_that_of_a_training_loop():
    task = short(dtype=torch.float64)
    coalitions = random_coalitions(task.n_train, m=3)
    expected = [judged_alone(task, trained_alone(task, coalition), "validation") for coalition in coalitions]
    np.testing.assert_allclose(task.trajectory_game().measure(coalitions), expected, rtol=1e-9)


def test_a_step_game_is_worth_what_its_step_gains():
    task = short(dtype=torch.float64)
    model = task.model()
    optimizer, index = task.optimizer(model), task.batches()[0]
    game = tasks.StepGame(task, model, optimizer, index)
    before = task.loss(model, task.validation).item()
    task.train_on(model, optimizer, index)
    (whole,) = game(np.ones((1, len(index)), dtype=bool))
    assert whole == pytest.approx(before - task.loss(model, task.validation).item(), rel=1e-9)


def test_derivatives_are_those_of_the_game_and_a_domains_is_the_sum_of_its_samples():
    task = short(dtype=torch.float64)
    alone, domains = (few_run_shapley(task, 2, groups=groups) for groups in (None, task.domains))
    np.testing.assert_allclose(domains.values, np.bincount(task.domains, alone.values), rtol=1e-9)
    empty, whole = GroupedGame(task.trajectory_game(), task.domains)(np.repeat([[False], [True]], 8, axis=1))
    assert domains.parameters["gain"] == pytest.approx(whole - empty, rel=1e-9)


def test_memory_is_bounded_and_a_bound_changes_nothing():
    task = short()
    with pytest.raises(ValueError, match=r"memory_bytes must be at least \d+, .* got 1000") as refusal:
        few_run_shapley(task, 2, storage=Storage(memory_bytes=1000))
    least = int(re.search(r"at least (\d+)", str(refusal.value))[1])
    free, bounded = (few_run_shapley(task, 2, storage=Storage(memory_bytes=bytes_)) for bytes_ in (None, least))
    assert bounded.parameters["states"] == "recomputed"
    assert bounded.parameters["stored_bytes"] < min(least, free.parameters["stored_bytes"])
    np.testing.assert_allclose(bounded.values, free.values, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", ["inrun-first", "inrun-integrated"])
def test_in_run_values_account_for_the_drop_of_the_loss(method):
    found = METHODS[method](short(), np.random.SeedSequence(0))
    accounts = found.parameters
    assert len(found.values) == 16
    assert accounts["samples"] + accounts["optimizer"] + accounts["residual"] == pytest.approx(accounts["drop"])
    assert found.values.sum() == pytest.approx(accounts["samples"], rel=1e-5)


def test_a_library_without_its_source_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "__init__.py").write_text("few words")
    with pytest.raises(ValueError, match=r"the source of 'xml' has 9 bytes .* stdlib-gpt takes \d+; it needs a Python"):
        stdlib_gpt._windows("xml")


def test_tests_are_no_text(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    for path in ("xml/b.py", "xml/a/c.py", "xml/test/d.py", "xml.py", "json/e.py"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(path)
    assert stdlib_gpt.source_of("xml") == "xml.pyxml/a/c.pyxml/b.py"
