import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from baselines import (
    Estimate,
    budget,
    gelman_rubin_below,
    kernel_shapley,
    permutation_shapley,
    rank_stability,
    stderr_below,
)
from baselines.convergence import allowance
from baselines.draws import random_permutations
from tests.baselines.known_games import Airport, Quadratic, Recorded, Table

ANY_GAME = Table(np.random.default_rng(0).normal(size=2**6))
ESTIMATE = Estimate(
    draws=50,
    evaluations=300,
    values=np.array([1.0, 2.0, 3.0, 4.0]),
    stderr=np.array([0.1, 0.2, 0.3, 0.4]),
    halves=np.array([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0, 3.0]]),  # Spearman 0.8
    gelman_rubin=np.array([1.0, 1.01, 1.02, 1.04]),
)
YES, NO = (lambda _estimate: True), (lambda _estimate: False)


def at_once(_estimate):
    return True


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        (stderr_below(0.41), True),
        (stderr_below(0.4), False),
        (stderr_below(0.25, share=0.5), True),
        (stderr_below(0.25, share=0.51), False),
        (rank_stability(0.79), True),
        (rank_stability(0.81), False),
        (gelman_rubin_below(1.05), True),
        (gelman_rubin_below(1.04), False),
        (budget(300), True),
        (budget(301), False),
    ],
    ids=str,
)
def test_each_rule_looks_at_its_own_number(rule, holds):
    assert rule(ESTIMATE) is holds


def test_without_a_number_there_is_no_stopping():
    young = replace(ESTIMATE, draws=1, stderr=None, halves=None, gelman_rubin=None)
    for rule in (stderr_below(1e9), rank_stability(0.01), gelman_rubin_below(1e9)):
        assert not rule(young)


def test_a_constant_half_ranks_nobody():
    assert not rank_stability(0.01)(replace(ESTIMATE, halves=np.array([[1.0, 2.0, 3.0, 4.0], [1.0] * 4])))


@pytest.mark.parametrize("one", [True, False])
@pytest.mark.parametrize("other", [True, False])
def test_rules_combine(one, other):
    a, b = budget(300 if one else 301), stderr_below(0.5 if other else 0.1)
    assert (a | b)(ESTIMATE) is (one or other)
    assert (a & b)(ESTIMATE) is (one and other)


def test_functions_are_rules_too():
    assert (budget(1000) | YES)(ESTIMATE)
    assert not (budget(300) & NO)(ESTIMATE)
    assert not (budget(1000) | NO)(ESTIMATE)


@pytest.mark.parametrize(
    ("rule", "most"),
    [
        (stderr_below(1.0), math.inf),
        (budget(70), 70),
        (budget(70) | at_once, 70),
        (budget(70) & at_once, math.inf),  # both must hold, so that the budget alone does not end it
        (stderr_below(1.0) | budget(70), 70),
        (stderr_below(1.0) & budget(70), math.inf),
        (budget(70) | budget(50), 50),
        (budget(70) & budget(50), 70),
        ((budget(70) & stderr_below(1.0)) | budget(90), 90),
    ],
    ids=str,
)
def test_evaluations_that_a_rule_allows(rule, most):
    assert allowance(rule) == most


def test_no_rule_and_a_mere_function_allow_any_number():
    assert allowance(None) == allowance(NO) == math.inf


def test_rules_read_as_they_are_written():
    rule = (stderr_below(1e-3) | budget(100_000)) & rank_stability(0.99)
    assert str(rule) == "((stderr_below(0.001, share=1) | budget(100000)) & rank_stability(0.99))"
    for stop, text in (
        (budget(100), "budget(100)"),
        (at_once, "at_once"),
        (budget(100) | at_once, "(budget(100) | at_once)"),
        (budget(100) & at_once, "(budget(100) & at_once)"),
    ):
        assert permutation_shapley(ANY_GAME, stop=stop, rng=0).parameters["stop"] == text


@pytest.mark.parametrize("most", [7, 8, 77, 78, 300])
def test_a_rule_with_a_budget_never_exceeds_it(most):
    game = Recorded(ANY_GAME)
    valuation = permutation_shapley(game, stop=stderr_below(1e-9) | budget(most), rng=0)
    assert most - 5 < valuation.evaluations == game.evaluations() <= most
    np.testing.assert_array_equal(valuation.values, permutation_shapley(ANY_GAME, budget=most, rng=0).values)


def test_the_smaller_of_two_budgets_counts():
    for budgets in ((100, 200), (200, 100)):
        valuation = permutation_shapley(ANY_GAME, budget=budgets[0], stop=budget(budgets[1]), rng=0)
        assert 95 < valuation.evaluations <= 100


def test_a_rule_whose_budget_is_too_small_is_refused():
    with pytest.raises(ValueError, match=r"budget must be at least 7 evaluated coalitions .* got 6"):
        permutation_shapley(ANY_GAME, stop=budget(6) | stderr_below(1.0), rng=0)


