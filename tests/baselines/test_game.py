import numpy as np
import pytest

from baselines import Game, evaluate, exact_shapley, leave_one_out, permutation_shapley, tmc_shapley
from baselines.game import evaluate_in_batches
from tests.baselines.known_games import KNOWN_GAMES, Airport, Recorded

COALITIONS = np.array([[False, False, False], [True, False, True], [True, True, True]])
ESTIMATORS = [
    exact_shapley,
    lambda game: permutation_shapley(game, 2, rng=0),
    lambda game: tmc_shapley(game, 2, rng=0),
    leave_one_out,
]


class Returns:
    n_players = 3

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, _coalitions):
        return self.answer


@pytest.mark.parametrize("game", KNOWN_GAMES, ids=lambda game: type(game).__name__)
def test_known_games_are_games(game):
    assert isinstance(game, Game)


@pytest.mark.parametrize(
    "answer", [[0, 1, 2], np.float32([0, 1, 2]), np.array([0, 1, 2], dtype=object).astype(int)], ids=repr
)
def test_answers_become_float64(answer):
    utilities = evaluate(Returns(answer), COALITIONS)
    assert utilities.dtype == np.float64
    assert utilities.tolist() == [0.0, 1.0, 2.0]


def test_boolean_answers_are_numbers():
    assert evaluate(Returns([True, False, True]), COALITIONS).tolist() == [1.0, 0.0, 1.0]


def test_no_coalitions_no_call():
    assert evaluate(Returns("never asked"), COALITIONS[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.zeros(2), r"one utility for each coalition, shape \(3,\), got shape \(2,\) from Returns"),
        (np.zeros((3, 1)), r"shape \(3,\), got shape \(3, 1\)"),
        (1.0, r"got shape \(\)"),
        (["a", "b", "c"], r"must return real numbers, got an array of <U1"),
        (np.zeros(3, dtype=complex), r"real numbers, got an array of complex128"),
        ([None, 0.0, 0.0], r"real numbers, got an array of object"),
        (
            [0.0, np.nan, np.inf],
            r"finite utilities, got nan from Returns for the coalition of size 2 with members \[0, 2\]; .*: 2 of 3",
        ),
        ([0.0, 0.0, -np.inf], r"got -inf .* size 3 with members \[0, 1, 2\]; .*: 1 of 3"),
    ],
)
def test_bad_answers_are_refused(answer, message):
    with pytest.raises(ValueError, match=message):
        evaluate(Returns(answer), COALITIONS)


def test_long_coalitions_are_abridged():
    game = Returns([np.nan])
    game.n_players = 1000
    with pytest.raises(ValueError, match=r"size 1000 with members \[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, \.\.\.\]"):
        evaluate(game, np.ones((1, 1000), dtype=bool))


@pytest.mark.parametrize("batch_size", [1, 4, 10, 100])
def test_batches_of_numbered_coalitions(batch_size, capsys):
    game = Recorded(Airport([1, 2, 3]))

    def one_player_each(numbers):
        return numbers[:, None] % 3 == np.arange(3)

    utilities = evaluate_in_batches(game, 10, one_player_each, batch_size)
    assert utilities.tolist() == [1, 2, 3, 1, 2, 3, 1, 2, 3, 1]
    assert game.batch_sizes() == [batch_size] * (10 // batch_size) + [10 % batch_size] * (10 % batch_size > 0)
    assert capsys.readouterr().err == ""
    evaluate_in_batches(game, 10, one_player_each, batch_size, bar="planes")
    assert "planes: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("coalitions", [COALITIONS.astype(int), COALITIONS[0], COALITIONS[:, :2]])
def test_bad_coalitions_are_refused(coalitions):
    with pytest.raises(ValueError, match=r"coalitions must be a bool array of shape \(m, 3\), got"):
        evaluate(Returns(np.zeros(3)), coalitions)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    ("n_players", "error", "message"),
    [
        (0, ValueError, "n_players of a game must be at least 1, got 0"),
        (-1, ValueError, "got -1"),
        (3.0, TypeError, r"n_players of a game must be an integer of at least 1, got 3.0 \(float\)"),
        (True, TypeError, "got True"),
    ],
)
def test_bad_player_counts_are_refused(estimator, n_players, error, message):
    game = Returns(np.zeros(2))
    game.n_players = n_players
    with pytest.raises(error, match=message):
        estimator(game)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("not_a_game", [np.max, 3, None])
def test_what_is_no_game_is_refused(estimator, not_a_game):
    with pytest.raises(TypeError, match="a game has an integer n_players and can be called"):
        estimator(not_a_game)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_numpy_integers_count_players(estimator):
    game = Airport([1, 2, 3])
    game.n_players = np.int64(3)
    np.testing.assert_array_equal(estimator(game).values, estimator(Airport([1, 2, 3])).values)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimators_check_the_answers(estimator):
    class Diverges(Airport):
        def __call__(self, coalitions):
            return np.where(coalitions.sum(axis=1) == 2, np.nan, super().__call__(coalitions))

    with pytest.raises(ValueError, match="got nan from Diverges for the coalition of size 2"):
        estimator(Diverges([1, 2, 3]))
