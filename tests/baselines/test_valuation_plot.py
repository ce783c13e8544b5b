import sys
from itertools import pairwise

import numpy as np
import pytest

from baselines import Valuation


def valuation(n, *, stderr=True):
    rng = np.random.default_rng(0)
    return Valuation(rng.normal(size=n), rng.random(n) if stderr else None, evaluations=8, seconds=0.25, method="mine")


@pytest.fixture
def pyplot():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def points(ax):
    return next(line for line in ax.lines if line.get_label() == "value").get_xydata()


def bars(ax):
    """Lower and upper end of each error bar, [n, 2]."""
    return np.array([segment[:, 1] for segment in ax.containers[0].lines[2][0].get_segments()])


@pytest.mark.parametrize("n", [1, 7, 500])
def test_values_from_the_highest_to_the_lowest_with_their_errors(n, pyplot):
    one = valuation(n)
    ax = one.plot()
    order = one.top(n)
    np.testing.assert_array_equal(points(ax), np.stack([np.arange(1, n + 1), one.values[order]], axis=1))
    expected = one.values[order, None] + one.stderr[order, None] * [-1, 1]
    np.testing.assert_allclose(bars(ax), expected)
    assert ax.get_title() == "mine"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["value", "one standard error"]
    ax.figure.canvas.draw()


def test_few_players_are_named(pyplot):
    one = valuation(20)
    ax = one.plot()
    assert [int(label.get_text()) for label in ax.get_xticklabels()] == one.top(20).tolist()
    ax.figure.canvas.draw()
    boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))  # and legibly
    assert [label.get_text() for label in valuation(21).plot().get_xticklabels()] != valuation(21).top(21).tolist()


def test_without_errors_there_are_no_bars(pyplot):
    ax = valuation(5, stderr=False).plot()
    assert not ax.containers
    assert ax.get_legend() is None


def test_it_draws_on_the_axes_it_is_given_and_opens_no_other(pyplot):
    _, (left, right) = pyplot.subplots(1, 2)
    assert valuation(5).plot(right) is right
    assert valuation(5).plot(ax=right) is right
    assert not left.lines
    assert len(pyplot.get_fignums()) == 1
    assert valuation(5).plot() not in (left, right)


def test_it_is_told_apart_without_colour(pyplot):
    ax = valuation(5).plot()
    value = next(line for line in ax.lines if line.get_label() == "value")
    lightness = [float(value.get_color()), float(ax.containers[0].lines[2][0].get_color()[0][0])]
    assert lightness[1] - lightness[0] > 0.3


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"^plot needs matplotlib: python -m pip install matplotlib$"):
        valuation(3).plot()


def test_nan_is_refused():
    with pytest.raises(ValueError, match="the value of player 0 is NaN"):
        Valuation(np.array([np.nan]), None, evaluations=0, seconds=0.0, method="mine").plot()
