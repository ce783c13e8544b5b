import numpy as np
import pytest

from baselines import complementary_shapley
from baselines.draws import complementary_pairs
from tests.baselines.known_games import Recorded, Table

ANY_GAME = Table(np.random.default_rng(0).normal(size=2**6))


@pytest.mark.parametrize("n_players", [2, 3, 6, 7])
@pytest.mark.parametrize("budget", [40, 61])
def test_it_is_the_sum_of_the_covariances_of_the_strata(n_players, budget):
    """Recomputed by NumPy from the pairs that were evaluated."""
    game = Recorded(Table(np.random.default_rng(n_players).normal(size=2**n_players)))
    valuation = complementary_shapley(game, budget=budget, rng=0)
    members = np.concatenate(game.calls[1:])[::2]
    np.testing.assert_array_equal(members, ~np.concatenate(game.calls[1:])[1::2])
    contributions, sizes = game.game(members) - game.game(~members), members.sum(axis=1)
    totals = np.full(n_players, np.diff(game.game(game.calls[0]))[0])
    variances = np.zeros(n_players)
    for size in range(1, n_players // 2 + 1):
        share = 0.5 if 2 * size == n_players else 1.0
        c, inside = contributions[sizes == size], members[sizes == size]
        weights = np.where(inside, n_players / size, -n_players / (n_players - size))
        products = (c - c.mean())[:, None] * weights
        m = len(c)
        totals += share * np.array([np.cov(c, w)[0, 1] for w in weights.T])
        variances += share**2 * (m / (m - 1)) ** 2 * products.var(axis=0, ddof=1) / m
    np.testing.assert_allclose(valuation.values, totals / n_players, atol=1e-12)
    np.testing.assert_allclose(valuation.stderr, np.sqrt(variances) / n_players, atol=1e-12)


@pytest.mark.parametrize("n_players", [2, 3, 8, 13])
def test_any_number_of_draws_and_either_half_holds_all_sizes_equally_often(n_players):
    pairs = np.concatenate([next(blocks) for blocks in [complementary_pairs(0, n_players)] for _ in range(3)])
    sizes = pairs[:, 0].sum(axis=1)
    strata = n_players // 2
    for draws in range(1, len(sizes) + 1):
        for part in (sizes[:draws], sizes[:draws:2], sizes[1:draws:2]):
            counts = np.bincount(part, minlength=strata + 1)[1:]
            assert len(counts) == strata
            assert np.ptp(counts) <= 2


@pytest.mark.parametrize("seed", range(20))
def test_the_smallest_budget_makes_an_estimate_and_twice_as_much_its_halves(seed):
    smallest = complementary_shapley(ANY_GAME, budget=2 + 2 * 6, rng=seed)
    assert np.isfinite(smallest.values).all()
    assert np.isfinite(smallest.stderr).all()
    assert smallest.halves is None
    assert np.isfinite(complementary_shapley(ANY_GAME, budget=2 + 4 * 6, rng=seed).halves).all()


def test_standard_errors_from_few_draws_are_calibrated():
    """Two or three draws a stratum, where a careless formula says a third of the truth."""
    runs = [complementary_shapley(ANY_GAME, budget=2 + 2 * 8, rng=seed) for seed in range(1000)]
    variance = np.var([run.values for run in runs], axis=0, ddof=1).sum()
    assert np.sqrt(np.mean([(run.stderr**2).sum() for run in runs]) / variance) == pytest.approx(1, abs=0.15)


def test_what_is_even_in_complementation_has_no_say():
    """Utilities that a coalition shares with its complement change nothing, to the bit but for rounding."""
    even = np.random.default_rng(1).normal(size=64)
    even += even[::-1]
    valuation, same = (
        complementary_shapley(game, budget=100, rng=0) for game in (ANY_GAME, Table(ANY_GAME.utilities + even))
    )
    np.testing.assert_allclose(same.values, valuation.values, atol=1e-13)
    np.testing.assert_allclose(same.stderr, valuation.stderr, atol=1e-13)
