"""What holds for hard-label KNN-Shapley beyond the laws of its family (test_knn_laws.py)."""

import numpy as np
import pytest

from baselines import knn_shapley
from tests.baselines.neighbour_games import dataset


def recursion(x_train, y_train, x_test, y_test, k):
    """Theorem 1 of Jia et al. as it is printed, from distances that are computed pair by pair."""
    n, values = len(x_train), np.zeros(len(x_train))
    for x, y in zip(x_test, y_test, strict=True):
        order = np.argsort(((x_train - x) ** 2).sum(axis=1), kind="stable")
        match = (y_train[order] == y).astype(float)
        value = match[-1] / n
        values[order[-1]] += value
        for j in range(n - 1, 0, -1):
            value += (match[j - 1] - match[j]) / k * min(k, j) / j
            values[order[j - 1]] += value
    return values / len(x_test)


@pytest.mark.parametrize("k", [1, 5, 299, 300])
def test_equals_the_recursion(k):
    data = dataset()
    np.testing.assert_allclose(knn_shapley(*data, k).values, recursion(*data, k), atol=1e-12)


@pytest.mark.parametrize("chunk_bytes", [1, 8 * 300 * 7, 8 * 300 * 49, 8 * 300 * 50, 2**30])
def test_chunks_change_nothing_but_rounding(chunk_bytes):
    data = dataset()
    np.testing.assert_allclose(knn_shapley(*data, chunk_bytes=chunk_bytes).values, recursion(*data, 5), atol=1e-13)


def test_threads_change_nothing():
    data = dataset(n=3000, t=400)  # blocks of 87 test points
    one = knn_shapley(*data, n_jobs=1).values
    for n_jobs in (2, 3, -1, None):
        np.testing.assert_array_equal(knn_shapley(*data, n_jobs=n_jobs).values, one)


@pytest.mark.parametrize("scale", [1.0, 1 / 255, 1e-6, 1e8])
def test_duplicates_tie_and_the_lower_index_is_nearer(scale):
    """Each of 301 points comes three times, so that the matrix product may round each copy in its own way."""
    x_train, _, x_test, y_test = dataset(n=301, t=40, d=37)
    y_train = np.random.default_rng(1).integers(0, 4, 903)
    x_train, x_test = (x * scale + 3.7 * scale for x in (x_train, x_test))
    copies = np.tile(x_train, (3, 1))
    expected = recursion(copies, y_train, x_test, y_test, 5)
    np.testing.assert_allclose(knn_shapley(copies, y_train, x_test, y_test).values, expected, atol=1e-13)
    np.testing.assert_allclose(knn_shapley(copies, y_train, x_test, y_test, chunk_bytes=1).values, expected, atol=1e-13)


def test_points_at_the_same_distance_tie():
    """Pixels: distances of images in units of 1/255 coincide, but are not computed to the same last digit."""
    rng = np.random.default_rng(0)
    pixels_train, pixels_test = rng.integers(0, 5, (500, 20)), rng.integers(0, 5, (60, 20))
    y_train, y_test = rng.integers(0, 3, 500), rng.integers(0, 3, 60)
    expected = recursion(pixels_train, y_train, pixels_test, y_test, 5)  # exact integer distances
    for scale in (1, 1 / 255, 0.1):
        values = knn_shapley(pixels_train * scale, y_train, pixels_test * scale, y_test).values
        np.testing.assert_allclose(values, expected, atol=1e-13)


def test_points_on_a_sphere_tie():
    """The same coordinates in any order: all at the same distance from the test point in their centre."""
    rng = np.random.default_rng(0)
    half = rng.permuted(np.tile(rng.normal(size=30), (50, 1)), axis=1)
    x_train, y_train = np.concatenate([half, -half]), rng.integers(0, 2, 100)
    assert len(np.unique((x_train**2).sum(axis=1))) > 1
    expected = recursion(np.zeros((100, 1)), y_train, np.zeros((1, 1)), [1], 5)
    np.testing.assert_allclose(knn_shapley(x_train, y_train, np.zeros((1, 30)), [1]).values, expected, atol=1e-15)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6, -1e6])
def test_far_from_the_origin(offset):
    """Centring saves the digits that |x|^2 - 2 <x, t> + |t|^2 would lose."""
    x_train, y_train, x_test, y_test = dataset()
    x_train, x_test = (np.round(x * 2**20) / 2**20 + offset for x in (x_train, x_test))
    expected = recursion(x_train - offset, y_train, x_test - offset, y_test, 5)
    np.testing.assert_allclose(knn_shapley(x_train, y_train, x_test, y_test).values, expected, atol=1e-13)


def test_an_outlier_does_not_blur_the_others():
    x_train, y_train, x_test, y_test = dataset()
    x_train[17] = 1e7
    expected = recursion(x_train, y_train, x_test, y_test, 5)
    np.testing.assert_allclose(knn_shapley(x_train, y_train, x_test, y_test).values, expected, atol=1e-13)


