import numpy as np
import pytest

from baselines import exact_semivalue, leave_one_out
from tests.baselines.known_games import KNOWN_GAMES, Recorded, Table

ANY_GAME = Table(np.random.default_rng(0).normal(size=2**6))


@pytest.mark.parametrize("game", [*KNOWN_GAMES, ANY_GAME], ids=lambda game: type(game).__name__)
def test_it_is_the_semivalue_of_coalitions_of_all_others(game):
    valuation = leave_one_out(game)
    expected = exact_semivalue(game, lambda n: np.eye(n)[n - 1])
    np.testing.assert_allclose(valuation.values, expected.values, rtol=1e-12, atol=1e-12)


def test_by_hand():
    assert leave_one_out(Table([0.0, 1.0, 4.0, 9.0])).values.tolist() == [5.0, 8.0]
    assert leave_one_out(Table([1.0, 4.0])).values.tolist() == [3.0]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 4096])
def test_batch_size_changes_nothing(batch_size):
    game = Recorded(ANY_GAME)
    valuation = leave_one_out(game, batch_size=batch_size)
    np.testing.assert_array_equal(valuation.values, leave_one_out(ANY_GAME).values)
    assert game.evaluations() == valuation.evaluations == 7
    assert len(np.unique(np.concatenate(game.calls), axis=0)) == 7
    assert max(game.batch_sizes()) <= batch_size


def test_what_it_reports(capsys):
    valuation = leave_one_out(ANY_GAME)
    assert (valuation.method, valuation.stderr, valuation.halves) == ("leave_one_out", None, None)
    assert valuation.seconds > 0
    assert capsys.readouterr().err == ""
    leave_one_out(ANY_GAME, progress=True)
    assert "7/7" in capsys.readouterr().err


def test_bad_batch_size():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        leave_one_out(ANY_GAME, batch_size=0)
