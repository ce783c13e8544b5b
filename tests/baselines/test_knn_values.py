"""What holds for one estimator of the KNN family or between two of them; the hard-label one has a file of its own."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines import exact_shapley, knn_shapley
from baselines.knn import (
    knn_regression_shapley,
    soft_knn_shapley,
    threshold_knn_shapley,
    weighted_knn_shapley,
)
from tests.baselines.neighbour_games import NearestNeighbours, dataset, small_datasets, threshold


def test_soft_votes_of_all_are_votes_within_any_radius():
    data = dataset()
    expected = threshold_knn_shapley(*data, math.inf).values
    np.testing.assert_allclose(soft_knn_shapley(*data, k=300).values, expected, atol=1e-14)


def test_soft_votes_differ_from_hard_ones_in_small_coalitions_alone():
    """With one neighbour, in the empty one: its value, 1 / C, is shared by all."""
    data = dataset()
    np.testing.assert_allclose(
        soft_knn_shapley(*data, k=1).values, knn_shapley(*data, k=1).values - 1 / 4 / 300, atol=1e-15
    )


@settings(max_examples=50)
@given(small_datasets(), st.sampled_from([0.0, 1.0, math.sqrt(2), 2.0, 2.2]))
def test_threshold_equals_enumeration_of_the_game(data, radius):
    x_train, y_train, x_test, y_test, _ = data
    classes = len(set(y_train.tolist()) | set(y_test.tolist()))
    expected = exact_shapley(NearestNeighbours(threshold(classes, radius), *data)).values
    values = threshold_knn_shapley(x_train, y_train, x_test, y_test, radius).values
    np.testing.assert_allclose(values, expected, atol=1e-12)


def test_who_is_outside_of_the_radius_is_a_null_player():
    x_train, y_train, x_test, y_test = dataset(t=1)
    within = ((x_train - x_test) ** 2).sum(axis=1) <= 2.5**2
    values = threshold_knn_shapley(x_train, y_train, x_test, y_test, 2.5).values
    assert 0 < within.sum() < 300
    np.testing.assert_array_equal(values != 0, within)


def test_nobody_within_the_radius():
    np.testing.assert_array_equal(threshold_knn_shapley(*dataset(), 0).values, np.zeros(300))


@pytest.mark.parametrize("scale", [1, 0.1, 1 / 255])
@pytest.mark.parametrize("metric", ["euclidean", "cityblock"])
def test_a_point_at_the_radius_is_within(scale, metric):
    grid = np.array([[i, j] for i in range(-9, 10) for j in range(-9, 10)])
    test = np.array([[1, 2]])
    length = np.abs(grid - test).sum(axis=1) if metric == "cityblock" else np.hypot(*(grid - test).T)
    values = threshold_knn_shapley(grid * scale, np.ones(len(grid)), test * scale, [0], 5 * scale, metric=metric).values
    np.testing.assert_array_equal(values != 0, length <= 5)


@pytest.mark.parametrize(("radius", "error"), [(-1.0, ValueError), (math.nan, ValueError), ("1", TypeError)])
def test_bad_radius(radius, error):
    with pytest.raises(error, match="radius must be"):
        threshold_knn_shapley(*dataset(), radius)


@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_regression_is_quadratic_in_the_unit_of_targets(unit):
    x_train, y_train, x_test, y_test = dataset()
    expected = knn_regression_shapley(x_train, y_train, x_test, y_test).values * unit**2
    values = knn_regression_shapley(x_train, y_train * unit, x_test, y_test * unit).values
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-12 * unit**2)


def test_regression_on_targets_of_0_and_1_for_one_neighbour_is_classification():
    """For y = 1 the squared error of a single neighbour counts wrong votes, of none a wrong one."""
    x_train, y_train, x_test, _ = dataset(classes=2)
    ones = np.ones(50)
    expected = knn_shapley(x_train, y_train, x_test, ones, k=1).values
    np.testing.assert_allclose(knn_regression_shapley(x_train, y_train, x_test, ones, k=1).values, expected, atol=1e-14)


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (["a", "b", "c", "d"], TypeError, "y_train must be real numbers, got .a. "),
        ([0, 1, math.inf, 1], ValueError, "y_train must be finite and small enough to be squared, got up to inf"),
        ([0, 1, 1e200, 1], ValueError, "y_train must be .* got up to 1e\\+200"),
        ([[0], [1], [0], [1]], ValueError, "y_train must have one target for each point"),
    ],
)
def test_bad_targets(targets, error, message):
    with pytest.raises(error, match=message):
        knn_regression_shapley(np.zeros((4, 2)), targets, np.zeros((1, 2)), [0.0], k=2)


def vote_by_counting(votes, k):
    """Shapley values of a weighted vote from numbers of coalitions by size and sum of votes, as exact integers."""
    n, reach = len(votes), k * max(1, np.abs(votes).max())
    f = 0.5 + 0.5 * np.sign(np.arange(-reach, reach + 1))

    def worth_by_size(players):
        """Sum of f over all coalitions of these players, by their size: they come from near to far."""
        count = np.zeros((n + 1, 2 * reach + 1), dtype=np.int64)
        count[0, reach] = 1
        for vote in players:
            joined = np.roll(count, 1, axis=0)
            joined[: k + 1] = np.roll(joined[: k + 1], vote, axis=1)  # among the k nearest: it becomes the size-th
            count = count + joined
        return (count * f).sum(axis=1)

    def of(player):
        others = np.delete(votes, player)
        without = worth_by_size(others)
        joined = worth_by_size(votes) - without  # coalitions with the player, by their size
        weights = [1 / (n * math.comb(n - 1, size)) for size in range(n)]
        return sum(weights[size] * (joined[size + 1] - without[size]) for size in range(n))

    return np.array([of(player) for player in range(n)])


@pytest.mark.parametrize("k", [1, 4, 20, 30, 39, 40])
@pytest.mark.parametrize("bits", [1, 2])
def test_weighted_equals_counting_of_coalitions(k, bits):
    """Many neighbours beside few training points: the table is read downwards."""
    x_train, y_train, x_test, y_test = dataset(n=40, t=1, classes=2, seed=k)
    distances = np.sqrt(((x_train - x_test) ** 2).sum(axis=1))
    order = np.argsort(distances)
    largest = 2**bits - 1
    levels = np.maximum(1, np.floor(distances.min() / distances * largest + 0.5)).astype(int)
    votes = np.where(y_train == y_test, levels, -levels)[order]
    values = weighted_knn_shapley(x_train, y_train, x_test, y_test, k, bits=bits).values
    np.testing.assert_allclose(values[order], vote_by_counting(votes, k), atol=1e-12)


def test_weights_of_one_bit_are_the_majority_vote():
    def majority(near, label, k, _all):
        votes = [1 if y == label else -1 for _, y in near[:k]]
        return 0.5 + 0.5 * np.sign(sum(votes))

    data = dataset(n=9, t=4, classes=2)
    expected = exact_shapley(NearestNeighbours(majority, *data, 4)).values
    for weights in ("inverse distance", "rbf", np.ones_like):
        values = weighted_knn_shapley(*data, 4, weights=weights, bits=1).values
        np.testing.assert_allclose(values, expected, atol=1e-13)


def test_one_neighbour_has_no_need_of_weights():
    """The vote of one is the hard label; tossing a coin if there is none costs everybody the same."""
    data = dataset()
    expected = knn_shapley(*data, k=1).values - 0.5 / 300
    np.testing.assert_allclose(weighted_knn_shapley(*data, k=1).values, expected, atol=1e-13)


def test_labels_of_two_classes_are_played_for_against_each_other():
    """If the test point had the other label, all values would have the other sign."""
    x_train, y_train, x_test, y_test = dataset(classes=2)
    values = weighted_knn_shapley(x_train, y_train, x_test, y_test).values
    np.testing.assert_allclose(weighted_knn_shapley(x_train, y_train, x_test, 1 - y_test).values, -values, atol=1e-13)


def weighted_game(weight, data, k, bits):
    """`weight(distance, all_distances)`, rounded to levels of the largest; the game in plain Python."""

    def worth(near, label, k, all_distances):
        peak, largest = max(weight(d, all_distances) for d in all_distances), 2**bits - 1

        def vote(distance):
            share = weight(distance, all_distances)
            return 0 if share == 0 else max(1, math.floor(share / peak * largest + 0.5 + 1e-9))

        balance = sum(vote(d) if y == label else -vote(d) for d, y in near[:k])
        return 0.5 if balance == 0 else float(balance > 0)

    return NearestNeighbours(worth, *data, k)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("k", [2, 5])
def test_other_weights_equal_enumeration(bits, k):
    data = dataset(n=8, t=3, classes=2)

    def rbf(distance, all_distances):
        return math.exp(-(distance**2) / 2 / sorted(all_distances)[k - 1] ** 2)

    def far_ones_have_no_vote(distance, _all):
        return max(0.0, 3.0 - distance)

    for weights, weight in (("rbf", rbf), (lambda d: np.maximum(0.0, 3.0 - d), far_ones_have_no_vote)):
        expected = exact_shapley(weighted_game(weight, data, k, bits)).values
        values = weighted_knn_shapley(*data, k, weights=weights, bits=bits).values
        np.testing.assert_allclose(values, expected, atol=1e-12)


def test_a_point_at_the_test_point_outweighs_all_others():
    """Three neighbours, right and at the test point the first: two wrong ones farther away do not outvote it."""
    x_train, y_train = np.array([[0.0], [1.0], [1.1]]), [1, 0, 0]
    values = weighted_knn_shapley(x_train, y_train, [[0.0]], [1], k=3).values
    assert values.sum() == pytest.approx(0.5)


@pytest.mark.parametrize("weights", ["inverse distance", "rbf"])
def test_all_points_at_the_test_point(weights):
    values = weighted_knn_shapley(np.ones((5, 2)), [1, 1, 1, 1, 1], np.ones((1, 2)), [1], k=3, weights=weights).values
    np.testing.assert_allclose(values, 0.1, atol=1e-14)


@pytest.mark.parametrize("scale", [1, 0.1, 1 / 255])
def test_ties_are_at_one_distance_and_copies_of_the_test_point_at_none(scale):
    """What a function of distances is asked for has no rounding by which it could tell equal distances apart."""
    rng = np.random.default_rng(0)
    pixels, y_train = rng.integers(0, 5, (200, 12)), rng.integers(0, 2, 200)
    pixels[100:] = pixels[:100]
    seen = []

    def weights(distances):
        seen.extend(distances)
        return np.ones_like(distances)

    weighted_knn_shapley(pixels * scale, y_train, pixels[:20] * scale, y_train[:20], weights=weights)
    squares = ((pixels[:20, None] - pixels) ** 2).sum(axis=2)
    for distances, exact in zip(seen, squares, strict=True):
        assert len(np.unique(distances)) == len(np.unique(exact))
        assert np.count_nonzero(distances == 0) == np.count_nonzero(exact == 0) >= 2
        np.testing.assert_allclose(distances, np.sqrt(np.sort(exact)) * scale, rtol=1e-12)


def test_a_vote_of_no_weight_is_a_place_lost():
    """Nobody has a vote: every coalition tosses a coin."""
    np.testing.assert_array_equal(weighted_knn_shapley(*dataset(), weights=np.zeros_like).values, np.zeros(300))


def test_what_weighted_reports():
    data = dataset(t=3)
    parameters = weighted_knn_shapley(*data, k=2, weights="rbf", bits=2).parameters
    assert parameters == {"k": 2, "weights": "rbf", "bits": 2, "metric": "euclidean", "n_test": 3}
    assert weighted_knn_shapley(*data, weights=np.ones_like).parameters["weights"] == "ones_like"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weights": "distance"}, ValueError, "weights must be 'inverse distance', 'rbf' or a function .* 'distance'"),
        ({"weights": 2}, TypeError, r"weights must be .* got 2 \(int\)"),
        ({"weights": lambda d: -d}, ValueError, "weights must not be negative or NaN, got -"),
        ({"weights": lambda d: d * np.nan}, ValueError, "weights must not be negative or NaN, got nan"),
        ({"weights": lambda d: d[:, 0]}, ValueError, r"weights must be one for each distance, shape \(2, 9\), got"),
        ({"bits": 0}, ValueError, "bits must be at least 1, got 0"),
        ({"bits": 9}, ValueError, "bits must be at most 8, got 9"),
        ({"bits": 2.0}, TypeError, "bits must be an integer"),
    ],
)
def test_bad_weights(changes, error, message):
    with pytest.raises(error, match=message):
        weighted_knn_shapley(*dataset(n=9, t=2), **changes)
