import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from baselines import exact_shapley, permutation_shapley
from baselines.draws import random_permutations
from tests.baselines.known_games import (
    ANY_UTILITY,
    KNOWN_GAMES,
    Airport,
    Quadratic,
    Recorded,
    Saturating,
    SpanningTree,
    Table,
)


@st.composite
def tables(draw, min_players=1):
    n = draw(st.integers(min_players, 5))
    return Table(draw(arrays(np.float64, 2**n, elements=ANY_UTILITY)))


def assert_same_bits(one, other):
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_array_equal(one.stderr, other.stderr)
    np.testing.assert_array_equal(one.halves, other.halves)
    assert one.evaluations == other.evaluations


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("game", KNOWN_GAMES, ids=lambda game: type(game).__name__)
def test_unbiased(game, antithetic):
    valuation = permutation_shapley(game, 3000, antithetic=antithetic, rng=1)
    assert np.all(np.abs(valuation.values - game.shapley()) <= 4.5 * valuation.stderr + 1e-12)
    assert valuation.stderr.max() < 0.03 * np.ptp(game(np.tri(game.n_players + 1, game.n_players, -1, dtype=bool)))


def test_a_hundred_players():
    game = SpanningTree(100)
    valuation = permutation_shapley(game, 400, rng=2)
    assert np.all(np.abs(valuation.values - 2) <= 4.5 * valuation.stderr)


@pytest.mark.parametrize("antithetic", [False, True])
def test_standard_errors_are_calibrated(antithetic):
    """Errors divided by their standard errors have unit variance, over 300 independent estimates."""
    game = Airport([1, 2, 3, 5, 8])
    runs = [permutation_shapley(game, 60, antithetic=antithetic, rng=seed) for seed in range(300)]
    z = np.array([(run.values - game.shapley()) / run.stderr for run in runs])
    # 30 to 60 draws: Student's t, of variance up to 29 / 27
    np.testing.assert_allclose(z.var(axis=0), 1.03, atol=0.3)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=0.25)
    spread = np.std([run.values for run in runs], axis=0)
    np.testing.assert_allclose(np.mean([run.stderr for run in runs], axis=0), spread, rtol=0.12)


def test_halves_are_independent_estimates():
    game = Airport([1, 2, 3, 5, 8])
    runs = [permutation_shapley(game, 41, rng=seed) for seed in range(300)]
    halves = np.array([run.halves for run in runs])
    np.testing.assert_allclose(
        [run.values for run in runs], np.average(halves, axis=1, weights=[21, 20]), rtol=1e-12, atol=1e-12
    )
    errors = halves - game.shapley()
    correlation = [np.corrcoef(errors[:, 0, i], errors[:, 1, i])[0, 1] for i in range(game.n_players)]
    np.testing.assert_allclose(correlation, 0, atol=0.22)  # 300 pairs: standard deviation 0.058


