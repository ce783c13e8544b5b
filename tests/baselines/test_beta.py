from itertools import islice

import numpy as np
import pytest

from baselines import beta_shapley, beta_sizes, permutation_shapley
from baselines.draws import random_permutations
from tests.baselines.known_games import Quadratic, Saturating, Table

ANY_GAME = Table(np.random.default_rng(0).normal(size=2**6))


def test_it_is_the_mean_of_weighted_marginal_contributions():
    """Recomputed from the permutations themselves."""
    draws = np.zeros((9, 6))
    for draw, order in zip(draws, islice(random_permutations(7, 6), 9), strict=True):
        codes = np.concatenate([[0], np.cumsum(1 << order)])
        draw[order] = 6 * beta_sizes(6, 16, 1) * np.diff(ANY_GAME.utilities[codes])
    valuation = beta_shapley(ANY_GAME, 9, alpha=16, beta=1, rng=7)
    np.testing.assert_allclose(valuation.values, draws.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(valuation.stderr, draws.std(axis=0, ddof=1) / 3, atol=1e-12)


def test_beta_1_1_is_shapley():
    one, other = beta_shapley(ANY_GAME, 20, alpha=1, beta=1, rng=0), permutation_shapley(ANY_GAME, 20, rng=0)
    np.testing.assert_allclose(one.values, other.values, atol=1e-12)
    np.testing.assert_allclose(one.stderr, other.stderr, atol=1e-12)


def test_with_a_shift_to_every_place_it_is_exact_on_additive_games():
    game = Quadratic(np.arange(1.0, 8.0), np.zeros((7, 7)))
    np.testing.assert_allclose(beta_shapley(game, 7, shifts=7, rng=0).values, game.linear, atol=1e-12)
    assert np.abs(beta_shapley(game, 7, rng=0).values - game.linear).max() > 0.1


def test_shifts_take_away_the_noise_of_uneven_weights():
    game = Saturating(np.linspace(0.05, 0.3, 30))
    plain, shifted = (beta_shapley(game, 600, shifts=shifts, rng=0) for shifts in (1, 30))
    assert np.median(shifted.stderr / plain.stderr) < 0.5


@pytest.mark.parametrize(("name", "value"), [("alpha", 0.0), ("beta", -1.0), ("alpha", np.nan)])
def test_bad_parameters(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a positive number, got {value}"):
        beta_shapley(ANY_GAME, 5, **{name: value})


def test_what_it_reports():
    assert beta_shapley(ANY_GAME, 6, alpha=2, shifts=3, rng=0).parameters == {
        "n_permutations": 6,
        "budget": None,
        "alpha": 2.0,
        "beta": 1.0,
        "shifts": 3,
        "stop": None,
        "interrupted": False,
    }
