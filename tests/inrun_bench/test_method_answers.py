"""A method that returns something else than a valuation of the task is told what to return."""

import numpy as np
import pytest
import torch

import tasks
from baselines import Valuation
from inrun_bench.methods import METHODS, valued

SEED = np.random.SeedSequence(0)
TASK = tasks.load("iris-logreg")  # 16 training samples, 50 for validation, 60 for test


def valuation(values):
    return Valuation(values, stderr=None, evaluations=1, seconds=0.0, method="mine")


@pytest.fixture
def answer(monkeypatch):
    def of(method):
        monkeypatch.setitem(METHODS._all(), "mine", method)
        return valued("mine", TASK, SEED)

    return of


NO_VALUATION = {
    "an array": (
        np.zeros(16),
        r"got ndarray; wrap values as Valuation\(values, .*method='mine'\), .* 16 training samples",
    ),
    "integers": (np.zeros(16, dtype=int), "got ndarray; wrap values as"),
    "a wrong length": (np.zeros(15), r"got ndarray; .* in their order, which must have shape \(16,\), and not \(15,\)"),
    "two axes": (np.zeros((16, 2)), r"got ndarray; .* which must have shape \(16,\), and not \(16, 2\)"),
    "a list": ([0.0] * 15, r"got list; .* which must have shape \(16,\), and not \(15,\)"),
    "a tensor": (torch.zeros(16, 1), r"got Tensor; .* which must have shape \(16,\), and not \(16, 1\)"),
    "nothing": (None, "got NoneType; wrap values as"),
    "a number": (0.5, "got float; wrap values as"),
    "a mapping": ({0: 1.0}, "got dict; wrap values as"),
}


@pytest.mark.parametrize(("thing", "message"), NO_VALUATION.values(), ids=NO_VALUATION)
def test_what_is_no_valuation_is_refused(answer, thing, message):
    with pytest.raises(TypeError, match=rf"method 'mine' must return a baselines\.Valuation, {message}"):
        answer(lambda _task, _seed: thing)


WRONG_VALUES = {
    "too few": (np.zeros(15), r"got shape \(15,\) .*value i is that of training sample i of task 'iris-logreg'$"),
    "none": (np.zeros(0), r"got shape \(0,\) with 0 not finite"),
    "of validation samples": (np.zeros(50), r"got shape \(50,\) .*there are as many samples in its validation set"),
    "of test samples": (np.zeros(60), r"got shape \(60,\) .*there are as many samples in its test set"),
    "a NaN": (np.r_[np.zeros(15), np.nan], r"with 1 not finite: nan of sample 15; give these a value, or raise"),
    "many": (np.full(16, -np.inf), r"with 16 not finite: -inf of sample 0, -inf of sample 1, .* 4, \.\.\.; give"),
}


@pytest.mark.parametrize(("values", "message"), WRONG_VALUES.values(), ids=WRONG_VALUES)
def test_values_that_are_not_of_the_training_samples_are_refused(answer, values, message):
    with pytest.raises(ValueError, match=f"method 'mine' must return 16 finite values, .*{message}"):
        answer(lambda _task, _seed: valuation(values))


def test_a_valuation_of_another_task_is_refused(answer):
    with pytest.raises(ValueError, match=r"must return 16 finite values, got shape \(100,\)"):
        answer(lambda _task, seed: METHODS["knn"](tasks.load("breast-cancer-logreg"), seed))


def test_whole_values_are_values(answer):
    found = answer(lambda _task, _seed: valuation(np.arange(16)))
    assert found.values.dtype == np.float64
    np.testing.assert_array_equal(found.values, np.arange(16))


def test_what_a_method_raises_stays_what_it_is_and_tells_where(answer):
    def careless(task, seed):
        raise KeyError("weights")

    with pytest.raises(KeyError, match="weights") as raised:
        answer(careless)
    assert raised.value.__notes__ == ["in method 'mine', called as method(task, seed) with task 'iris-logreg', seed 0"]


def test_a_method_of_other_arguments_is_told_how_it_is_called(answer):
    with pytest.raises(TypeError, match="positional argument") as raised:
        answer(lambda task: valuation(np.zeros(16)))
    assert "called as method(task, seed)" in raised.value.__notes__[0]