def test_standard_error_and_halves_are_those_of_the_draws():
    """Recomputed from the permutations themselves, in plain Python."""
    game = Quadratic.random(6)
    stream = random_permutations(7, 6)
    draws = np.zeros((9, 6))
    for draw in draws:
        members = np.zeros((1, 6), dtype=bool)
        for player in next(stream):
            before = game(members)[0]
            members[0, player] = True
            draw[player] = game(members)[0] - before
    valuation = permutation_shapley(game, 9, rng=7)
    np.testing.assert_allclose(valuation.values, draws.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(valuation.stderr, draws.std(axis=0, ddof=1) / 3, atol=1e-12)
    np.testing.assert_allclose(valuation.halves, [draws[::2].mean(axis=0), draws[1::2].mean(axis=0)], atol=1e-12)


@given(tables(), st.integers(1, 5), st.booleans())
def test_efficiency(game, draws, antithetic):
    valuation = permutation_shapley(game, 2 * draws, antithetic=antithetic, rng=0)
    assert valuation.values.sum() == pytest.approx(game.utilities[-1] - game.utilities[0], abs=1e-10)


@given(st.data())
def test_null_player(data):
    game = data.draw(tables())
    player = data.draw(st.integers(0, game.n_players))
    utilities = game.utilities.reshape(-1, 1, 2**player).repeat(2, axis=1).ravel()
    valuation = permutation_shapley(Table(utilities), 6, rng=data.draw(st.integers(0, 2**32)))
    assert valuation.values[player] == valuation.stderr[player] == 0


@given(st.data(), st.floats(-5, 5).map(lambda x: x if abs(x) > 1e-50 else 0.0))
def test_linearity(data, factor):
    """For the same permutations the estimate is linear in the game."""
    one = data.draw(tables())
    other = Table(data.draw(arrays(np.float64, one.utilities.shape, elements=ANY_UTILITY)))
    mixture, a, b = (
        permutation_shapley(game, 4, rng=3).values
        for game in (Table(one.utilities + factor * other.utilities), one, other)
    )
    np.testing.assert_allclose(mixture, a + factor * b, atol=1e-9)


@given(tables(), st.integers(1, 3))
def test_symmetric_players_are_worth_the_same_on_average(game, seed):
    """All players change places at will: utility depends on size alone, and each draw only on the position."""
    sizes = np.array([code.bit_count() for code in range(len(game.utilities))])
    by_size = Table(game.utilities[2**sizes - 1])
    n = game.n_players
    valuation = permutation_shapley(by_size, 200, rng=seed)
    expected = (game.utilities[-1] - game.utilities[0]) / n
    assert np.all(np.abs(valuation.values - expected) <= 5.5 * valuation.stderr + 1e-9)


@pytest.mark.parametrize("n_players", [2, 5, 12])
def test_an_antithetic_pair_is_exact_on_quadratic_games(n_players):
    game = Quadratic.random(n_players, seed=n_players)
    valuation = permutation_shapley(game, 6, antithetic=True, rng=4)
    np.testing.assert_allclose(valuation.values, game.shapley(), atol=1e-12)
    np.testing.assert_allclose(valuation.stderr, 0, atol=1e-12)
    if n_players > 2:
        assert np.abs(permutation_shapley(game, 6, rng=4).values - game.shapley()).max() > 0.1


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize(("n_players", "shifts"), [(6, 1), (6, 2), (6, 3), (6, 6), (7, 3), (10, 4), (11, 11)])
def test_shifts_spread_the_positions_of_every_player(n_players, shifts, antithetic):
    """Over the orders of a draw the position grows by n / shifts at a time, all round, whatever is rounded."""
    a_draw = shifts * (2 if antithetic else 1)
    game = Recorded(Saturating(np.ones(n_players)))
    permutation_shapley(game, 3 * a_draw, antithetic=antithetic, shifts=shifts, rng=0)
    prefixes = np.concatenate(game.calls[1:]).reshape(3, a_draw, n_players - 1, n_players)
    positions = n_players - 1 - prefixes.sum(axis=2)  # [draw, order, player]: joined first is in all prefixes
    if antithetic:
        np.testing.assert_array_equal(positions[:, ::2] + positions[:, 1::2], n_players - 1)
        positions = positions[:, ::2]
    positions = np.sort(positions, axis=1)
    gaps = np.diff(positions, axis=1, append=positions[:, :1] + n_players)
    assert np.all((gaps == n_players // shifts) | (gaps == -(-n_players // shifts)))


def test_shifts_take_away_the_noise_of_where_a_player_stands():
    """Where only the size of a coalition counts, a shift to every place leaves nothing to chance."""
    game = Saturating(np.full(8, 0.3))
    assert permutation_shapley(game, 16, rng=0).stderr.min() > 0.01
    shifted = permutation_shapley(game, 16, shifts=8, rng=0)
    np.testing.assert_allclose(shifted.values, game.shapley(), atol=1e-12)
    np.testing.assert_allclose(shifted.stderr, 0, atol=1e-9)


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 9, 17, 50, 10**6])
def test_batch_size_changes_nothing(batch_size, antithetic):
    game = Recorded(Airport(np.sqrt(np.arange(1, 10))))
    valuation = permutation_shapley(game, 20, antithetic=antithetic, rng=5, batch_size=batch_size)
    expected = permutation_shapley(game.game, 20, antithetic=antithetic, rng=5)
    assert_same_bits(valuation, expected)
    assert max(game.batch_sizes()[1:]) <= batch_size
    assert len(game.calls) <= 2 + np.ceil(20 / max(1, batch_size // 8)) * np.ceil(8 / min(batch_size, 8))


@pytest.mark.parametrize("n_players", [1, 2, 7])
def test_evaluations_are_counted_and_none_is_wasted(n_players):
    game = Recorded(Airport(np.arange(1, n_players + 1)))
    valuation = permutation_shapley(game, 10, rng=0)
    assert valuation.evaluations == game.evaluations() == 2 + 10 * (n_players - 1)
    coalitions = np.concatenate(game.calls)
    assert (coalitions.sum(axis=1) == 0).sum() == (coalitions.sum(axis=1) == n_players).sum() == 1


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("budget", [16, 27, 28, 29, 100])
def test_budget(budget, antithetic):
    game = Recorded(Airport(np.arange(1, 9)))
    valuation = permutation_shapley(game, budget=budget, antithetic=antithetic, rng=0)
    draw_cost = 14 if antithetic else 7
    assert game.evaluations() == valuation.evaluations
    assert budget - draw_cost < valuation.evaluations <= budget
    n_permutations = valuation.parameters["n_permutations"]
    same = permutation_shapley(game.game, n_permutations, antithetic=antithetic, rng=0)
    np.testing.assert_array_equal(valuation.values, same.values)


def test_one_player():
    game = Airport([3])
    for arguments in ({"n_permutations": 5}, {"budget": 2}, {"budget": 100}):
        valuation = permutation_shapley(game, **arguments, rng=0)
        assert valuation.values.tolist() == [3]
        assert valuation.evaluations == 2


def test_one_draw_has_no_standard_error():
    for arguments in ({"n_permutations": 1}, {"n_permutations": 2, "antithetic": True}):
        valuation = permutation_shapley(Airport([1, 2, 3]), **arguments, rng=0)
        assert valuation.stderr is None
        assert valuation.halves is None


def test_seeds():
    game = Airport([1, 2, 3, 5])
    seeded = permutation_shapley(game, 30, rng=8)
    sequence = np.random.SeedSequence(8)
    for rng in (np.int64(8), sequence, sequence, np.random.default_rng(8).bit_generator.seed_seq):
        assert_same_bits(permutation_shapley(game, 30, rng=rng), seeded)
    children = [permutation_shapley(game, 30, rng=child) for child in np.random.SeedSequence(10).spawn(2)]
    generator, twin = np.random.default_rng(8), np.random.default_rng(8)
    first, second = (permutation_shapley(game, 30, rng=generator) for _ in range(2))
    assert_same_bits(first, permutation_shapley(game, 30, rng=twin))
    unseeded = [permutation_shapley(game, 30) for _ in range(2)]
    different = [seeded, permutation_shapley(game, 30, rng=9), first, second, *children, *unseeded]
    assert len({tuple(valuation.values) for valuation in different}) == len(different)


def test_permutations_are_uniform():
    """Each of the 24 orders of 4 players is as frequent as the others: chi-squared with 23 degrees of freedom."""
    stream = random_permutations(0, 4)
    _, counts = np.unique([next(stream) for _ in range(4800)], axis=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 200) ** 2 / 200).sum() < 49.7  # probability of more: 0.001


def test_more_permutations_begin_with_the_same_ones():
    few, many = (permutation_shapley(Airport([1, 2, 4]), n, rng=1) for n in (1, 2))
    np.testing.assert_array_equal(many.halves[0], few.values)


def test_what_it_reports(capsys):
    valuation = permutation_shapley(Airport([1, 2, 3]), 4, antithetic=True, rng=0)
    assert valuation.method == "permutation_shapley"
    assert valuation.parameters == {
        "n_permutations": 4,
        "budget": None,
        "antithetic": True,
        "shifts": 1,
        "stop": None,
        "interrupted": False,
    }
    assert valuation.seconds > 0
    assert capsys.readouterr().err == ""
    permutation_shapley(Airport([1, 2, 3]), 4, rng=0, progress=True)
    assert "10/10" in capsys.readouterr().err  # coalitions


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, r"give n_permutations, a budget .*, or a stopping rule \(stop=\); got none of them"),
        ({"n_permutations": 3, "budget": 50}, ValueError, r"not both; got n_permutations=3 and budget=50"),
        ({"n_permutations": 0}, ValueError, "n_permutations must be at least 1, got 0"),
        ({"n_permutations": -4}, ValueError, "n_permutations must be at least 1, got -4"),
        ({"n_permutations": 2.0}, TypeError, r"n_permutations must be an integer .* got 2.0 \(float\)"),
        ({"n_permutations": True}, TypeError, "n_permutations must be an integer"),
        (
            {"n_permutations": 3, "antithetic": True},
            ValueError,
            "a multiple of 2, a draw's permutations, got 3",
        ),
        ({"n_permutations": 4, "shifts": 3}, ValueError, "must be a multiple of 3, a draw's permutations, got 4"),
        ({"n_permutations": 9, "antithetic": True, "shifts": 3}, ValueError, "must be a multiple of 6"),
        ({"n_permutations": 4, "shifts": 4}, ValueError, "shifts must be at most the number of players, 3, got 4"),
        ({"n_permutations": 4, "shifts": 0}, ValueError, "shifts must be at least 1, got 0"),
        ({"n_permutations": 4, "shifts": 2.0}, TypeError, "shifts must be an integer"),
        ({"budget": 3}, ValueError, "budget must be at least 4 evaluated coalitions .* got 3"),
        ({"budget": 5, "antithetic": True}, ValueError, "budget must be at least 6"),
        ({"budget": 50.0}, TypeError, "budget must be an integer"),
        ({"n_permutations": 2, "batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"n_permutations": 2, "rng": "0"}, TypeError, "rng must be an int, a SeedSequence, a Generator or None, got"),
        ({"n_permutations": 2, "rng": np.random.RandomState(0)}, TypeError, "got RandomState"),
        ({"n_permutations": 2, "rng": -1}, ValueError, "rng must not be negative, got -1"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        permutation_shapley(Airport([1, 2, 3]), **arguments)


def test_agrees_with_enumeration_of_a_random_game():
    game = Table(np.random.default_rng(0).normal(size=2**7))
    valuation = permutation_shapley(game, 4000, rng=0)
    assert np.all(np.abs(valuation.values - exact_shapley(game).values) < 4.5 * valuation.stderr)
