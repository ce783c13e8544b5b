import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inrun_bench.attribution import Entry, Ledger

N_SAMPLES = 12
LABELS = np.array(["cat", "dog", "bird"])[np.arange(N_SAMPLES) % 3]
BY_PARITY = np.arange(N_SAMPLES) % 2


def entries(seed, n_steps):
    """Return steps with batches of all sizes, none included, which hold some samples several times."""
    rng = np.random.default_rng(seed)
    steps = []
    for size in rng.integers(0, 9, n_steps):
        scores = rng.standard_normal(size) * 10.0 ** rng.integers(-9, 3, size)
        optimizer, drop = rng.standard_normal(2)
        steps.append(Entry(rng.integers(0, N_SAMPLES, size), scores, float(optimizer), float(drop)))
    return steps


def record_all(ledger, steps):
    for entry in steps:
        ledger.record(entry)
    return ledger


def through_a_file(state):
    """Return the state as a checkpoint brings it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same_pages(one, other):
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        assert mine.index.dtype == theirs.index.dtype == np.int64
        assert mine.scores.dtype == theirs.scores.dtype == np.float64
        assert mine.index.tobytes() == theirs.index.tobytes()
        assert mine.scores.tobytes() == theirs.scores.tobytes()
        assert (mine.optimizer, mine.drop) == (theirs.optimizer, theirs.drop)


def assert_same(one, other):
    """Hold two ledgers against each other, to the last bit."""
    assert one.values.tobytes() == other.values.tobytes()
    assert one.accounts == other.accounts
    for mine, theirs in (
        (one.by_step, other.by_step),
        (one.groups(), other.groups()),
        (one.groups(BY_PARITY), other.groups(BY_PARITY)),
    ):
        assert list(mine) == list(theirs)
        assert all(mine[name].tobytes() == theirs[name].tobytes() for name in mine)
    assert_same_pages(one.steps, other.steps)


@pytest.fixture
def ledger():
    rng = np.random.default_rng(0)
    ledger = Ledger(20)
    for _ in range(6):
        index = rng.permutation(20)[:8]
        ledger.record(Entry(index, rng.standard_normal(8), optimizer=rng.standard_normal(), drop=rng.standard_normal()))
    return ledger


# --- accounts ---


def test_books_balance(ledger):
    accounts = ledger.accounts
    assert accounts["samples"] + accounts["optimizer"] + accounts["residual"] == pytest.approx(accounts["drop"])
    assert ledger.values.sum() == pytest.approx(accounts["samples"])
    assert accounts["drop"] == pytest.approx(sum(entry.drop for entry in ledger.steps))


def test_books_balance_at_every_step(ledger):
    by_step = ledger.by_step
    assert {name: len(amounts) for name, amounts in by_step.items()} == dict.fromkeys(ledger.accounts, 6)
    np.testing.assert_allclose(by_step["samples"] + by_step["optimizer"] + by_step["residual"], by_step["drop"])
    for number, entry in enumerate(ledger.steps):
        assert by_step["samples"][number] == entry.scores.sum()
        assert by_step["residual"][number] == entry.residual
        assert (by_step["optimizer"][number], by_step["drop"][number]) == (entry.optimizer, entry.drop)
    for name, total in ledger.accounts.items():
        assert by_step[name].sum() == pytest.approx(total)


def test_a_sample_that_occurs_twice_gets_both_scores():
    ledger = Ledger(3, labels=["a", "b", "b"])
    ledger.record(Entry(np.array([2, 0, 2]), np.array([1.0, 2.0, 4.0]), optimizer=0.0, drop=7.0))
    assert ledger.values.tolist() == [2.0, 0.0, 5.0]
    assert {name: shares.tolist() for name, shares in ledger.groups().items()} == {"a": [2.0], "b": [5.0]}


def test_values_are_a_copy(ledger):
    ledger.values[:] = 0
    assert ledger.values.any()
    ledger.by_step["drop"][:] = 0
    assert ledger.by_step["drop"].any()


def test_the_ledger_keeps_copies_in_double_precision():
    index, scores = np.array([1, 0], np.int32), np.array([0.1, 0.2], np.float32)
    ledger = Ledger(2)
    ledger.record(Entry(index, scores, optimizer=np.float32(0.5), drop=torch.tensor(1.0)))
    index[:], scores[:] = 0, 0
    (entry,) = ledger.steps
    assert (entry.index.dtype, entry.scores.dtype) == (np.int64, np.float64)
    assert (type(entry.optimizer), type(entry.drop)) == (float, float)
    np.testing.assert_array_equal(ledger.values, np.array([0.2, 0.1], np.float32).astype(np.float64))


@pytest.mark.parametrize(
    ("index", "scores", "message"),
    [
        ([0, 1], [1.0], r"one score a sample: got index \(2,\) and scores \(1,\)"),
        ([[0], [1]], [[1.0], [2.0]], r"one score a sample: got index \(2, 1\)"),
        ([0, 20], [1.0, 2.0], r"index 20 is out of range: samples are numbered 0 \.\. 19"),
        ([0, -1], [1.0, 2.0], r"index -1 is out of range"),
    ],
)
def test_an_entry_that_makes_no_sense_is_not_booked(ledger, index, scores, message):
    before = ledger.state_dict()
    with pytest.raises(ValueError, match=message):
        ledger.record(Entry(np.array(index), np.array(scores), optimizer=0.0, drop=0.0))
    torch.testing.assert_close(ledger.state_dict(), before, rtol=0, atol=0)


def test_indices_are_whole_numbers(ledger):
    with pytest.raises(TypeError, match="float64"):
        ledger.record(Entry(np.array([0.5]), np.array([1.0]), optimizer=0.0, drop=0.0))


def test_a_step_that_its_pages_cannot_take_is_not_booked():
    class FullPages(list):
        def append(self, _):
            raise OSError("no space left on device")

    ledger = Ledger(N_SAMPLES, labels=LABELS, pages=FullPages())
    with pytest.raises(OSError, match="no space"):
        record_all(ledger, entries(0, 1))
    assert_same(ledger, Ledger(N_SAMPLES, labels=LABELS))


# --- groups ---


def test_groups_split_every_step(ledger):
    labels = np.array(["cat", "dog", "bird", "fish"])[np.arange(20) % 4]
    groups = ledger.groups(labels)
    assert set(groups) == {"cat", "dog", "bird", "fish"}
    np.testing.assert_allclose(sum(groups.values()), [entry.scores.sum() for entry in ledger.steps])
    for name, by_step in groups.items():
        assert by_step.sum() == pytest.approx(ledger.values[labels == name].sum())


@settings(max_examples=20)
@given(st.integers(0, 99), st.integers(0, 6))
def test_groups_kept_on_the_way_are_those_of_the_pages(seed, n_steps):
    ledger = record_all(Ledger(N_SAMPLES, labels=LABELS), entries(seed, n_steps))
    kept, read = ledger.groups(), ledger.groups(LABELS)
    assert list(kept) == list(read) == ["bird", "cat", "dog"]
    assert all(kept[name].tobytes() == read[name].tobytes() and kept[name].shape == (n_steps,) for name in kept)


def test_groups_need_a_label_for_every_sample(ledger):
    with pytest.raises(ValueError, match=r"each of 20 samples, got \(3,\)"):
        ledger.groups([1, 2, 3])
    with pytest.raises(ValueError, match=r"each of 20 samples, got \(3,\)"):
        Ledger(20, labels=[1, 2, 3])


def test_groups_need_labels(ledger):
    with pytest.raises(ValueError, match=r"no labels of its own; pass labels= to groups\(\), or to Ledger\(\)"):
        ledger.groups()


# --- checkpoints ---


@settings(max_examples=30)
@given(seed=st.integers(0, 99), n_before=st.integers(0, 6), n_lost=st.integers(0, 3), n_after=st.integers(0, 6))
def test_a_resumed_ledger_is_that_of_an_uninterrupted_run(seed, n_before, n_lost, n_after):
    steps = entries(seed, n_before + n_lost + n_after)
    first = record_all(Ledger(N_SAMPLES, labels=LABELS), steps[:n_before])
    checkpoint = first.state_dict()
    record_all(first, steps[n_before : n_before + n_lost])  # goes on, dies; the checkpoint does not notice
    resumed = Ledger(N_SAMPLES, labels=LABELS)
    resumed.load_state_dict(through_a_file(checkpoint))
    record_all(resumed, steps[n_before:])
    assert_same(resumed, record_all(Ledger(N_SAMPLES, labels=LABELS), steps))


def test_a_ledger_goes_back_to_its_own_checkpoint_as_often_as_asked():
    steps = entries(1, 6)
    ledger = record_all(Ledger(N_SAMPLES, labels=LABELS), steps[:2])
    checkpoint = ledger.state_dict()
    for _ in range(2):
        record_all(ledger, steps[2:])
        ledger.load_state_dict(checkpoint)
        assert_same(ledger, record_all(Ledger(N_SAMPLES, labels=LABELS), steps[:2]))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Ledger(13), "the checkpoint's ledger has 12 samples, this one 13; resume with the same training set"),
        (Ledger(12), "groups its samples in another way"),
        (Ledger(12, labels=BY_PARITY), "groups its samples in another way"),
    ],
)
def test_a_checkpoint_of_another_ledger_is_refused(other, message):
    checkpoint = record_all(Ledger(N_SAMPLES, labels=LABELS), entries(0, 3)).state_dict()
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(checkpoint)
    assert len(other.steps) == 0