def test_all_training_points_are_the_same():
    values = knn_shapley(np.full((5, 2), 0.3), [0, 1, 0, 1, 1], np.ones((1, 2)), [1], k=2).values
    expected = recursion(np.zeros((5, 2)), np.array([0, 1, 0, 1, 1]), np.ones((1, 2)), [1], 2)
    np.testing.assert_allclose(values, expected, atol=1e-15)


@pytest.mark.parametrize("names", [np.array(["cat", "dog", "eel", "fox"]), np.array([-1.5, 0.0, 2.5, 9.0])])
def test_labels_of_any_kind(names):
    x_train, y_train, x_test, y_test = dataset()
    expected = knn_shapley(x_train, y_train, x_test, y_test).values
    np.testing.assert_array_equal(knn_shapley(x_train, names[y_train], x_test, names[y_test]).values, expected)


def test_many_classes():
    data = dataset(classes=1000)
    np.testing.assert_allclose(knn_shapley(*data).values, recursion(*data, 5), atol=1e-13)


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int8, np.bool_, list])
def test_features_of_any_kind(kind):
    x_train, y_train, x_test, y_test = dataset()
    as_kind = list if kind is list else (lambda x: np.round(x).astype(kind))
    x_train, x_test = as_kind(x_train), as_kind(x_test)
    expected = recursion(np.array(x_train, dtype=float), y_train, np.array(x_test, dtype=float), y_test, 5)
    np.testing.assert_allclose(knn_shapley(x_train, y_train, x_test, y_test).values, expected, atol=1e-13)


def test_what_it_reports(capsys):
    valuation = knn_shapley(*dataset(), k=3)
    assert (valuation.method, valuation.stderr, valuation.evaluations) == ("knn_shapley", None, 0)
    assert valuation.parameters == {"k": 3, "metric": "euclidean", "n_test": 50}
    assert valuation.seconds > 0
    assert capsys.readouterr().err == ""
    knn_shapley(*dataset(), progress=True)
    assert "50/50" in capsys.readouterr().err


X, Y = np.zeros((4, 2)), np.zeros(4)
HOLE = np.array([[0.0, 0.0], [np.nan, 0.0], [0.0, 0.0], [0.0, np.inf]])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x_train": np.zeros(4)}, ValueError, r"x_train must have shape \(points, features\), got \(4,\)"),
        ({"x_test": np.zeros((4, 2, 1))}, ValueError, r"x_test must have shape .* got \(4, 2, 1\)"),
        ({"x_train": X[:0], "y_train": Y[:0]}, ValueError, r"x_train must have at least one point .* shape \(0, 2\)"),
        ({"x_test": X[:0], "y_test": Y[:0]}, ValueError, "x_test must have at least one point"),
        ({"x_train": X[:, :0], "x_test": X[:, :0]}, ValueError, "at least one point and one feature"),
        ({"x_test": np.zeros((4, 3))}, ValueError, "same number of features, got 2 and 3"),
        ({"x_train": HOLE}, ValueError, "x_train must be finite, got NaN or infinity in 2 of 4 points, .* point 1"),
        ({"x_test": HOLE}, ValueError, "x_test must be finite"),
        ({"x_train": np.full((4, 2), 1e200) * [[1], [2], [3], [4]]}, ValueError, "features are too large"),
        (
            {"x_test": np.full((4, 2), 1e160)},
            ValueError,
            r"features are too large to be squared, up to 1e\+160 .* down",
        ),
        ({"x_test": np.full((4, 2), 1e-160)}, ValueError, "features are too small to be squared, up to 1e-160 .* up"),
        ({"x_train": np.eye(4, 2) * 1e-200}, ValueError, "features are too small"),
        ({"x_train": np.full((4, 2), "a")}, TypeError, "x_train must be real numbers, got an array of <U1"),
        ({"y_train": Y[:3]}, ValueError, r"y_train must have one label for each point, shape \(4,\), got \(3,\)"),
        ({"y_test": np.zeros((4, 1))}, ValueError, r"y_test must have one label .* got \(4, 1\)"),
        (
            {"y_train": [0, 1, np.nan, 1]},
            ValueError,
            "y_train must have no missing labels, got 1 among 4 points, first nan .* 2",
        ),
        ({"y_test": ["0", "1", "0", "1"]}, ValueError, "labels of the same kind, got numbers and strings"),
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"k": 5}, ValueError, "k must be at most the number of training points, 4, got 5"),
        ({"k": 2.0}, TypeError, "k must be an integer"),
        ({"chunk_bytes": 0}, ValueError, "chunk_bytes must be at least 1, got 0"),
        ({"n_jobs": 0}, ValueError, "n_jobs"),
    ],
)
def test_bad_arguments(changes, error, message):
    arguments = {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y, "k": 2} | changes
    with pytest.raises(error, match=message):
        knn_shapley(**arguments)
