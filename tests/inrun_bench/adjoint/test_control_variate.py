"""The surrogate's closed form against enumeration, and unbiased values from the residual game."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baselines import InterruptedEstimateWarning, budget, complementary_shapley, exact_shapley, stderr_below
from inrun_bench.adjoint import control_variate_shapley
from inrun_bench.adjoint.checkpoints import AUTOMATIC
from inrun_bench.adjoint.relaxed_game import relaxed_game
from inrun_bench.adjoint.surrogate import SizeDependentAdditiveGame, taylor_surrogate
from tests.inrun_bench.adjoint.small import quadratic_task, small_task


def relaxed(task, utility="loss"):
    return relaxed_game(task, utility, "validation", None, AUTOMATIC, 0.0)


def all_coalitions(n):
    return (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(bool)


@given(n=st.integers(1, 7), seed=st.integers(0, 100))
def test_shapley_values_of_the_surrogate_are_those_of_enumeration(n, seed):
    rng = np.random.default_rng(seed)
    game = SizeDependentAdditiveGame(rng.normal(size=n + 1), rng.normal(size=(n + 1, n)))
    np.testing.assert_allclose(game.shapley(), exact_shapley(game).values, rtol=1e-9, atol=1e-12)


def test_the_surrogate_is_the_taylor_expansion_at_the_size_of_the_coalition():
    task = quadratic_task()  # where polynomials through two points are right, at any s
    game = relaxed(task)
    surrogate = taylor_surrogate(game, 2)
    coalitions = all_coalitions(8)
    sizes = coalitions.mean(axis=1, keepdims=True)
    runs = game.differentiate(np.repeat(sizes, 8, axis=1))
    expected = runs.utilities + np.sum(runs.gradients * (coalitions - sizes), axis=1)
    np.testing.assert_allclose(surrogate(coalitions), expected, rtol=1e-9)


def test_the_surrogate_follows_the_game():
    game = relaxed(small_task("wine-logreg"))
    coalitions = all_coalitions(8)
    utilities = game(coalitions)
    assert np.var(utilities - taylor_surrogate(game, 4)(coalitions)) < 0.05 * np.var(utilities)


@pytest.mark.parametrize("utility", ["loss", "expected-accuracy"])
def test_values_are_unbiased_and_errors_honest(utility):
    task = small_task("iris-logreg", n=6, learning_rate=1.0)
    exact = exact_shapley(relaxed(task, utility)).values
    found = [control_variate_shapley(task, budget=62, points=2, utility=utility, rng=seed) for seed in range(60)]
    errors = np.array([f.values - exact for f in found])
    seen = errors.std(axis=0, ddof=1)
    assert (np.abs(errors.mean(axis=0)) < 4 * seen / np.sqrt(60)).all()
    claimed = np.sqrt(np.mean([f.stderr**2 for f in found], axis=0))
    assert 0.8 < np.mean(claimed / seen) < 1.25
    for f in found:
        np.testing.assert_allclose(f.values.sum(), exact.sum(), rtol=1e-6)  # efficient, whatever was drawn


def test_less_is_left_to_sampling():
    task = small_task(n=12)
    with_surrogate = control_variate_shapley(task, budget=202, rng=0)
    without = complementary_shapley(task.trajectory_game(), budget=202, rng=0)
    assert np.mean(with_surrogate.stderr**2) < np.mean(without.stderr**2) / 5
    assert with_surrogate.evaluations == without.evaluations + 8


def test_a_stopping_rule_sees_the_values_themselves():
    seen = []
    found = control_variate_shapley(small_task(n=6), budget=400, rng=0, stop=lambda e: bool(seen.append(e)))
    assert len(seen) > 5
    assert [e.evaluations for e in seen[:2]] == [8 + 2 + 2 * e.draws for e in seen[:2]]  # runs, ends, pairs
    last = seen[-1]
    assert last.evaluations == found.evaluations
    for of_rule, of_valuation in (
        (last.values, found.values),
        (last.stderr, found.stderr),
        (last.halves, found.halves),
    ):
        np.testing.assert_array_equal(of_rule, of_valuation)
    shorter = control_variate_shapley(small_task(n=6), budget=seen[3].evaluations - 8, rng=0)
    np.testing.assert_allclose(seen[3].values, shorter.values, rtol=1e-9)


def test_interrupted_it_corrects_by_the_trainings_before():
    def rule(estimate):
        if estimate.draws > 20:
            raise KeyboardInterrupt
        return False

    task = small_task(n=6)
    with pytest.warns(InterruptedEstimateWarning, match="complementary_shapley was interrupted"):
        found = control_variate_shapley(task, budget=400, stop=rule, rng=0)
    expected = control_variate_shapley(task, budget=found.evaluations - 8, rng=0)
    assert 8 < found.evaluations == expected.evaluations < 100
    assert found.parameters["interrupted"]
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-9)
    np.testing.assert_allclose(found.stderr, expected.stderr, rtol=1e-9)


def test_a_budget_among_the_rules_counts_all_runs():
    task = small_task(n=6)
    by_rule = control_variate_shapley(task, stop=budget(122) | stderr_below(1e-9), rng=0)
    by_budget = control_variate_shapley(task, budget=122 - 8, rng=0)
    assert by_rule.evaluations == by_budget.evaluations == 122
    np.testing.assert_allclose(by_rule.values, by_budget.values, rtol=1e-9)
    assert by_rule.parameters["stop"] == "(budget(122) | stderr_below(1e-09, share=1))"


def test_what_is_no_rule_is_refused():
    with pytest.raises(TypeError, match="stop must be a rule"):
        control_variate_shapley(small_task(n=6), stop=3)


def test_halves_are_estimates_of_their_own():
    found = control_variate_shapley(small_task(n=6), stop=budget(122), rng=0)
    np.testing.assert_allclose(found.halves.mean(axis=0), found.values, atol=6 * found.stderr.max())
    assert not np.array_equal(*found.halves)


def test_groups_are_players():
    task, groups = quadratic_task(), np.array([0, 2, 1, 1, 0, 2, 2, 2])
    game = relaxed_game(task, "loss", "validation", groups, AUTOMATIC, 0.0)
    found = control_variate_shapley(task, budget=402, groups=groups, rng=0)
    assert (np.abs(found.values - exact_shapley(game).values) <= 4 * found.stderr + 1e-12).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give a budget"),
        ({"budget": 3}, "budget must be at least 18"),
        ({"budget": 100, "points": 0}, "points must be at least 1"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        control_variate_shapley(small_task(), **options)
