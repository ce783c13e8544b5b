from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse.csgraph import minimum_spanning_tree

from baselines import exact_shapley
from tests.baselines.known_games import KNOWN_GAMES, Airport, Quadratic, Recorded, SpanningTree, Table


@st.composite
def tables(draw, min_players=1, max_players=6):
    n = draw(st.integers(min_players, max_players))
    return Table(draw(arrays(np.float64, 2**n, elements=st.floats(-100, 100))))


def relabelled(game, permutation):
    """The game in which player permutation[i] plays the part of player i."""
    codes = np.arange(2**game.n_players)
    members = (codes[:, None] >> np.asarray(permutation)) & 1
    return Table(game.utilities[members @ (1 << np.arange(game.n_players))])


@pytest.mark.parametrize("game", KNOWN_GAMES, ids=lambda game: type(game).__name__)
def test_known_values(game):
    np.testing.assert_allclose(exact_shapley(game).values, game.shapley(), rtol=1e-12, atol=1e-13)


def test_spanning_tree_game_is_that_of_the_graph():
    game, n = SpanningTree(6), 6
    graph = np.zeros((n + 1, n + 1))  # the source is last
    for player in range(n):
        graph[player, (player + 1) % n] = 1
        graph[player, n] = n + 1
    coalitions = np.array([[code >> i & 1 for i in range(n)] for code in range(2**n)], dtype=bool)
    costs = [
        minimum_spanning_tree(graph[np.ix_(m, m)]).sum()
        for m in map(np.flatnonzero, np.pad(coalitions, ((0, 0), (0, 1)), constant_values=True))
    ]
    np.testing.assert_array_equal(game(coalitions), costs)


@given(tables(max_players=5))
def test_mean_over_all_permutations(game):
    """The other definition of the Shapley value, in plain Python."""
    n = game.n_players
    expected = np.zeros(n)
    orders = list(permutations(range(n)))
    for order in orders:
        code = 0
        for player in order:
            expected[player] += game.utilities[code | 1 << player] - game.utilities[code]
            code |= 1 << player
    np.testing.assert_allclose(exact_shapley(game).values, expected / len(orders), atol=1e-10)


@given(tables())
def test_efficiency(game):
    total = game.utilities[-1] - game.utilities[0]
    assert exact_shapley(game).values.sum() == pytest.approx(total, abs=1e-10)


@given(st.data())
def test_symmetry(data):
    """Values follow the players when these change places; so players that can change places are worth the same."""
    game = data.draw(tables(min_players=2))
    permutation = data.draw(st.permutations(range(game.n_players)))
    values = exact_shapley(game).values
    np.testing.assert_allclose(exact_shapley(relabelled(game, permutation)).values[permutation], values, atol=1e-10)
    swapped = relabelled(game, [1, 0, *range(2, game.n_players)])
    symmetric = exact_shapley(Table(game.utilities + swapped.utilities)).values
    assert symmetric[0] == pytest.approx(symmetric[1], abs=1e-10)


@given(st.data())
def test_null_player(data):
    """A player that never changes anything is worth nothing, and the others are worth what they are without it."""
    game = data.draw(tables(max_players=5))
    player = data.draw(st.integers(0, game.n_players))
    utilities = game.utilities.reshape(-1, 1, 2**player).repeat(2, axis=1).ravel()
    values = exact_shapley(Table(utilities)).values
    assert values[player] == 0
    np.testing.assert_allclose(np.delete(values, player), exact_shapley(game).values, atol=1e-10)


@given(st.data(), st.floats(-5, 5), st.floats(-5, 5))
def test_linearity(data, a, b):
    one = data.draw(tables())
    other = Table(data.draw(arrays(np.float64, one.utilities.shape, elements=st.floats(-100, 100))))
    mixture = exact_shapley(Table(a * one.utilities + b * other.utilities)).values
    np.testing.assert_allclose(mixture, a * exact_shapley(one).values + b * exact_shapley(other).values, atol=1e-9)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 4096])
def test_each_coalition_is_evaluated_once_in_bounded_batches(batch_size):
    game = Recorded(Quadratic.random(6))
    valuation = exact_shapley(game, batch_size=batch_size)
    assert max(game.batch_sizes()) <= batch_size
    assert len(np.unique(np.concatenate(game.calls), axis=0)) == game.evaluations() == valuation.evaluations == 2**6
    np.testing.assert_array_equal(valuation.values, exact_shapley(Quadratic.random(6)).values)


def test_the_most_players():
    game = Airport(np.arange(1, 21))
    np.testing.assert_allclose(exact_shapley(game).values, game.shapley(), rtol=1e-10)


def test_too_many_players():
    message = "limited to n = 20 players, got n = 21; use a Monte Carlo estimator, such as"
    with pytest.raises(ValueError, match=message):
        exact_shapley(Airport(np.ones(21)))


def test_what_it_reports(capsys):
    valuation = exact_shapley(Airport([1, 2, 3]))
    assert (valuation.method, valuation.stderr, valuation.halves) == ("exact_shapley", None, None)
    assert valuation.seconds > 0
    assert capsys.readouterr().err == ""
    exact_shapley(Airport([1, 2, 3]), progress=True)
    assert "8/8" in capsys.readouterr().err


@pytest.mark.parametrize(("batch_size", "error"), [(0, ValueError), (2.0, TypeError)])
def test_bad_batch_size(batch_size, error):
    with pytest.raises(error, match="batch_size must be"):
        exact_shapley(Airport([1, 2]), batch_size=batch_size)
