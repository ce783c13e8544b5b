import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import baselines
from baselines import permutation_shapley, tmc_shapley
from baselines.draws import random_permutations
from tests.baselines.known_games import ANY_UTILITY, KNOWN_GAMES, Airport, Recorded, Saturating, Table

SATURATING = Saturating(np.linspace(0.05, 1.0, 20))


def one_at_a_time(game, n_permutations, tolerance, seed):
    """TMC as Algorithm 1 of Ghorbani and Zou has it, one coalition after the other."""
    n = game.n_players
    empty, grand = game(np.array([[False] * n, [True] * n]))
    stream = random_permutations(seed, n)
    draws, cost, cut = np.zeros((n_permutations, n)), 2, 0
    for draw in draws:
        members, before = np.zeros((1, n), dtype=bool), empty
        for joined, player in enumerate(next(stream)):
            if abs(grand - before) < tolerance * abs(grand - empty):
                cut += n - joined
                break
            members[0, player] = True
            after = grand if joined == n - 1 else game(members)[0]
            cost += joined < n - 1
            draw[player] = after - before
            before = after
    return draws, cost, cut / draws.size


def assert_same_bits(one, other):
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_array_equal(one.stderr, other.stderr)
    np.testing.assert_array_equal(one.halves, other.halves)
    assert one.evaluations == other.evaluations
    assert one.parameters.get("truncated") == other.parameters.get("truncated", one.parameters.get("truncated"))


@pytest.mark.parametrize("game", KNOWN_GAMES, ids=lambda game: type(game).__name__)
def test_without_tolerance_it_is_permutation_shapley(game):
    valuation = tmc_shapley(game, 50, tolerance=0, rng=6)
    assert_same_bits(valuation, permutation_shapley(game, 50, rng=6))
    assert valuation.parameters["truncated"] == 0


@given(arrays(np.float64, 16, elements=ANY_UTILITY), st.floats(0, 1), st.integers(1, 12))
def test_same_as_one_at_a_time(utilities, tolerance, batch_size):
    """On games that pass v(N) and come back, too."""
    game = Table(utilities)
    draws, cost, truncated = one_at_a_time(game, 7, tolerance, seed=3)
    valuation = tmc_shapley(game, 7, tolerance=tolerance, rng=3, batch_size=batch_size)
    np.testing.assert_allclose(valuation.values, draws.mean(axis=0), atol=1e-10)
    np.testing.assert_allclose(valuation.stderr, draws.std(axis=0, ddof=1) / np.sqrt(7), atol=1e-10)
    assert (valuation.evaluations, valuation.parameters["truncated"]) == (cost, truncated)


@given(arrays(np.float64, 16, elements=st.integers(-3, 3)), st.sampled_from([0.25, 0.5, 1.0]))
def test_same_as_one_at_a_time_where_utilities_hit_the_threshold(utilities, tolerance):
    game = Table(utilities)
    draws, cost, truncated = one_at_a_time(game, 7, tolerance, seed=3)
    valuation = tmc_shapley(game, 7, tolerance=tolerance, rng=3)
    np.testing.assert_allclose(valuation.values, draws.mean(axis=0), atol=1e-12)
    assert (valuation.evaluations, valuation.parameters["truncated"]) == (cost, truncated)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 19, 100, 4096])
@pytest.mark.parametrize("amount", [{"n_permutations": 60}, {"budget": 500}, {"budget": 21}, {"budget": 40}])
def test_batch_size_changes_nothing(amount, batch_size):
    game = Recorded(SATURATING)
    valuation = tmc_shapley(game, **amount, tolerance=0.1, rng=1, batch_size=batch_size)
    expected = tmc_shapley(SATURATING, **amount, tolerance=0.1, rng=1, batch_size=5)
    if expected.stderr is not None:
        assert_same_bits(valuation, expected)
    np.testing.assert_array_equal(valuation.values, expected.values)
    assert valuation.parameters == expected.parameters
    assert max(game.batch_sizes()[1:]) <= batch_size
    assert game.evaluations() == valuation.evaluations


def test_calls_stay_full():
    """Lanes are taken over by new permutations when theirs stop, but for the last ones."""
    game = Recorded(SATURATING)
    tmc_shapley(game, 1000, tolerance=0.1, rng=0, batch_size=50)
    sizes = game.batch_sizes()[1:]
    assert sizes[:-19] == [50] * (len(sizes) - 19)


