"""Neighbours are in the order of exact distances, whatever the scale of the features; fractions are the judge."""

from fractions import Fraction

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from baselines import knn_shapley
from baselines.knn import threshold_knn_shapley, weighted_knn_shapley
from baselines.knn.differences import Pairs
from tests.baselines.neighbour_games import FAMILY, dataset

N, T, D = 90, 20, 4
MISSING = 999_999_999  # as people write a missing number


def features(seed=0):
    x_train, _, x_test, _ = dataset(N, T, D, seed=seed)
    return x_train, x_test, np.random.default_rng(seed)


def one_missing():
    x_train, x_test, _ = features()
    x_train[3, 2] = MISSING
    return x_train, x_test


def many_missing():
    """Two thirds at 1e9, so that only the other features tell them apart, at 1e-18 of the squared distance."""
    x_train, x_test, rng = features()
    x_train[rng.random(N) < 2 / 3, 2] = x_test[rng.random(T) < 1 / 2, 2] = MISSING
    return x_train, x_test


def two_kinds_of_missing():
    x_train, x_test, rng = features()
    for feature, value in ((0, 1e16), (2, -1e11)):
        x_train[rng.random(N) < 1 / 2, feature] = x_test[rng.random(T) < 1 / 2, feature] = value
    return x_train, x_test


def one_test_point_missing():
    x_train, x_test, _ = features()
    x_test[5, 1] = MISSING
    return x_train, x_test


def large_feature():
    x_train, x_test, _ = features()
    for x in (x_train, x_test):
        x[:, 0] *= 1e9
    return x_train, x_test


def offset_feature():
    x_train, x_test, _ = features()
    for x in (x_train, x_test):
        x[:, 0] += 1e9
    return x_train, x_test


def clusters(distance=3e7, features_apart=slice(None)):
    x_train, x_test, rng = features()
    for x in (x_train, x_test):
        x[:, features_apart] += distance * rng.integers(0, 2, (len(x), 1))
    return x_train, x_test


def clusters_far_apart():
    return clusters(1e13, slice(1))


def indicator():
    x_train, x_test, rng = features()
    for x in (x_train, x_test):
        x[:, 1] = 3e7 * rng.integers(0, 2, len(x))
    return x_train, x_test


def copies():
    """Each point twice, in clusters: copies tie, however far they are."""
    x_train, x_test = clusters()
    x_train[::2] = x_train[1::2]
    return x_train, x_test


def all_scales():
    x_train, x_test, rng = features()
    return tuple(x * 10.0 ** rng.integers(-8, 9, x.shape) for x in (x_train, x_test))


SCALES = [
    one_missing,
    many_missing,
    two_kinds_of_missing,
    one_test_point_missing,
    large_feature,
    offset_feature,
    clusters,
    clusters_far_apart,
    indicator,
    copies,
    all_scales,
]


def ranks(x_train, x_test, distance):
    """Ranks of exact distances, a table [t, n]; equal ones share theirs."""
    table = np.empty((len(x_test), len(x_train)))
    train = [[Fraction(value) for value in point.tolist()] for point in x_train]
    for row, test in zip(table, x_test, strict=True):
        point = [Fraction(value) for value in test.tolist()]
        distances = [distance(point, other) for other in train]
        rank = {value: number for number, value in enumerate(sorted(set(distances)))}
        row[:] = [rank[value] for value in distances]
    return table


def square(test, train):
    return sum((a - b) ** 2 for a, b in zip(test, train, strict=True))


def minus_squared_cosine(test, train):
    """With its sign; the length of the test point does not matter."""
    product = sum(a * b for a, b in zip(test, train, strict=True))
    return -product * abs(product) / sum(a * a for a in train)


def labels():
    rng = np.random.default_rng(1)
    return rng.integers(0, 2, N), rng.integers(0, 2, T)


def values_of_ranks(x_train, x_test, distance=square):
    y_train, y_test = labels()
    return knn_shapley(None, y_train, ranks(x_train, x_test, distance), y_test, 3, metric="precomputed").values


def values(x_train, x_test, **options):
    y_train, y_test = labels()
    return knn_shapley(x_train, y_train, x_test, y_test, 3, **options).values


@pytest.mark.parametrize("kind", [np.float64, np.float32])
@pytest.mark.parametrize("scale", SCALES)
def test_neighbours_are_in_the_order_of_exact_distances(scale, kind):
    x_train, x_test = (x.astype(kind) for x in scale())
    expected = values_of_ranks(x_train, x_test)
    for options in ({}, {"chunk_bytes": 1}, {"metric": "sqeuclidean"}):
        np.testing.assert_allclose(values(x_train, x_test, **options), expected, atol=1e-14)


