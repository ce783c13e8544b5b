import dataclasses
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from baselines import Valuation, exact_shapley, permutation_shapley
from tests.baselines.known_games import Airport


def valuation(**changes):
    fields = {"values": np.arange(3.0), "stderr": None, "evaluations": 8, "seconds": 0.25, "method": "some_method"}
    return Valuation(**(fields | changes))


def test_reliability_is_the_spearman_correlation_of_the_halves():
    rng = np.random.default_rng(0)
    halves = rng.integers(0, 6, size=(2, 20)) + np.arange(20) / 4 // 1  # with ties
    value = valuation(values=halves.mean(axis=0), halves=halves).reliability()
    assert value == pytest.approx(spearmanr(*halves).statistic)
    assert 0 < value < 1


def test_reliability_of_reversed_ranks():
    assert valuation(halves=np.array([[1.0, 2.0, 9.0], [3.0, 2.0, 1.0]])).reliability() == pytest.approx(-1)


def test_reliability_grows_with_draws():
    game = Airport(np.arange(1, 31))
    few, many = (permutation_shapley(game, n, rng=0).reliability() for n in (4, 400))
    assert few < many
    assert many > 0.9


@pytest.mark.parametrize("one", [exact_shapley(Airport([1, 2])), permutation_shapley(Airport([1, 2]), 1, rng=0)])
def test_no_halves_no_reliability(one):
    with pytest.raises(ValueError, match=f"{one.method} has no halves to correlate"):
        one.reliability()


def test_a_constant_half_has_no_ranking():
    with pytest.raises(ValueError, match="all 3 players are equal in one half"):
        valuation(halves=np.array([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]])).reliability()


def test_repr_is_short():
    assert repr(valuation(values=np.arange(10_000.0))) == (
        "Valuation(some_method: 10000 players in [0, 1e+04], 8 evaluations, 0.25 s)"
    )


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        valuation().values = np.zeros(3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": np.zeros((3, 1))}, r"values must have shape \(n,\), got \(3, 1\)"),
        ({"stderr": np.zeros(2)}, r"stderr must have the shape of values, \(3,\), got \(2,\)"),
        ({"halves": np.zeros((3, 2))}, r"halves must have shape \(2, 3\), got \(3, 2\)"),
    ],
)
def test_shapes_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        valuation(**changes)


@given(values=st.lists(st.sampled_from([-np.inf, -1.5, -0.0, 0.0, 2.0]), min_size=1), data=st.data())
def test_top_and_bottom_are_sorted_and_of_equal_values_the_lower_number_comes_first(values, data):
    k = data.draw(st.integers(1, len(values)))
    one = valuation(values=np.array(values))
    players = range(len(values))
    assert one.top(k).tolist() == sorted(players, key=lambda player: (-values[player], player))[:k]
    assert one.bottom(np.int64(k)).tolist() == sorted(players, key=lambda player: (values[player], player))[:k]
    assert one.top(k).dtype == np.intp


@pytest.mark.parametrize("rank", [Valuation.top, Valuation.bottom])
@pytest.mark.parametrize(
    ("k", "error", "message"),
    [
        (0, ValueError, "k must be at least 1, got 0"),
        (-1, ValueError, "k must be at least 1, got -1"),
        (4, ValueError, "k must be at most the number of players, 3, got 4"),
        (1.0, TypeError, r"k must be an integer of at least 1, got 1.0 \(float\)"),
        (True, TypeError, "k must be an integer"),
    ],
)
def test_bad_k(rank, k, error, message):
    with pytest.raises(error, match=message):
        rank(valuation(), k)


@pytest.mark.parametrize("rank", [Valuation.top, Valuation.bottom])
def test_nan_has_no_rank(rank):
    with pytest.raises(ValueError, match="the value of player 1 is NaN, which has no rank; NaN in all: 2"):
        rank(valuation(values=np.array([0.0, np.nan, np.nan])), 1)


def test_frame():
    pd = pytest.importorskip("pandas")
    one = permutation_shapley(Airport([1, 2, 3]), 4, rng=0)
    frame = one.to_frame()
    expected = {"value": one.values, "stderr": one.stderr, "even": one.halves[0], "odd": one.halves[1]}
    pd.testing.assert_frame_equal(frame, pd.DataFrame(expected, index=pd.RangeIndex(3, name="player")))
    frame.loc[:, "value"] = 0.0
    assert one.values.all()  # what is done to the table is not done to the valuation


def test_frame_without_errors():
    pytest.importorskip("pandas")
    frame = exact_shapley(Airport([1, 2, 3])).to_frame()
    assert list(frame.columns) == ["value", "stderr"]
    assert frame["stderr"].dtype == np.float64
    assert frame["stderr"].isna().all()


def test_frame_without_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"^to_frame needs pandas: python -m pip install pandas$"):
        valuation().to_frame()
