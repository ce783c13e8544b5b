import numpy as np
import pytest

from baselines import banzhaf
from baselines.banzhaf import _difference_of_means
from baselines.monte_carlo import UndeterminedError
from tests.baselines.known_games import Recorded, Saturating, Table


def test_it_is_the_difference_of_two_means():
    """Recomputed from the coalitions that were evaluated, standard errors too."""
    game = Recorded(Table(np.random.default_rng(0).normal(size=2**6)))
    valuation = banzhaf(game, budget=50, rng=0)
    coalitions = np.concatenate(game.calls)
    utilities = game.game(coalitions)
    for player in range(6):
        inside, outside = utilities[coalitions[:, player]], utilities[~coalitions[:, player]]
        assert valuation.values[player] == pytest.approx(inside.mean() - outside.mean(), abs=1e-12)
        squared = inside.var(ddof=1) / len(inside) + outside.var(ddof=1) / len(outside)
        assert valuation.stderr[player] == pytest.approx(np.sqrt(squared), abs=1e-12)


def test_all_coalitions_are_equally_likely():
    game = Recorded(Saturating(np.ones(4)))
    banzhaf(game, budget=3200, rng=0)
    counts = np.bincount(np.concatenate(game.calls) @ (1 << np.arange(4)), minlength=16)
    assert ((counts - 200) ** 2 / 200).sum() < 37.7  # chi-squared, 15 degrees of freedom: 0.001


@pytest.mark.parametrize(("n_players", "least"), [(1, 21), (2, 22), (6, 24), (1000, 31)])
def test_the_fewest_draws_grow_with_the_logarithm_of_players(n_players, least):
    with pytest.raises(ValueError, match=f"budget must be at least {least} evaluated coalitions"):
        banzhaf(Saturating(np.ones(n_players)), budget=1)


@pytest.mark.parametrize("there", [False, True])
def test_a_player_that_was_always_or_never_there(there):
    """One chance in a million, so that it is not left to chance here."""
    members = np.random.default_rng(0).random((30, 3)) < 0.5
    members[:, 1] = there
    with pytest.raises(UndeterminedError, match="30 coalitions hold a player always or never; give a larger budget"):
        _difference_of_means(members, np.zeros((30, 1)))
