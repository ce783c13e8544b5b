"""Derivatives at random coalitions: unbiased where a derivative tells the difference, with honest errors."""

import numpy as np
import pytest

from baselines import InterruptedEstimateWarning, exact_shapley, rank_stability, stderr_below
from inrun_bench.adjoint import Storage, coalition_gradient_shapley, coalitions, few_run_shapley
from inrun_bench.adjoint.coalitions import _weights
from inrun_bench.adjoint.relaxed_game import RelaxedGame
from tests.inrun_bench.adjoint.small import quadratic_task, small_task


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0])
def test_each_draw_is_exact_where_the_utility_is_quadratic(spread):
    task = quadratic_task()
    found = coalition_gradient_shapley(task, 16, spread=spread, rng=0)
    np.testing.assert_allclose(found.values, exact_shapley(task.trajectory_game()).values, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.stderr, 0.0, atol=1e-12)


def test_the_diagonal_is_the_spread_of_zero():
    task = small_task("wine-logreg")
    expected = few_run_shapley(task, 8).values
    found = coalition_gradient_shapley(task, 320, spread=0.0, rng=0)
    assert (np.abs(found.values - expected) < 5 * found.stderr).all()


def test_standard_errors_are_those_seen_among_seeds():
    task = small_task("iris-logreg", n=6)
    found = [coalition_gradient_shapley(task, 80, spread=1.0, rng=seed) for seed in range(40)]
    seen = np.std([f.values for f in found], axis=0, ddof=1)
    claimed = np.sqrt(np.mean([f.stderr**2 for f in found], axis=0))
    np.testing.assert_allclose(claimed, seen, rtol=0.5)  # a deviation of 40 is known to 11 %, and six are asked
    assert 0.8 < np.mean(claimed / seen) < 1.25


@pytest.mark.parametrize("n", [1, 5, 6])
def test_every_size_comes_equally_often_and_every_player_half_of_the_time(n):
    rng = np.random.default_rng(0)
    members = np.array([_weights(rng, n, 1.0) for _ in range(4000)])  # [draws, 8, n]
    assert set(np.unique(members)) == {0.0, 1.0}
    shares = np.bincount(members.sum(2).astype(int).ravel(), minlength=n + 1) / members[..., 0].size
    np.testing.assert_allclose(shares, 1 / (n + 1), atol=0.015)
    np.testing.assert_array_equal(members.mean(axis=1), np.full((4000, n), 0.5))


def test_each_draw_has_a_pair_from_each_quarter_of_the_sizes_up_to_a_half():
    rng = np.random.default_rng(0)
    levels = np.array([_weights(rng, 3, 0.0)[:, 0] for _ in range(100)])  # [draws, 8]
    assert (np.sort(np.floor(8 * levels), axis=1) == np.arange(8)).all()
    np.testing.assert_allclose(levels[:, 4:], 1 - levels[:, :4])


def test_in_between_weights_lie_between_the_diagonal_and_the_coalition():
    diagonal, between, corner = (_weights(np.random.default_rng(0), 7, c) for c in (0.0, 0.25, 1.0))
    np.testing.assert_allclose(between, 0.75 * diagonal + 0.25 * corner)
    assert (diagonal == diagonal[:, :1]).all()


def test_a_seed_gives_the_same_values_whatever_is_differentiated_at_a_time():
    task = small_task("iris-logreg")
    one = coalition_gradient_shapley(task, 24, rng=4)
    few = coalition_gradient_shapley(task, 24, rng=4, storage=Storage("recomputed", memory_bytes=30_000))
    np.testing.assert_allclose(one.values, few.values, rtol=1e-10)
    assert not np.array_equal(one.values, coalition_gradient_shapley(task, 24, rng=5).values)


def test_groups_are_players():
    task, groups = quadratic_task(), np.array([0, 2, 1, 1, 0, 2, 2, 2])
    expected = few_run_shapley(task, 1, groups=groups).values
    found = coalition_gradient_shapley(task, 8, groups=groups, rng=0)
    np.testing.assert_allclose(found.values, expected, rtol=1e-9)


def test_rules_stop_it():
    task = small_task("iris-logreg")
    found = coalition_gradient_shapley(task, None, stop=stderr_below(3e-3), rng=0)
    assert found.stderr.max() < 3e-3
    assert found.evaluations == found.parameters["coalitions"] < 8000
    assert found.halves.shape == (2, 8)
    ranked = coalition_gradient_shapley(task, 4000, stop=rank_stability(0.8), rng=0)
    assert ranked.reliability() >= 0.8
    assert ranked.evaluations < 4000


def test_interrupted_it_has_the_draws_before(monkeypatch):
    task = small_task("iris-logreg", n=6)
    differentiate, calls = RelaxedGame.differentiate, []

    def interrupted(self, weights):
        calls.append(len(weights))
        if len(calls) > 2:
            raise KeyboardInterrupt
        return differentiate(self, weights)

    monkeypatch.setattr(coalitions, "DRAWS_AT_A_TIME", 2)
    with monkeypatch.context() as patch:
        patch.setattr(RelaxedGame, "differentiate", interrupted)
        with pytest.warns(InterruptedEstimateWarning, match="of the draws made so far, 4, from 32 evaluated"):
            found = coalition_gradient_shapley(task, 400, rng=0)
    expected = coalition_gradient_shapley(task, 32, rng=0)
    for name in ("values", "stderr", "halves"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.evaluations == found.parameters["coalitions"] == 32
    assert found.parameters == {**expected.parameters, "interrupted": True}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coalitions": 12}, "coalitions must be a multiple of 8, those of one draw, got 12"),
        ({"coalitions": None}, "give a budget"),
        ({"spread": 1.5}, r"spread must lie in \[0, 1\], got 1.5"),
        ({"rng": -1}, "rng must not be negative"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        coalition_gradient_shapley(small_task(), **options)