@pytest.mark.parametrize("scale", [one_missing, many_missing, offset_feature, clusters])
def test_neighbours_are_in_the_order_of_exact_angles(scale):
    x_train, x_test = scale()
    expected = values_of_ranks(x_train, x_test, minus_squared_cosine)
    np.testing.assert_allclose(values(x_train, x_test, metric="cosine"), expected, atol=1e-14)


def test_order_of_training_points_does_not_matter_whatever_the_scale():
    for scale in SCALES:
        if scale is copies:  # ties, by index
            continue
        x_train, x_test = scale()
        y_train, y_test = labels()
        shuffle = np.random.default_rng(2).permutation(N)
        shuffled = knn_shapley(x_train[shuffle], y_train[shuffle], x_test, y_test, 3).values
        np.testing.assert_allclose(shuffled, values(x_train, x_test)[shuffle], atol=1e-14)


@pytest.mark.parametrize("case", FAMILY, ids=lambda case: case.__name__)
@pytest.mark.parametrize("scale", [one_missing, clusters, one_test_point_missing])
def test_each_estimator_has_the_distances_of_single_pairs(case, scale):
    """In order, and in size where it counts: a radius of 2.5, weights of inverse distances."""
    x_train, x_test = scale()
    y_train, y_test = labels()
    table = np.sqrt([[float(square(map(Fraction, t), map(Fraction, x))) for x in x_train] for t in x_test])
    expected = case.values(None, y_train, table, y_test, metric="precomputed")
    np.testing.assert_allclose(case.values(x_train, y_train, x_test, y_test), expected, atol=1e-12)


@pytest.mark.parametrize("scale", SCALES)
def test_distances_ascend_whatever_the_scale(scale):
    """Those from keys and those computed anew, which the rounding of a key may put the other way round."""
    seen = []
    weighted_knn_shapley(
        scale()[0], labels()[0], scale()[1], labels()[1], weights=lambda d: seen.append(d.copy()) or np.ones_like(d)
    )
    assert all((np.diff(distances, axis=1) >= 0).all() for distances in seen)


@pytest.mark.parametrize(("top", "unit"), [(255, 1 / 255), (80, 0.1), (256, 0.3), (100, 0.01)])
@pytest.mark.parametrize("d", [1, 2, 4])
def test_what_ties_in_steps_ties_in_floating_point(top, unit, d):
    """Pixels and decimal fractions: as binary fractions, they have distances that are no longer quite equal."""
    rng = np.random.default_rng(0)
    x_train, x_test = rng.integers(0, top + 1, (N, d)), rng.integers(0, top + 1, (T, d))
    np.testing.assert_allclose(values(x_train * unit, x_test * unit), values_of_ranks(x_train, x_test), atol=1e-14)


def test_steps_tie_beside_a_feature_that_hides_them():
    """Ties and close calls in the same run of keys."""
    rng = np.random.default_rng(0)
    x_train, x_test = rng.integers(0, 9, (N, 3)), rng.integers(0, 9, (T, 3))
    far = [np.where(rng.random((len(x), 1)) < 1 / 2, MISSING, 0) for x in (x_train, x_test)]
    expected = values_of_ranks(*(np.hstack(pair) for pair in zip((x_train, x_test), far, strict=True)))
    steps = (np.hstack(pair) for pair in zip((0.1 * x_train, 0.1 * x_test), far, strict=True))
    np.testing.assert_allclose(values(*steps), expected, atol=1e-14)


@pytest.mark.parametrize("unit", [1.0, 0.25, 2.0**-30, 2.0**30])
def test_on_a_grid_products_are_exact_and_nothing_is_compared(unit, monkeypatch):
    monkeypatch.delattr(Pairs, "compare")
    rng = np.random.default_rng(0)
    x_train, x_test = rng.integers(-9, 10, (N, 2)), rng.integers(-9, 10, (T, 2))
    np.testing.assert_allclose(values(x_train * unit, x_test * unit), values_of_ranks(x_train, x_test), atol=1e-14)


@pytest.mark.parametrize("apart", [2**28, 2**40])
def test_a_grid_of_large_numbers_is_none(apart):
    """Their squares have more than 53 bits: products would make distances equal that are not."""
    rng = np.random.default_rng(0)
    x_train, x_test = (rng.integers(-9, 10, (size, 2)) for size in (N, T))
    x_train[::2, 0] += apart
    x_test[::2, 0] += apart
    np.testing.assert_allclose(values(x_train, x_test), values_of_ranks(x_train, x_test), atol=1e-14)