def test_estimates_end_as_good_as_was_asked():
    game = Airport([1, 2, 3, 5, 8, 13])
    assert permutation_shapley(game, stop=stderr_below(0.1), rng=0).stderr.max() < 0.1
    half = permutation_shapley(game, stop=stderr_below(0.1, share=0.5), rng=0)
    assert np.sort(half.stderr)[2] < 0.1 < half.stderr.max()
    assert permutation_shapley(game, stop=rank_stability(0.95), rng=0).reliability() >= 0.95
    both = permutation_shapley(game, stop=rank_stability(0.95) & stderr_below(0.1), rng=0)
    assert both.reliability() >= 0.95
    assert both.stderr.max() < 0.1


def test_looks_are_far_between():
    path = []
    permutation_shapley(ANY_GAME, 1000, stop=lambda estimate: path.append(estimate.draws), rng=0)
    assert path[:11] == [1, 2, 3, 4, 5, 7, 9, 12, 15, 19, 24]
    assert path[-1] == 1000


@pytest.mark.parametrize("rule", [stderr_below(1e9), rank_stability(1e-9)])
def test_rules_wait_for_ten_draws(rule):
    """The spread of fewer says little; 12 is the first look after that."""
    assert permutation_shapley(Quadratic(np.arange(6.0), np.zeros((6, 6))), stop=rule, rng=0).evaluations == 2 + 12 * 5


def test_number_of_permutations_and_a_rule():
    """Whichever comes first."""
    assert permutation_shapley(ANY_GAME, 20, stop=NO, rng=0).parameters["n_permutations"] == 20
    assert permutation_shapley(ANY_GAME, 20, stop=YES, rng=0).parameters["n_permutations"] == 1
    assert permutation_shapley(ANY_GAME, 20, stop=budget(52), rng=0).parameters["n_permutations"] == 10
    assert permutation_shapley(ANY_GAME, 1, stop=YES, rng=0).parameters["n_permutations"] == 1
    assert permutation_shapley(Airport([3]), 5, stop=NO, rng=0).parameters["n_permutations"] == 5
    assert permutation_shapley(Airport([3]), stop=NO, rng=0).evaluations == 2


@pytest.mark.parametrize("draws", [20, 43, 200])
def test_gelman_rubin_is_that_of_ten_chains(draws):
    """Recomputed from the permutations themselves; all chains have N draws only where ten divides their number."""
    walks = np.zeros((draws, 6))
    for walk, order in zip(walks, islice(random_permutations(3, 6), draws), strict=True):
        codes = np.concatenate([[0], np.cumsum(1 << order)])
        walk[order] = np.diff(ANY_GAME.utilities[codes])
    chains = [walks[chain::10] for chain in range(10)]
    length = draws / 10
    within = sum(((chain - chain.mean(axis=0)) ** 2).sum(axis=0) for chain in chains) / (draws - 10)
    between = np.var([chain.mean(axis=0) for chain in chains], axis=0, ddof=1)
    path = []
    permutation_shapley(ANY_GAME, draws, stop=path.append, rng=3)
    expected = np.sqrt(((length - 1) / length * within + between) / within)
    np.testing.assert_allclose(path[-1].gelman_rubin, expected, rtol=1e-10)


def test_gelman_rubin_of_few_draws_is_unknown():
    path = []
    permutation_shapley(ANY_GAME, 40, stop=path.append, rng=0)
    assert [estimate.gelman_rubin is None for estimate in path] == [estimate.draws < 20 for estimate in path]


@pytest.mark.parametrize("constant", [0.0, 1e6])
def test_draws_that_are_equal_but_for_rounding_have_converged(constant):
    game = Quadratic(np.random.default_rng(0).normal(size=20), np.zeros((20, 20)), constant)
    valuation = permutation_shapley(game, 1000, stop=gelman_rubin_below(1.0001), rng=0)
    assert valuation.parameters["n_permutations"] == 24  # the first look at which chains have two draws


def test_gelman_rubin_of_what_is_no_mean_of_draws_is_refused():
    with pytest.raises(ValueError, match="needs values that are means of draws; use rank_stability here"):
        kernel_shapley(ANY_GAME, stop=gelman_rubin_below(1.05), rng=0)


@pytest.mark.parametrize(
    ("rule", "arguments", "error", "message"),
    [
        (budget, [0], ValueError, "evaluations must be at least 1, got 0"),
        (budget, [1e5], TypeError, "evaluations must be an integer"),
        (stderr_below, [0.0], ValueError, "limit must be positive, in units of the utility, got 0.0"),
        (stderr_below, [np.nan], ValueError, "limit must be positive"),
        (stderr_below, [0.1, 0.0], ValueError, r"share must be in \(0, 1\], got 0.0"),
        (stderr_below, [0.1, 1.1], ValueError, r"share must be in \(0, 1\], got 1.1"),
        (rank_stability, [1.0], ValueError, r"level must be in \(0, 1\), got 1.0"),
        (rank_stability, [0.0], ValueError, r"level must be in \(0, 1\), got 0.0"),
        (gelman_rubin_below, [1.0], ValueError, "level must be above 1, got 1.0"),
    ],
)
def test_bad_arguments(rule, arguments, error, message):
    with pytest.raises(error, match=message):
        rule(*arguments)
