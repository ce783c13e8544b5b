import pickle

import numpy as np
import pytest
from joblib import Parallel, delayed

from baselines import Game, exact_shapley, permutation_shapley, tmc_shapley
from baselines.cache import CachedGame, MeasuredGame
from baselines.store import StoreError, UtilityStore
from tests.baselines.known_games import KNOWN_GAMES, Airport, Recorded, Saturating

COALITIONS = np.array([[False, False, False], [True, False, True], [True, True, True], [True, False, True]])
SATURATING = Saturating(np.linspace(0.05, 1.0, 20))
ESTIMATORS = {
    "exact": lambda game, batch_size: exact_shapley(game, batch_size=batch_size),
    "permutation": lambda game, batch_size: permutation_shapley(game, 20, rng=1, batch_size=batch_size),
    "tmc": lambda game, batch_size: tmc_shapley(game, 20, tolerance=0.1, rng=1, batch_size=batch_size),
}


@pytest.fixture
def store(tmp_path):
    return UtilityStore(tmp_path / "utilities.db")


class OneByOne:
    """So that a utility does not depend on the rest of its batch, not even in the last bit."""

    def __init__(self, game):
        self.game, self.n_players = game, game.n_players

    def __call__(self, coalitions):
        return np.array([self.game(coalition[None])[0] for coalition in coalitions])


class Fitted:
    """A measured game: an evaluation gives both loss and accuracy."""

    measures = ("loss", "accuracy")
    n_players = 6

    def __init__(self, utility, seed=0):
        self.utility, self.seed, self.evaluations = utility, seed, 0

    def identity(self):
        return f"fitted with seed {self.seed}"

    def measure(self, coalitions):
        self.evaluations += len(coalitions)
        sizes = coalitions.sum(axis=1)
        return np.stack([-np.exp(-sizes), np.tanh(sizes)], axis=1)

    def __call__(self, coalitions):
        return self.measure(coalitions)[:, self.measures.index(self.utility)]


