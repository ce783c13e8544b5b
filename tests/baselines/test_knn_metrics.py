"""Metrics of the KNN family, on knn_shapley and where the distances themselves count."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from baselines import knn_shapley
from baselines.knn import threshold_knn_shapley, weighted_knn_shapley
from tests.baselines.neighbour_games import dataset


@pytest.mark.parametrize(
    ("fast", "exponent", "same"),
    [("euclidean", 1, "minkowski"), ("sqeuclidean", 1, None), ("cosine", 1, None)],
)
def test_products_give_the_distances_of_cdist(fast, exponent, same):
    """In order (knn), in ratio (weighted) and in size (threshold)."""
    x_train, y_train, x_test, y_test = dataset()
    x_train += 1.0  # away from the origin, for the cosine
    distances = cdist(x_test, x_train, fast)
    radius = float(np.quantile(distances, 0.1))
    for estimate in (
        knn_shapley,
        weighted_knn_shapley,
        lambda *data, **metric: threshold_knn_shapley(*data, radius, **metric),
    ):
        expected = estimate(None, y_train, distances, y_test, metric="precomputed").values
        values = estimate(x_train, y_train, x_test, y_test, metric=fast).values
        np.testing.assert_allclose(values, expected, atol=1e-12)
        if same is not None:
            values = estimate(x_train, y_train, x_test, y_test, metric=same).values
            np.testing.assert_allclose(values, expected, atol=1e-12)


def test_a_squared_metric_has_the_same_neighbours():
    data = dataset()
    expected = knn_shapley(*data).values
    np.testing.assert_array_equal(knn_shapley(*data, metric="sqeuclidean").values, expected)


def test_cosine_looks_at_directions_alone():
    x_train, y_train, x_test, y_test = dataset()
    lengths = np.random.default_rng(1).choice([1e-200, 0.3, 7.0, 1e200], size=(300, 1))
    expected = knn_shapley(x_train, y_train, x_test, y_test, metric="cosine").values
    values = knn_shapley(x_train * lengths, y_train, x_test * 3, y_test, metric="cosine").values
    np.testing.assert_allclose(values, expected, atol=1e-13)


def test_multiples_tie_by_cosine_and_the_lower_index_is_nearer():
    x_train, _, x_test, y_test = dataset(n=100)
    multiples = np.concatenate([x_train, 3 * x_train, 0.7 * x_train])
    y_train = np.random.default_rng(1).integers(0, 4, 300)
    expected = knn_shapley(None, y_train, np.tile(cdist(x_test, x_train, "cosine"), 3), y_test, metric="precomputed")
    values = knn_shapley(multiples, y_train, x_test, y_test, metric="cosine").values
    np.testing.assert_allclose(values, expected.values, atol=1e-13)


def test_a_function_of_two_points():
    x_train, y_train, x_test, y_test = dataset(n=40, t=8)
    asked = []

    def chebyshev(test, train):
        asked.append((test.copy(), train.copy()))
        return np.abs(test - train).max()

    expected = knn_shapley(x_train, y_train, x_test, y_test, metric="chebyshev")
    valuation = knn_shapley(x_train, y_train, x_test, y_test, metric=chebyshev)
    np.testing.assert_allclose(valuation.values, expected.values, atol=1e-13)
    assert valuation.parameters == {"k": 5, "metric": "chebyshev", "n_test": 8}
    assert any((test == x_test[3]).all() and (train == x_train[7]).all() for test, train in asked)
    assert len(asked) == 8 * 40


def test_distances_that_differ_by_rounding_tie():
    """City blocks of pixels in units of 1/255 coincide, but are not computed to the same last digit."""
    rng = np.random.default_rng(0)
    pixels_train, pixels_test = rng.integers(0, 5, (500, 20)), rng.integers(0, 5, (60, 20))
    y_train, y_test = rng.integers(0, 3, 500), rng.integers(0, 3, 60)
    expected = knn_shapley(pixels_train, y_train, pixels_test, y_test, metric="cityblock").values
    assert len(np.unique(cdist(pixels_test / 255, pixels_train / 255, "cityblock"))) > 70
    values = knn_shapley(pixels_train / 255, y_train, pixels_test / 255, y_test, metric="cityblock").values
    np.testing.assert_allclose(values, expected, atol=1e-13)


def test_precomputed_distances_of_any_kind():
    _, y_train, _, y_test = dataset(n=40, t=8)
    distances = np.random.default_rng(0).integers(0, 100, (8, 40))
    expected = knn_shapley(None, y_train, distances.astype(float), y_test, metric="precomputed").values
    for kind in (np.int16, np.float32, list):
        table = distances.tolist() if kind is list else distances.astype(kind)
        np.testing.assert_array_equal(knn_shapley(None, y_train, table, y_test, metric="precomputed").values, expected)


X, Y = np.ones((4, 2)), np.zeros(4)
HOLE, NEGATIVE = np.ones((4, 4)), np.ones((4, 4))
HOLE[2, 1], NEGATIVE[3, 0] = np.inf, -1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "ell2"}, "metric must be 'precomputed', a function .* got 'ell2': Unknown Distance Metric"),
        ({"metric": "seuclidean"}, "must not need statistics of the data, got 'seuclidean'; standardise"),
        ({"metric": "mahalanobis"}, "must not need statistics of the data, got 'mahalanobis'"),
        ({"metric": "precomputed"}, "x_train must be None with metric='precomputed'"),
        ({"metric": "precomputed", "x_train": None, "x_test": Y}, r"x_test must have shape \(test points, training"),
        ({"metric": "precomputed", "x_train": None, "x_test": X[:0]}, "at least one test point and one training point"),
        ({"metric": "precomputed", "x_train": None}, r"y_train must have one label for each point, shape \(2,\)"),
        (
            {"metric": "precomputed", "x_train": None, "x_test": HOLE},
            r"distances \(metric='precomputed'\) must be finite, got inf between test point 2 and training point 1",
        ),
        (
            {"metric": "precomputed", "x_train": None, "x_test": NEGATIVE, "chunk_bytes": 1},
            "must be not negative, got -0.001 between test point 3 and training point 0",
        ),
        ({"metric": lambda a, b: np.nan}, r"distances \(metric='<lambda>'\) must be finite, got nan"),
        ({"metric": lambda a, b: -(a @ b)}, "must be not negative, got -2.0 between test point 0"),
        ({"metric": "correlation"}, r"distances \(metric='correlation'\) must be finite, got nan"),
        ({"metric": "cosine", "x_test": X * [[1], [0], [1], [0]]}, "x_test must have no zero vectors .* got 2, .* 1$"),
        ({"metric": "cosine", "x_train": 0 * X}, "x_train must have no zero vectors"),
    ],
)
def test_bad_metrics(changes, message):
    arguments = {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y, "k": 2} | changes
    with pytest.raises(ValueError, match=message):
        knn_shapley(**arguments)
