"""Samples made bad: in the places that are named, in the way that is named, and nowhere else."""

import dataclasses

import numpy as np
import pytest
import torch

import tasks
from tasks.corruption import CORRUPTIONS, NOISE, corrupt

NAMES = ["iris-logreg", "diabetes-ridge", "mnist-cnn"]


def clean(name, **options):
    return tasks.load(name, flipped=0.0, **options)


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_named_is_bad_and_nothing_else_changes(name, kind):
    before, found = clean(name), corrupt(clean(name), kind, 0.25)
    after, bad = found.task, np.isin(np.arange(before.n_train), found.samples)
    assert len(found.samples) == round(0.25 * before.n_train) == bad.sum()
    assert (np.diff(found.samples) > 0).all()
    for part in ("validation", "test"):
        torch.testing.assert_close(getattr(after, part).x, getattr(before, part).x, rtol=0, atol=0)
        torch.testing.assert_close(getattr(after, part).y, getattr(before, part).y, rtol=0, atol=0)
    same_x = (after.train.x == before.train.x).flatten(1).all(1).numpy()
    same_y = (after.train.y == before.train.y).numpy()
    assert (same_x & same_y)[~bad].all()
    assert not (same_x & same_y)[bad].any()
    if kind == "labels":
        assert same_x.all()
    elif kind != "copies":
        assert same_y.all()
    torch.testing.assert_close(after.model().state_dict(), before.model().state_dict(), rtol=0, atol=0)
    assert [b.tolist() for b in after.batches()] == [b.tolist() for b in before.batches()]


def test_a_copy_is_its_original_and_an_original_no_copy():
    found = corrupt(clean("iris-logreg"), "copies", 0.5)
    train = found.task.train
    assert (train.x[found.samples] == train.x[found.originals]).all()
    assert (train.y[found.samples] == train.y[found.originals]).all()
    assert len({*found.samples.tolist(), *found.originals.tolist()}) == 2 * len(found.samples)


def test_noise_is_so_many_times_the_spread_of_a_feature():
    before = clean("mnist-mlp", n_train=2000)
    found = corrupt(before, "noise", 0.5)
    spread = before.train.x.std(0, correction=0)
    added = (found.task.train.x - before.train.x)[found.samples]
    assert (added[:, spread == 0] == 0).all()
    share = (added / spread)[:, spread > 0].std()
    assert abs(float(share) / NOISE - 1) < 0.01


def test_outliers_keep_the_spread_of_every_feature_and_lose_what_holds_them_together():
    before = clean("diabetes-ridge")
    found = corrupt(before, "outliers", 0.96)
    x, own = found.task.train.x[found.samples], before.train.x
    for feature in range(own.shape[1]):
        assert set(x[:, feature].tolist()) <= set(own[:, feature].tolist())
    strongest = np.abs(np.corrcoef(own.T.numpy()) - np.eye(own.shape[1])).max()
    assert strongest > 0.85
    assert np.abs(np.corrcoef(x.T.numpy()) - np.eye(own.shape[1])).max() < 0.3


def test_the_seed_of_the_task_decides_and_nothing_else():
    one, again, other = (corrupt(clean("iris-logreg", seed=s), "outliers", 0.25) for s in (0, 0, 1))
    torch.testing.assert_close(one.task.train.x, again.task.train.x, rtol=0, atol=0)
    assert one.samples.tolist() != other.samples.tolist()


def test_wrong_labels_keep_what_was_changed_in_the_run():
    task = clean("iris-logreg").rerun(7)
    task = dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, epochs=2))
    after = corrupt(task, "labels", 0.25).task
    assert (after.recipe, after.run_seed, after.n_train) == (task.recipe, 7, task.n_train)


@pytest.mark.parametrize(
    ("kind", "share", "message"),
    [
        ("nois", 0.2, "did you mean 'noise'"),
        ("noise", 0.0, "share must make some"),
        ("noise", 1.0, "share must make some"),
        ("noise", 0.01, "share must make some"),
        ("copies", 0.6, "at most 0.5"),
    ],
)
def test_what_cannot_be_is_refused(kind, share, message):
    with pytest.raises(ValueError, match=message):
        corrupt(clean("iris-logreg"), kind, share)


def test_tokens_have_no_noise_and_a_task_of_parts_no_true_targets():
    text = tasks.load("stdlib-gpt", n_train=40)
    for kind in ("noise", "outliers"):
        with pytest.raises(ValueError, match="tokens"):
            corrupt(text, kind, 0.2)
    assert len(corrupt(text, "copies", 0.2).samples) == 8
    with pytest.raises(ValueError, match="put together from its parts"):
        corrupt(dataclasses.replace(text, spec=None), "labels", 0.2)


def test_copies_say_of_which_sample_of_the_dataset_they_are_and_which_targets_are_wrong():
    before = tasks.load("iris-logreg", flipped=0.2)
    found = corrupt(before, "copies", 0.4)
    source = np.arange(before.n_train)
    source[found.samples] = found.originals
    np.testing.assert_array_equal(found.task.rows, before.rows[source])
    assert set(found.task.flipped) == set(np.flatnonzero(np.isin(source, before.flipped)))


def test_what_would_be_lost_or_would_not_be_bad_is_refused():
    changed = corrupt(clean("iris-logreg"), "noise", 0.2).task
    with pytest.raises(ValueError, match="no longer those that it was built of"):
        corrupt(changed, "labels", 0.2)
    task = clean("iris-logreg")
    constant = dataclasses.replace(task, train=tasks.Split(torch.ones_like(task.train.x), task.train.y))
    for kind in ("noise", "outliers"):
        with pytest.raises(ValueError, match="stay as they are"):
            corrupt(constant, kind, 0.25)
    with pytest.raises(ValueError, match=r"at most 0.5"):
        corrupt(clean("iris-logreg", n_train=7), "copies", 0.5)
