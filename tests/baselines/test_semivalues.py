from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from baselines import banzhaf_sizes, beta_sizes, exact_semivalue, exact_shapley, shapley_sizes
from tests.baselines.known_games import KNOWN_GAMES, Quadratic, Table

ANY_GAME = Table(np.random.default_rng(0).normal(size=2**6))
SEMIVALUES = {
    "shapley": shapley_sizes,
    "banzhaf": banzhaf_sizes,
    "beta(4, 1)": lambda n: beta_sizes(n, 4, 1),
    "beta(1, 4)": lambda n: beta_sizes(n, 1, 4),
}
every_semivalue = pytest.mark.parametrize("sizes", SEMIVALUES.values(), ids=SEMIVALUES)


def by_definition(game, sizes):
    """Mean marginal contribution to the coalitions of each size, averaged over sizes, in plain Python."""
    n, chances = game.n_players, sizes(game.n_players)
    values = np.zeros(n)
    for player in range(n):
        others = [other for other in range(n) if other != player]
        for size in range(n):
            for members in combinations(others, size):
                code = sum(1 << member for member in members)
                gain = game.utilities[code | 1 << player] - game.utilities[code]
                values[player] += chances[size] * gain / comb(n - 1, size)
    return values


@every_semivalue
def test_exact_semivalues_are_those_of_the_definition(sizes):
    np.testing.assert_allclose(exact_semivalue(ANY_GAME, sizes).values, by_definition(ANY_GAME, sizes), atol=1e-13)


def test_banzhaf_is_the_mean_over_all_coalitions():
    utilities = ANY_GAME.utilities
    codes = np.arange(64)
    expected = [
        np.mean(utilities[codes >> player & 1 == 1]) - np.mean(utilities[codes >> player & 1 == 0])
        for player in range(6)
    ]
    np.testing.assert_allclose(exact_semivalue(ANY_GAME, banzhaf_sizes).values, expected, atol=1e-13)


@pytest.mark.parametrize("game", KNOWN_GAMES, ids=lambda game: type(game).__name__)
def test_shapley_is_one_of_them(game):
    np.testing.assert_array_equal(exact_semivalue(game, shapley_sizes).values, exact_shapley(game).values)


@every_semivalue
@pytest.mark.parametrize("n_players", [1, 2, 3, 50, 5000])
def test_sizes_are_a_distribution(sizes, n_players):
    chances = sizes(n_players)
    assert chances.shape == (n_players,)
    assert np.all((chances >= 0) & np.isfinite(chances))
    assert chances.sum() == pytest.approx(1, abs=1e-10)


@given(st.integers(1, 200), st.floats(0.1, 20), st.floats(0.1, 20))
def test_beta_sizes_are_a_distribution_and_change_sides(n, alpha, beta):
    chances = beta_sizes(n, alpha, beta)
    assert chances.sum() == pytest.approx(1, abs=1e-10)
    np.testing.assert_allclose(beta_sizes(n, beta, alpha), chances[::-1], rtol=1e-9)
    # the mean size of a beta-binomial distribution
    assert chances @ np.arange(n) == pytest.approx((n - 1) * beta / (alpha + beta), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("n_players", [1, 2, 7, 100, 5000])
def test_beta_1_1_is_shapley(n_players):
    np.testing.assert_allclose(beta_sizes(n_players, 1, 1), shapley_sizes(n_players), rtol=1e-10)


@pytest.mark.parametrize(("alpha", "beta"), [(4, 1), (1, 4), (2, 3)])
def test_beta_sizes_mix_binomial_ones(alpha, beta):
    """Players join with a probability q that is Beta(beta, alpha) distributed."""
    n = 6
    density = comb(alpha + beta - 2, alpha - 1) * (alpha + beta - 1)
    expected = [
        quad(lambda q, s=s: comb(n - 1, s) * q ** (s + beta - 1) * (1 - q) ** (n - 2 - s + alpha) * density, 0, 1)[0]
        for s in range(n)
    ]
    np.testing.assert_allclose(beta_sizes(n, alpha, beta), expected, rtol=1e-10)


def test_all_semivalues_agree_on_additive_games():
    game = Quadratic(np.arange(5.0), np.zeros((5, 5)))
    for sizes in SEMIVALUES.values():
        np.testing.assert_allclose(exact_semivalue(game, sizes).values, game.linear, atol=1e-13)


@pytest.mark.parametrize("value", [0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_bad_parameters(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a positive number, got {value}"):
        beta_sizes(5, **{"alpha": 1.0, "beta": 1.0, name: value})


@every_semivalue
def test_bad_player_counts(sizes):
    with pytest.raises(ValueError, match="n_players must be at least 1, got 0"):
        sizes(0)
    with pytest.raises(TypeError, match="n_players must be an integer"):
        sizes(2.0)


@pytest.mark.parametrize("sizes", [lambda n: np.ones(n), lambda n: np.full(n + 1, 1 / (n + 1)), lambda n: [np.nan] * n])
def test_what_is_no_distribution_is_refused(sizes):
    with pytest.raises(ValueError, match="sizes must give a distribution over the 6 sizes 0 to 5, got"):
        exact_semivalue(ANY_GAME, sizes)


def test_sizes_that_cannot_be_called_are_refused():
    with pytest.raises(TypeError, match=r"sizes must be a function such as baselines.banzhaf_sizes, got ndarray"):
        exact_semivalue(ANY_GAME, shapley_sizes(6))
