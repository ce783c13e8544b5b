import numpy as np
import pytest

from inrun_bench.attribution import Entry, Ledger


@pytest.fixture
def ledger():
    rng = np.random.default_rng(0)
    ledger = Ledger(20)
    for _ in range(6):
        index = rng.permutation(20)[:8]
        ledger.record(Entry(index, rng.standard_normal(8), optimizer=rng.standard_normal(), drop=rng.standard_normal()))
    return ledger


def test_books_balance(ledger):
    accounts = ledger.accounts
    assert accounts["samples"] + accounts["optimizer"] + accounts["residual"] == pytest.approx(accounts["drop"])
    assert ledger.values.sum() == pytest.approx(accounts["samples"])
    assert accounts["drop"] == pytest.approx(sum(entry.drop for entry in ledger.steps))


def test_groups_split_every_step(ledger):
    labels = np.array(["cat", "dog", "bird", "fish"])[np.arange(20) % 4]
    groups = ledger.groups(labels)
    assert set(groups) == {"cat", "dog", "bird", "fish"}
    np.testing.assert_allclose(sum(groups.values()), [entry.scores.sum() for entry in ledger.steps])
    for name, by_step in groups.items():
        assert by_step.sum() == pytest.approx(ledger.values[labels == name].sum())


def test_groups_need_a_label_for_every_sample(ledger):
    with pytest.raises(ValueError, match=r"each of 20 samples, got \(3,\)"):
        ledger.groups([1, 2, 3])


def test_values_are_a_copy(ledger):
    ledger.values[:] = 0
    assert ledger.values.any()
