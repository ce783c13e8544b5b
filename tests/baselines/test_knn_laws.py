"""What holds for each estimator of the KNN family."""

import numpy as np
import pytest
from hypothesis import given, settings

from baselines import exact_shapley
from tests.baselines.neighbour_games import FAMILY, THRESHOLD, WEIGHTED, dataset, small_datasets

each = pytest.mark.parametrize("case", FAMILY, ids=lambda case: case.__name__)


@each
@settings(max_examples=50)
@given(data=small_datasets())
def test_equals_enumeration_of_the_game(case, data):
    *data, k = data
    expected = exact_shapley(case.game(*data, k)).values
    np.testing.assert_allclose(case.values(*data, k=k, n_jobs=1), expected, atol=1e-12)


@each
@pytest.mark.parametrize("k", [1, 3, 9])
def test_equals_enumeration_of_the_game_for_real_features(case, k):
    data = dataset(n=9, t=4, classes=2)
    expected = exact_shapley(case.game(*data, k)).values
    np.testing.assert_allclose(case.values(*data, k=k), expected, atol=1e-12)


@each
@pytest.mark.parametrize("k", [1, 5, 20])
def test_efficiency(case, k):
    data = dataset()
    assert case.values(*data, k=k).sum() == pytest.approx(case.game(*data, k).grand_less_empty(), abs=1e-12)


@each
def test_copies_are_worth_the_same(case):
    x_train, y_train, x_test, y_test = dataset()
    copies = np.concatenate([x_train, x_train[:7]]), np.concatenate([y_train, y_train[:7]])
    values = case.values(*copies, x_test, y_test)
    np.testing.assert_allclose(values[-7:], values[:7], atol=1e-13)


@each
def test_mean_over_test_points(case):
    x_train, y_train, x_test, y_test = dataset(t=6, classes=2)
    y_test[:] = np.arange(6) % 2  # the classes of each test point alone are those of all
    singles = [case.values(x_train, y_train, x_test[i : i + 1], y_test[i : i + 1]) for i in range(6)]
    np.testing.assert_allclose(case.values(x_train, y_train, x_test, y_test), np.mean(singles, axis=0), atol=1e-13)


@each
@pytest.mark.parametrize("metric", ["euclidean", "cityblock"])
def test_chunks_change_nothing_but_rounding(case, metric):
    data = dataset(n=100, t=20)
    expected = case.values(*data, metric=metric)
    for chunk_bytes in (1, 8 * 100 * 7, 8 * 100 * 19, 8 * 100 * 20):
        values = case.values(*data, metric=metric, chunk_bytes=chunk_bytes)
        np.testing.assert_allclose(values, expected, atol=1e-12)


@each
def test_threads_change_nothing(case):
    data = dataset(n=100, t=200) if case is WEIGHTED else dataset(n=3000, t=200)  # blocks of 187 or 87 test points
    expected = case.values(*data, n_jobs=1)
    for n_jobs in (3, None):
        np.testing.assert_array_equal(case.values(*data, n_jobs=n_jobs), expected)


@each
def test_order_of_training_points_does_not_matter(case):
    x_train, y_train, x_test, y_test = dataset()
    shuffle = np.random.default_rng(1).permutation(len(x_train))
    values = case.values(x_train[shuffle], y_train[shuffle], x_test, y_test)
    np.testing.assert_allclose(values, case.values(x_train, y_train, x_test, y_test)[shuffle], atol=1e-12)


@each
@pytest.mark.parametrize("offset", [-3.7, 1e6])
def test_translation_changes_nothing(case, offset):
    """On a grid, so that the translation itself is exact; some distances tie."""
    x_train, y_train, x_test, y_test = dataset()
    x_train, x_test = np.round(x_train * 4) / 4, np.round(x_test * 4) / 4
    expected = case.values(x_train, y_train, x_test, y_test)
    values = case.values(x_train + offset, y_train, x_test + offset, y_test)
    np.testing.assert_allclose(values, expected, atol=1e-12)


