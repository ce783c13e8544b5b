import numpy as np
import pytest

from baselines import group_testing_shapley
from tests.baselines.known_games import Recorded, Saturating, Table


@pytest.mark.parametrize("n_players", [2, 5, 6])
def test_differences_of_values_are_those_of_the_tests(n_players):
    """Lemma 2 of Jia et al. for each two players, recomputed from the coalitions that were evaluated."""
    game = Recorded(Table(np.random.default_rng(n_players).normal(size=2**n_players)))
    valuation = group_testing_shapley(game, budget=60, rng=0)
    empty, grand = game.game(game.calls[0])
    members = np.concatenate(game.calls[1:])
    levels = game.game(members) - (empty + grand) / 2
    z = 2 * (1 / np.arange(1, n_players)).sum()
    for one in range(n_players):
        for other in range(n_players):
            difference = z * np.mean(levels * (members[:, one].astype(int) - members[:, other]))
            assert valuation.values[one] - valuation.values[other] == pytest.approx(difference, abs=1e-12)
    tests = z * levels[:, None] * (members - members.mean(axis=1, keepdims=True))
    np.testing.assert_allclose(valuation.stderr, tests.std(axis=0, ddof=1) / np.sqrt(len(tests)), atol=1e-12)


def test_sizes_are_drawn_as_the_lemma_has_it():
    game = Recorded(Saturating(np.ones(7)))
    group_testing_shapley(game, budget=2 + 6000, rng=0)
    counts = np.bincount(np.concatenate(game.calls[1:]).sum(axis=1), minlength=7)[1:]
    sizes = np.arange(1, 7)
    expected = 1 / sizes + 1 / (7 - sizes)
    expected *= 6000 / expected.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 20.5  # chi-squared, 5 degrees of freedom: 0.001


def test_a_single_test_has_no_standard_error():
    valuation = group_testing_shapley(Table([0.0, 1.0, 2.0, 5.0]), budget=3, rng=0)
    assert valuation.stderr is None
    assert valuation.halves is None
    assert valuation.values.sum() == pytest.approx(5)