def test_it_is_cheaper_and_within_its_tolerance():
    full = permutation_shapley(SATURATING, 300, rng=2)
    cut = tmc_shapley(SATURATING, 300, tolerance=0.05, rng=2)
    assert cut.evaluations < 0.6 * full.evaluations
    assert 0.4 < cut.parameters["truncated"] < 1
    assert 0 < full.values.sum() - cut.values.sum() < 0.05 * full.values.sum()
    # here contributions are positive, so that the bias of each player is bounded as well
    assert np.all((cut.values <= full.values + 1e-12) & (full.values < cut.values + 0.05 * full.values.sum()))
    # a smaller tolerance cuts less
    assert tmc_shapley(SATURATING, 300, tolerance=0.01, rng=2).parameters["truncated"] < cut.parameters["truncated"]


@pytest.mark.parametrize("game", KNOWN_GAMES, ids=lambda game: type(game).__name__)
def test_unbiased_without_truncation(game):
    valuation = tmc_shapley(game, 3000, tolerance=0, rng=11)
    assert np.all(np.abs(valuation.values - game.shapley()) <= 4.5 * valuation.stderr + 1e-12)


def test_truncation_is_harmless_where_the_rest_adds_nothing():
    """Once the largest aircraft is there the airport is built, whoever else comes."""
    game = Airport([1, 2, 3, 5, 8])
    full, cut = permutation_shapley(game, 200, rng=0), tmc_shapley(game, 200, tolerance=1e-9, rng=0)
    np.testing.assert_array_equal(cut.values, full.values)
    assert cut.evaluations < full.evaluations


def test_standard_errors_are_calibrated():
    """Their mean square is the variance of the estimates over 400 independent runs."""
    runs = [tmc_shapley(SATURATING, 40, tolerance=0.1, rng=seed) for seed in range(400)]
    variance = np.var([run.values for run in runs], axis=0, ddof=1)
    np.testing.assert_allclose(np.mean([run.stderr**2 for run in runs], axis=0), variance, rtol=0.35)
    assert np.sum([run.stderr**2 for run in runs]) / 400 == pytest.approx(variance.sum(), rel=0.08)


@pytest.mark.parametrize("lookahead", [2, 7, 18, 19, 50])
@pytest.mark.parametrize("batch_size", [20, 4096])
def test_lookahead_changes_the_cost_alone(lookahead, batch_size):
    game = Recorded(SATURATING)
    valuation = tmc_shapley(game, 40, tolerance=0.1, rng=1, lookahead=lookahead, batch_size=batch_size)
    expected = tmc_shapley(SATURATING, 40, tolerance=0.1, rng=1)
    np.testing.assert_array_equal(valuation.values, expected.values)
    np.testing.assert_array_equal(valuation.stderr, expected.stderr)
    assert valuation.parameters["truncated"] == expected.parameters["truncated"]
    assert valuation.evaluations == game.evaluations()
    assert expected.evaluations < valuation.evaluations <= expected.evaluations + 40 * (lookahead - 1)
    assert max(game.batch_sizes()) <= batch_size


@pytest.mark.parametrize("budget", [21, 22, 39, 40, 41, 200, 1234])
@pytest.mark.parametrize("batch_size", [3, 4096])
def test_budget(budget, batch_size):
    """Permutations in the order drawn, until the next might not be paid for in full."""
    game = Recorded(SATURATING)
    valuation = tmc_shapley(game, budget=budget, tolerance=0.1, rng=3, batch_size=batch_size)
    assert game.evaluations() == valuation.evaluations
    assert budget - 19 < valuation.evaluations <= budget
    n_permutations = valuation.parameters["n_permutations"]
    same = tmc_shapley(SATURATING, n_permutations, tolerance=0.1, rng=3)
    np.testing.assert_array_equal(valuation.values, same.values)
    assert valuation.evaluations == same.evaluations


@pytest.mark.parametrize("budget", [21, 200, 1234])
def test_a_rule_with_a_budget_is_a_budget(budget):
    """With a number of permutations beside it, too, which would be more than the budget pays for."""
    expected = tmc_shapley(SATURATING, budget=budget, tolerance=0.1, rng=3)
    rule = baselines.budget(budget)
    for amount in ({}, {"n_permutations": 10_000}):
        valuation = tmc_shapley(SATURATING, **amount, stop=rule, tolerance=0.1, rng=3)
        np.testing.assert_array_equal(valuation.values, expected.values)
        assert valuation.evaluations == expected.evaluations
        assert valuation.parameters["n_permutations"] == expected.parameters["n_permutations"]