def test_whole_numbers_are_no_grid_of_directions():
    rng = np.random.default_rng(0)
    x_train, x_test = rng.integers(1, 4, (N, 3)), rng.integers(1, 4, (T, 3))  # many multiples and equal angles
    expected = values_of_ranks(x_train, x_test, minus_squared_cosine)
    np.testing.assert_allclose(values(x_train, x_test, metric="cosine"), expected, atol=1e-14)


@pytest.mark.parametrize(("metric", "spread"), [("cosine", 1e-6), ("cos", 1e-3), ("correlation", 1e-3)])
def test_multiples_tie_at_small_angles(metric, spread):
    """Rounding of a direction, or of one less a product, is large beside the distances."""
    rng = np.random.default_rng(0)
    x_train, x_test = (np.arange(8) + spread * rng.normal(size=(size, 8)) for size in (N // 3, T))
    multiples = np.concatenate([x_train, 0.7 * x_train, 3.1 * x_train])
    once = cdist(x_test, x_train, metric) if metric != "cosine" else ranks(x_train, x_test, minus_squared_cosine)
    y_train, y_test = labels()
    expected = knn_shapley(None, y_train, np.tile(once, 3), y_test, 3, metric="precomputed").values
    np.testing.assert_allclose(values(multiples, x_test, metric=metric), expected, atol=1e-14)


@pytest.mark.parametrize("metric", ["cosine", "cos"])
@pytest.mark.parametrize("angle", [1e-6, 1e-2, 1.0])
def test_directions_at_the_radius_are_within(angle, metric):
    lengths = np.random.default_rng(0).random((N, 1)) + 0.1
    x_train = np.array([np.cos(angle + 0.3), np.sin(angle + 0.3)]) * lengths
    x_test = np.array([[np.cos(0.3), np.sin(0.3)]])
    radius = 2 * np.sin(angle / 2) ** 2  # 1 - cos(angle)
    for factor, within in ((1.0, True), (0.99, False)):
        of_radius = threshold_knn_shapley(x_train, np.ones(N), x_test, [0], factor * radius, metric=metric).values
        np.testing.assert_array_equal(of_radius != 0, within)


def test_one_outlier_costs_nothing(monkeypatch):
    """The centre does not move with it, and so the keys of the other points keep their digits."""
    compared = []
    compare = Pairs.compare
    monkeypatch.setattr(Pairs, "compare", lambda self, *which: compared.append(len(which[0])) or compare(self, *which))
    values(*one_missing())
    assert sum(compared) == 0
    values(*many_missing())
    assert sum(compared) > N


@pytest.mark.parametrize("metric", ["euclidean", "cityblock", "cosine", "correlation"])
@pytest.mark.parametrize("whole", [True, False])
def test_an_infinite_radius_holds_all(metric, whole):
    x_train, x_test, _ = features()
    if whole:
        x_train, x_test = (np.round(x * 4) + np.array([9, 1, 1, 1]) for x in (x_train, x_test))
    y_train, y_test = labels()
    expected = threshold_knn_shapley(None, y_train, np.zeros((T, N)), y_test, 1.0, metric="precomputed").values
    of_all = threshold_knn_shapley(x_train, y_train, x_test, y_test, np.inf, metric=metric).values
    np.testing.assert_allclose(of_all, expected, atol=1e-14)


@pytest.mark.parametrize("metric", ["cosine", "cos", "correlation"])
def test_distances_of_zero_are_zero_though_they_are_computed_by_subtraction(metric):
    """Multiples of the test point, most of which have a computed distance of some 1e-16."""
    rng = np.random.default_rng(0)
    x_test = rng.random((T, 20))
    x_train = np.concatenate([rng.random((5, 20)), x_test * rng.random((T, 1))])
    y_train, y_test, seen = np.zeros(T + 5), np.zeros(T), []
    weighted_knn_shapley(
        x_train, y_train, x_test, y_test, 3, metric=metric, weights=lambda d: seen.append(d.copy()) or np.ones_like(d)
    )
    assert [np.count_nonzero(row == 0) for distances in seen for row in distances] == [1] * T


def test_wide_features_are_compared_a_few_pairs_at_a_time():
    """Each feature 10 000 times over leaves the order as it is."""
    x_train, x_test = clusters()
    wide = [np.repeat(x, 10_000, axis=1) for x in (x_train[:12], x_test[:3])]
    y_train, y_test = labels()
    expected = knn_shapley(x_train[:12], y_train[:12], x_test[:3], y_test[:3]).values
    np.testing.assert_allclose(knn_shapley(wide[0], y_train[:12], wide[1], y_test[:3]).values, expected, atol=1e-14)
