import numpy as np
import pytest

from baselines import owen_shapley
from tests.baselines.known_games import Quadratic, Recorded, Saturating, Table

ANY_GAME = Table(np.random.default_rng(0).normal(size=2**6))


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("levels", [1, 3])
def test_it_is_the_mean_contribution_to_the_coalitions_drawn(levels, antithetic):
    """Recomputed from the coalitions that were evaluated: each drawn, then with each player changed over."""
    game = Recorded(ANY_GAME)
    a_draw = levels * (2 if antithetic else 1)
    valuation = owen_shapley(game, budget=5 * a_draw * 7, levels=levels, antithetic=antithetic, rng=0)
    groups = np.concatenate(game.calls).reshape(5 * a_draw, 7, 6)
    np.testing.assert_array_equal(
        groups[:, 1:] ^ groups[:, :1], np.broadcast_to(np.eye(6, dtype=bool), (len(groups), 6, 6))
    )
    utilities = ANY_GAME(groups.reshape(-1, 6)).reshape(-1, 7)
    signs = np.where(groups[:, 0], -1, 1)
    draws = (signs * (utilities[:, 1:] - utilities[:, :1])).reshape(5, a_draw, 6).mean(axis=1)
    np.testing.assert_allclose(valuation.values, draws.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(valuation.stderr, draws.std(axis=0, ddof=1) / np.sqrt(5), atol=1e-12)
    bases = groups[:, 0].reshape(5, a_draw, 6)
    if antithetic:
        np.testing.assert_array_equal(bases[:, :levels], ~bases[:, levels:])


def test_levels_are_strata_of_the_probability_of_joining():
    game = Recorded(Saturating(np.ones(400)))
    owen_shapley(game, budget=30 * 4 * 401, levels=4, antithetic=False, rng=0)
    shares = np.concatenate(game.calls)[::401].mean(axis=1).reshape(30, 4)
    assert np.all(np.abs(shares - (np.arange(4) + 0.5) / 4) < 0.125 + 4.5 * 0.5 / np.sqrt(400))
    # within a stratum the probability is uniform: variance of width^2 / 12, and of the players' choices
    variance = 1 / 4**2 / 12
    assert np.all(shares.var(axis=0) > 0.4 * variance)


def test_a_draw_with_its_complements_is_exact_on_quadratic_games():
    game = Quadratic.random(8)
    valuation = owen_shapley(game, budget=3 * 2 * 2 * 9, rng=0)
    np.testing.assert_allclose(valuation.values, game.shapley(), atol=1e-12)
    assert np.abs(owen_shapley(game, budget=108, antithetic=False, rng=0).values - game.shapley()).max() > 0.1


@pytest.mark.parametrize(
    ("levels", "error", "message"),
    [(0, ValueError, "levels must be at least 1, got 0"), (2.0, TypeError, "levels must be an integer")],
)
def test_bad_levels(levels, error, message):
    with pytest.raises(error, match=message):
        owen_shapley(ANY_GAME, budget=100, levels=levels)


def test_what_it_reports():
    parameters = owen_shapley(ANY_GAME, budget=60, rng=0).parameters
    assert parameters == {"draws": 2, "budget": 60, "levels": 2, "antithetic": True, "stop": None, "interrupted": False}
