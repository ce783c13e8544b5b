"""Measures of values: laws that hold for any values, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tasks
from baselines import Valuation
from inrun_bench import agreement, detection, linear_datamodelling_score, removal_curve
from inrun_bench.metrics import agreement_stderr, bottom_overlap, scaled_rmse


class Additive:
    """Each player brings its worth, whoever else is there."""

    def __init__(self, worth):
        self.worth, self.n_players = worth, len(worth)

    def __call__(self, coalitions):
        return coalitions @ self.worth


CORRELATIONS = ("spearman", "pearson")
WORTH = np.array([3.0, -1.0, 0.5, 2.0, -2.0, 1.0, 0.1, -0.3, 4.0, -4.0])
VECTORS = st.lists(st.integers(-50, 50).map(float), min_size=10, max_size=10, unique=True).map(np.array)


@given(VECTORS, VECTORS)
def test_agreement_is_symmetric_and_knows_no_scale(one, other):
    found, turned = agreement(one, other), agreement(other, 3 * one + 1)
    for name in ("spearman", "kendall", "pearson"):
        assert found[name] == pytest.approx(turned[name], abs=1e-12)
    assert agreement(one, -other)["spearman"] == pytest.approx(-found["spearman"], abs=1e-12)


@given(VECTORS, VECTORS)
def test_what_is_lowest_is_highest_upside_down(one, other):
    assert bottom_overlap(one, other) == agreement(-one, -other)["top10_overlap"]
    assert bottom_overlap(one, one) == 1


@given(VECTORS.filter(np.any), VECTORS.filter(np.any), st.floats(0.1, 10))
def test_after_the_best_scale_no_other_leaves_less(one, other, scale):
    found = scaled_rmse(one, other)
    assert 0 <= found <= 1 + 1e-12
    assert found <= np.linalg.norm(scale * one - other) / np.linalg.norm(other) + 1e-12
    assert scaled_rmse(scale * one, other) == pytest.approx(found, abs=1e-7)
    cosine = max(one @ other / np.linalg.norm(one) / np.linalg.norm(other), 0)
    assert found == pytest.approx(np.sqrt(max(1 - cosine**2, 0)), abs=1e-6)


def test_values_that_tell_the_opposite_leave_the_whole_reference():
    assert scaled_rmse(-WORTH, WORTH) == 1
    assert scaled_rmse(np.zeros(10), WORTH) == 1
    with pytest.raises(ValueError, match="reference must not be zero everywhere"):
        scaled_rmse(WORTH, np.zeros(10))


def test_errors_over_samples_are_those_of_other_samples():
    """The standard error that one set of samples tells is the spread over many sets of as many."""
    rng = np.random.default_rng(0)

    def sets(many):
        x = rng.normal(size=(many, 100))
        return x, 0.8 * x + 0.6 * rng.normal(size=(many, 100))

    spread = {name: np.std([agreement(x, y)[name] for x, y in zip(*sets(400), strict=True)]) for name in CORRELATIONS}
    told = [agreement_stderr(x, y, rng=seed) for seed, (x, y) in enumerate(zip(*sets(40), strict=True))]
    for name in CORRELATIONS:
        assert np.mean([each[name] for each in told]) == pytest.approx(spread[name], rel=0.15)


def test_errors_over_samples_do_not_exist_where_nothing_agrees():
    assert all(np.isnan(error) for error in agreement_stderr(np.zeros(10), WORTH, rng=0).values())
    with pytest.raises(ValueError, match="resamples must be"):
        agreement_stderr(WORTH, WORTH, resamples=1)


@given(VECTORS, st.sets(st.integers(0, 9), min_size=1, max_size=9))
def test_detection_counts_pairs(values, wrong):
    mask = np.isin(np.arange(10), list(wrong))
    pairs = values[mask][:, None] < values[~mask]
    found = detection(values, sorted(wrong))
    assert found == detection(pd.Series(values), mask)
    assert found["auroc"] == pytest.approx(pairs.mean())
    assert found["share_wrong"] == len(wrong) / 10


def test_in_an_additive_game_its_worths_foretell_everything():
    game = Additive(WORTH)
    assert linear_datamodelling_score(game, WORTH, rng=0) == pytest.approx(1)
    assert linear_datamodelling_score(game, -WORTH, rng=0) == pytest.approx(-1)
    curve = removal_curve(game, WORTH, fractions=[0.0, 0.3])
    best, worst = np.sort(WORTH)[::-1][:3].sum(), np.sort(WORTH)[:3].sum()
    np.testing.assert_allclose(curve.top, [WORTH.sum(), WORTH.sum() - best])
    np.testing.assert_allclose(curve.bottom, [WORTH.sum(), WORTH.sum() - worst])
    assert curve.area == pytest.approx(0.3 * (best - worst) / 2)
    assert removal_curve(game, WORTH.tolist()).area == -removal_curve(game, -WORTH).area


def test_a_task_is_retrained_as_its_games_are():
    task = tasks.load("iris-logreg", seed=1)
    values = Valuation(np.arange(float(task.n_train)), None, 0, 0.0, "count")
    curve = removal_curve(task, values, fractions=[0.25, 0.5])
    game = task.trajectory_game("loss", "test")
    kept = np.ones((2, task.n_train), dtype=bool)
    kept[0, task.n_train - round(task.n_train / 4) :] = False
    kept[1, : task.n_train // 2] = False
    np.testing.assert_allclose([curve.top[0], curve.bottom[1]], game(kept))
    alone = removal_curve(task.conventional_game("loss", "test", seeds=2), values, fractions=[0.5])
    assert alone.top[0] != pytest.approx(curve.top[1])
    one, again = (linear_datamodelling_score(task, values, subsets=5, rng=rng) for rng in (0, 0))
    assert one == again
    assert linear_datamodelling_score(task, values, subsets=5, rng=1) != one


def test_constant_values_have_no_ranks():
    flat = np.ones(10)
    assert np.isnan(agreement(flat, WORTH)["spearman"])
    assert np.isnan(linear_datamodelling_score(Additive(WORTH), flat, rng=0))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: agreement(WORTH, WORTH[:9]),
            r"reference must have .* each of 10 samples, got shape \(9,\)",
        ),
        (lambda: agreement(WORTH[None], WORTH), r"values must have one number.*\(1, 10\)"),
        (lambda: agreement([1.0], [2.0]), "at least 2 samples, got 1"),
        (lambda: agreement([1.0, np.nan, np.inf], WORTH[:3]), r"values must be finite, got nan of sample 1 \(2 such\)"),
        (lambda: detection(WORTH, np.zeros(10, bool)), "some of the 10 samples, and not all, got 0"),
        (lambda: detection(WORTH, range(10)), "got 10"),
        (lambda: detection(WORTH, [10]), "numbers of samples within 0 .. 9"),
        (lambda: detection(WORTH, [-1]), "numbers of samples within 0 .. 9"),
        (lambda: detection(WORTH, np.ones(9, bool)), r"a mask, bool \[10\]"),
        (lambda: removal_curve(Additive(WORTH), WORTH[:4]), "each of 10 samples"),
        (lambda: removal_curve(Additive(WORTH), WORTH, fractions=[0.5, 0.2]), "ascend"),
        (lambda: removal_curve(Additive(WORTH), WORTH, fractions=[0.5, 1.0]), "ascend"),
        (lambda: linear_datamodelling_score(Additive(WORTH), WORTH, share=0.01), "share must leave some of the 10"),
        (lambda: linear_datamodelling_score(Additive(WORTH), WORTH, subsets=2), "subsets"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
