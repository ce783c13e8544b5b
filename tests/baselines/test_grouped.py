"""Groups of players as players: what is left of a game when some of its players come and go together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from baselines import GroupedGame, exact_shapley
from tests.baselines.known_games import KNOWN_GAMES, Airport, Table
from tests.baselines.test_exact import tables

EACH = pytest.mark.parametrize("game", KNOWN_GAMES, ids=lambda game: type(game).__name__)


@st.composite
def grouped(draw):
    """A game and groups of its players, all numbers from 0 on in use."""
    game = draw(tables(min_players=1, max_players=6))
    labels = draw(st.lists(st.integers(0, 3), min_size=game.n_players, max_size=game.n_players))
    return game, np.unique(labels, return_inverse=True)[1]


class Additive:
    def __init__(self, worths):
        self.worths, self.n_players = worths, len(worths)

    def __call__(self, coalitions):
        return coalitions @ self.worths


@given(grouped())
def test_a_coalition_of_groups_is_worth_what_its_members_are(pair):
    game, groups = pair
    together = GroupedGame(game, groups)
    codes = np.arange(2**together.n_players)
    coalitions = (codes[:, None] >> np.arange(together.n_players) & 1).astype(bool)
    members = [sum(1 << p for p in range(game.n_players) if row[groups[p]]) for row in coalitions]
    np.testing.assert_array_equal(together(coalitions), game.utilities[members])


@EACH
def test_groups_of_one_are_the_game_itself(game):
    alone = exact_shapley(GroupedGame(game, np.arange(game.n_players)))
    np.testing.assert_allclose(alone.values, exact_shapley(game).values, rtol=1e-12, atol=1e-13)


@given(grouped())
def test_groups_share_out_what_their_members_do(pair):
    game, groups = pair
    values = exact_shapley(GroupedGame(game, groups)).values
    assert values.sum() == pytest.approx(game.utilities[-1] - game.utilities[0], abs=1e-9)


@given(arrays(np.float64, 6, elements=st.floats(-10, 10)), st.permutations([0, 0, 0, 1, 1, 2]))
def test_of_an_additive_game_a_groups_value_is_the_sum_of_its_members(worths, groups):
    values = exact_shapley(GroupedGame(Additive(worths), groups)).values
    np.testing.assert_allclose(values, np.bincount(groups, worths), atol=1e-12)


def test_of_another_game_it_is_not():
    """Two who share a runway pay for it once: as one player they pay as one, and not as two."""
    costs = np.array([1.0, 1.0, 1.0])
    alone = exact_shapley(Airport(costs)).values
    together = exact_shapley(GroupedGame(Airport(costs), [0, 0, 1])).values
    np.testing.assert_allclose(alone, 1 / 3)
    np.testing.assert_allclose(together, exact_shapley(Airport(costs[:2])).values)
    assert together[0] < alone[:2].sum()


def test_groups_of_groups_are_groups():
    game = Table(np.random.default_rng(0).normal(size=2**6))
    inner, outer = np.array([0, 1, 2, 2, 3, 3]), np.array([1, 0, 0, 1])
    nested, direct = GroupedGame(GroupedGame(game, inner), outer), GroupedGame(game, outer[inner])
    np.testing.assert_array_equal(exact_shapley(nested).values, exact_shapley(direct).values)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([0, 1], r"groups must be integers of shape \[3\], got int64 of shape \[2\]"),
        ([[0, 1, 2]], r"groups must be integers of shape \[3\], got int64 of shape \[1, 3\]"),
        ([0.0, 1.0, 1.0], r"groups must be integers of shape \[3\], got float64 of shape \[3\]"),
        ([0, 2, 2], r"groups must use all numbers from 0 on, got 2 numbers, 0 to 2"),
        ([1, 2, 3], r"groups must use all numbers from 0 on, got 3 numbers, 1 to 3"),
        ([-1, 0, 1], r"groups must use all numbers from 0 on, got 3 numbers, -1 to 1"),
    ],
)
def test_bad_groups_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        GroupedGame(Airport([1, 2, 3]), groups)


def test_what_is_no_game_is_refused():
    with pytest.raises(TypeError, match=r"a game has an integer n_players .* got dict"):
        GroupedGame({}, [0])