@pytest.mark.parametrize("batch_size", [3, 4096])
def test_stopping_is_the_same_as_having_asked_for_as_many_permutations(batch_size):
    path = []
    valuation = tmc_shapley(SATURATING, budget=1500, stop=path.append, tolerance=0.1, rng=3, batch_size=batch_size)
    expected = tmc_shapley(SATURATING, budget=1500, tolerance=0.1, rng=3)
    assert_same_bits(valuation, expected)
    assert path[-1].evaluations == valuation.evaluations <= 1500  # the last look is at all there is
    early = tmc_shapley(SATURATING, stop=lambda estimate: estimate.draws >= 17, tolerance=0.1, rng=3)
    first_look = next(estimate.draws for estimate in path if estimate.draws >= 17)
    assert_same_bits(early, tmc_shapley(SATURATING, first_look, tolerance=0.1, rng=3))


def test_a_budget_buys_more_permutations_than_without_truncation():
    permutations = [
        tmc_shapley(SATURATING, budget=2000, tolerance=tolerance, rng=0).parameters["n_permutations"]
        for tolerance in (0, 0.1)
    ]
    assert permutations[0] == 1998 // 19
    assert permutations[1] > 2 * permutations[0]


def test_one_player():
    for arguments in ({"n_permutations": 5}, {"budget": 2}, {"budget": 100}):
        valuation = tmc_shapley(Airport([3]), **arguments, rng=0)
        assert valuation.values.tolist() == [3]
        assert valuation.evaluations == 2


def test_equal_utilities_of_all_and_none_never_truncate():
    game = Table([1.0, 2.0, 3.0, 1.0])
    assert tmc_shapley(game, 5, tolerance=1.0, rng=0).parameters["truncated"] == 0


def test_the_game_may_keep_what_it_is_given():
    game = Recorded(SATURATING)
    tmc_shapley(game, 5, tolerance=0, rng=0)
    sizes = [set(call.sum(axis=1)) for call in game.calls[1:]]
    assert sizes == [{size} for size in range(1, 20)]


def test_what_it_reports(capsys):
    valuation = tmc_shapley(SATURATING, 4, rng=0)
    assert valuation.method == "tmc_shapley"
    assert valuation.parameters.keys() == {"n_permutations", "budget", "tolerance", "truncated", "stop", "interrupted"}
    assert valuation.parameters["tolerance"] == 0.01
    assert valuation.seconds > 0
    assert capsys.readouterr().err == ""
    tmc_shapley(SATURATING, 4, rng=0, progress=True)
    assert f"{valuation.evaluations}/{2 + 4 * 19}" in capsys.readouterr().err  # of the most it may cost
    evaluations = tmc_shapley(SATURATING, budget=100, rng=0, progress=True).evaluations
    assert f"{evaluations}/100" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, r"give n_permutations, a budget .*, or a stopping rule \(stop=\); got none of them"),
        ({"n_permutations": 3, "budget": 50}, ValueError, r"not both; got n_permutations=3 and budget=50"),
        ({"n_permutations": 0}, ValueError, "n_permutations must be at least 1, got 0"),
        ({"n_permutations": 2.5}, TypeError, "n_permutations must be an integer"),
        ({"budget": 20}, ValueError, "budget must be at least 21 evaluated coalitions .* got 20"),
        ({"n_permutations": 2, "tolerance": -0.1}, ValueError, r"tolerance must be in \[0, 1\], got -0.1"),
        ({"n_permutations": 2, "tolerance": np.nan}, ValueError, r"tolerance must be in \[0, 1\], got nan"),
        ({"n_permutations": 2, "tolerance": np.inf}, ValueError, r"tolerance must be in \[0, 1\], got inf"),
        ({"n_permutations": 2, "tolerance": 1.01}, ValueError, r"tolerance must be in \[0, 1\], got 1.01"),
        ({"n_permutations": 2, "batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"n_permutations": 2, "rng": 0.5}, TypeError, "rng must be an int"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        tmc_shapley(SATURATING, **arguments)