@each
def test_duplicates_tie_however_the_product_rounds(case):
    """Each point comes three times; as pixels in units of 1/255 many others tie, too."""
    rng = np.random.default_rng(0)
    x_train, x_test = rng.integers(0, 5, (60, 12)), rng.integers(0, 5, (30, 12))
    x_train, y_train, y_test = np.tile(x_train, (3, 1)), rng.integers(0, 3, 180), rng.integers(0, 3, 30)
    distances = np.sqrt(((x_test[:, None] - x_train) ** 2).sum(axis=2))  # the same for the same integers
    scaled = distances if case is not THRESHOLD else distances / 2
    expected = case.values(None, y_train, scaled, y_test, metric="precomputed")
    for scale in (1, 1 / 255, 0.1):
        if case is THRESHOLD:
            values = case.estimate(x_train * scale, y_train, x_test * scale, y_test, 2 * case.second * scale).values
        else:
            values = case.values(x_train * scale, y_train, x_test * scale, y_test)
        np.testing.assert_allclose(values, expected, atol=1e-12)


@each
def test_precomputed_distances_are_those_of_the_metric(case):
    x_train, y_train, x_test, y_test = dataset()
    distances = np.abs(x_test[:, None] - x_train).sum(axis=2)
    expected = case.values(x_train, y_train, x_test, y_test, metric="cityblock")
    np.testing.assert_allclose(
        case.values(None, y_train, distances, y_test, metric="precomputed"), expected, atol=1e-12
    )


@each
def test_what_it_reports(case, capsys):
    data = dataset(t=7)
    valuation = case.estimate(*data, case.arguments(3), metric="cosine", progress=True)
    assert (valuation.method, valuation.stderr, valuation.evaluations) == (case.__name__, None, 0)
    told = {"radius": case.second} if case is THRESHOLD else {"k": 3}
    assert told.items() | {"metric": "cosine", "n_test": 7}.items() <= valuation.parameters.items()
    assert valuation.seconds > 0
    shown = capsys.readouterr().err
    assert "7/7" in shown
    assert case.__name__ in shown


@each
def test_arguments_are_left_alone(case):
    data = dataset()
    for metric in ("euclidean", "cosine", "cityblock"):
        copies = [array.copy() for array in data]
        case.values(*copies, metric=metric)
        for array, copy in zip(data, copies, strict=True):
            np.testing.assert_array_equal(array, copy)
    distances = np.abs(dataset(n=50, d=300)[2])
    copy = distances.copy()
    case.values(None, data[1], copy, data[3], metric="precomputed")
    np.testing.assert_array_equal(copy, distances)


X, Y = np.zeros((4, 2)), np.zeros(4)


@each
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x_train": None}, ValueError, r"x_train must have shape \(points, features\), got \(\)"),
        ({"x_test": np.zeros((4, 3))}, ValueError, "same number of features, got 2 and 3"),
        ({"x_test": X * np.nan}, ValueError, "x_test must be finite"),
        ({"y_train": Y[:3]}, ValueError, r"y_train must have one .* for each point, shape \(4,\), got \(3,\)"),
        ({"y_test": [0, 1, np.nan, 1]}, ValueError, "y_test must have no missing (labels|targets), .* point 2"),
        ({"chunk_bytes": 0}, ValueError, "chunk_bytes must be at least 1, got 0"),
        ({"chunk_bytes": 1e6}, TypeError, "chunk_bytes must be an integer"),
        ({"n_jobs": 0}, ValueError, "n_jobs"),
        ({"metric": 2}, TypeError, r"metric must be a name or a function of two points, got 2 \(int\)"),
    ],
)
def test_bad_arguments(case, changes, error, message):
    arguments = {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y} | changes
    with pytest.raises(error, match=message):
        case.estimate(**arguments, **({"radius": 1.0} if case is THRESHOLD else {"k": 2}))


@pytest.mark.parametrize("case", [case for case in FAMILY if case is not THRESHOLD], ids=lambda case: case.__name__)
@pytest.mark.parametrize(("k", "error"), [(0, ValueError), (5, ValueError), (2.0, TypeError), (True, TypeError)])
def test_bad_k(case, k, error):
    with pytest.raises(error, match="k must be"):
        case.estimate(X, Y, X, Y, k)