def assert_same_bits(one, other):
    for name in ("values", "stderr", "halves"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (one.evaluations, one.parameters) == (other.evaluations, other.parameters)


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
@pytest.mark.parametrize("game", KNOWN_GAMES, ids=lambda game: type(game).__name__)
def test_an_estimator_gives_the_same_bits_and_a_second_run_evaluates_nothing(store, game, estimator):
    game = OneByOne(game)
    asked = Recorded(game)
    cached = CachedGame(asked, store, "game")
    expected = estimator(game, 64)
    assert_same_bits(estimator(cached, 64), expected)
    assert cached.misses == asked.evaluations() == len(store) <= 2**game.n_players
    assert cached.hits + cached.misses == expected.evaluations
    for batch_size in (64, 9):
        again = CachedGame(Recorded(game), UtilityStore(store.path), "game", replay_only=True)
        assert_same_bits(estimator(again, batch_size), expected)
        assert (again.game.calls, again.misses) == ([], 0)
        assert again.hits == expected.evaluations


def test_estimators_share_what_they_evaluate(store):
    asked = Recorded(SATURATING)
    cached = CachedGame(asked, store, "saturating")
    permutation_shapley(cached, 40, rng=3)
    evaluated = asked.evaluations()
    assert_same_bits(tmc_shapley(cached, 40, tolerance=0.1, rng=3), tmc_shapley(SATURATING, 40, tolerance=0.1, rng=3))
    assert asked.evaluations() == evaluated  # truncated permutations are the same ones, cut short
    permutation_shapley(cached, 60, rng=3)  # goes on where the shorter run stopped
    assert evaluated < asked.evaluations() <= evaluated + 20 * 19


def test_no_coalition_is_asked_for_twice(store):
    asked = Recorded(Airport([1, 2, 3]))
    cached = CachedGame(asked, store, "airport")
    assert cached(COALITIONS).tolist() == [0, 3, 3, 3]
    assert cached(COALITIONS[::-1]).tolist() == [3, 3, 3, 0]
    np.testing.assert_array_equal(asked.calls, [COALITIONS[:3]])
    assert (cached.hits, cached.misses) == (5, 3)


def test_all_measures_come_from_one_evaluation(store):
    loss, accuracy = Fitted("loss"), Fitted("accuracy")
    valuation = permutation_shapley(CachedGame(loss, store), 20, rng=0)
    assert_same_bits(valuation, permutation_shapley(Fitted("loss"), 20, rng=0))
    assert loss.evaluations == len(store) > 0
    cached = CachedGame(accuracy, store)
    assert_same_bits(permutation_shapley(cached, 20, rng=0), permutation_shapley(Fitted("accuracy"), 20, rng=0))
    assert accuracy.evaluations == cached.misses == 0
    coalitions = np.eye(6, dtype=bool)
    np.testing.assert_array_equal(cached.measure(coalitions), Fitted("loss").measure(coalitions))


def test_a_game_says_what_it_is_known_by(store):
    for game, identity in ((Fitted("loss"), None), (Fitted("loss", seed=1), None), (Fitted("loss"), "third")):
        cached = CachedGame(game, store, identity)
        cached(np.ones((1, 6), dtype=bool))
        assert (cached.hits, cached.misses) == (0, 1)
        assert cached.identity() == store.games()[-1].identity
    assert [game.identity for game in store.games()] == ["fitted with seed 0", "fitted with seed 1", "third"]
    with pytest.raises(TypeError, match=r"identity must be given, since Airport has no method identity\(\)"):
        CachedGame(Airport([1, 2]), store)


def test_a_cached_game_is_a_game_of_the_same_kind(store, tmp_path):
    cached = CachedGame(Fitted("accuracy"), store)
    assert isinstance(cached, Game)
    assert isinstance(cached, MeasuredGame)
    assert (cached.measures, cached.utility) == (("loss", "accuracy"), "accuracy")
    beside = CachedGame(cached, UtilityStore(tmp_path / "beside.db"))
    np.testing.assert_array_equal(beside(np.eye(6, dtype=bool)), Fitted("accuracy")(np.eye(6, dtype=bool)))
    assert beside.store.games() == store.games()


def test_bad_games_are_refused(store):
    with pytest.raises(TypeError, match="a game has an integer n_players"):
        CachedGame(max, store, "max")
    with pytest.raises(ValueError, match=r"must be one of its measures \('loss', 'accuracy'\), got 'f1'"):
        CachedGame(Fitted("f1"), store)
    with pytest.raises(TypeError, match=r"identity must be a string that names the game, got 3 \(int\)"):
        CachedGame(Airport([1, 2, 3]), store, 3)(COALITIONS)
    CachedGame(Airport([1, 2]), store, "airport")(COALITIONS[:, :2])
    with pytest.raises(ValueError, match=r"has a game 'airport' of 2 players .* got 3 players"):
        CachedGame(Airport([1, 2, 3]), store, "airport")(COALITIONS)


def test_a_replay_names_the_coalition_that_is_missing(store):
    CachedGame(Airport([1, 2, 3]), store, "airport")(COALITIONS[:1])
    replay = CachedGame(Airport([1, 2, 3]), store, "airport", replay_only=True)
    assert replay(COALITIONS[:1]).tolist() == [0]
    match = r"db' lacks 2 coalitions of the game 'airport' .*, first the coalition of size 2 with members \[0, 2\]"
    with pytest.raises(LookupError, match=match):
        replay(COALITIONS)
    assert len(store) == 1


class Diverges(Airport):
    def __call__(self, coalitions):
        return np.where(coalitions.sum(axis=1) == 2, np.nan, super().__call__(coalitions))


def test_estimators_name_the_coalition_that_diverged_and_the_others_are_kept(store):
    asked = Recorded(Diverges([1, 2, 3]))
    for _ in range(2):
        with pytest.raises(ValueError, match="got nan from CachedGame for the coalition of size 2"):
            exact_shapley(CachedGame(asked, store, "diverges"))
    assert [len(call) for call in asked.calls] == [8, 3]
    assert len(store) == 5


class Stops(Airport):
    """Carries what it had finished."""

    def __call__(self, coalitions):
        error = RuntimeError("out of memory")
        error.utilities = np.where(np.arange(len(coalitions)) < 2, super().__call__(coalitions), np.nan)
        raise error


def test_what_was_finished_before_an_error_is_kept(store):
    with pytest.raises(RuntimeError, match="out of memory"):
        CachedGame(Stops([1, 2, 3]), store, "airport")(COALITIONS)
    assert CachedGame(Airport([1, 2, 3]), store, "airport", replay_only=True)(COALITIONS[:2]).tolist() == [0, 3]


@pytest.mark.parametrize("answer", [0.0, np.zeros(4), np.zeros((3, 1)), [["a"]] * 3], ids=repr)
def test_bad_answers_are_refused_as_without_a_store(store, answer):
    class Returns:
        n_players = 3

        def __call__(self, coalitions):
            return answer

    with pytest.raises(ValueError, match=r"compute must return|must be a real number"):
        CachedGame(Returns(), store, "returns")(COALITIONS)
    assert len(store) == 0


def test_damage_is_an_error_of_the_estimator(store):
    cached = CachedGame(Airport([1, 2, 3.0625]), store, "airport")
    exact_shapley(cached)
    content = store.path.read_bytes()
    store.path.write_bytes(content.replace(np.float64(3.0625).tobytes(), np.float64(4.0625).tobytes()))
    with pytest.raises(StoreError, match="of 8 coalitions of the game 'airport', the rows of 4 fail their checksum"):
        exact_shapley(cached)


def test_workers_share_a_cached_game(store):
    cached = CachedGame(SATURATING, store, "saturating")
    seeds = range(4)
    parallel = Parallel(n_jobs=2)(delayed(permutation_shapley)(cached, 5, rng=seed) for seed in seeds)
    replay = pickle.loads(pickle.dumps(CachedGame(SATURATING, store, "saturating", replay_only=True)))  # noqa: S301
    for seed, valuation in zip(seeds, parallel, strict=True):
        assert_same_bits(valuation, permutation_shapley(SATURATING, 5, rng=seed))
        assert_same_bits(valuation, permutation_shapley(replay, 5, rng=seed))
    assert store.verify() == len(store)
