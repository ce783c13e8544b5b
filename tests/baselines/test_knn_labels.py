"""Labels and targets of the KNN family: what stands for the same class, and what is missing."""

import datetime

import numpy as np
import pytest

from baselines import knn_shapley
from baselines.knn import knn_regression_shapley
from tests.baselines.neighbour_games import FAMILY, dataset

each = pytest.mark.parametrize("case", FAMILY, ids=lambda case: case.__name__)


def values_of(y_train, y_test):
    x_train, _, x_test, _ = dataset(4, 2)
    return knn_shapley(x_train, y_train, x_test, y_test, k=2).values


NAMES = ["u", "v", "v", "u"], ["u", "v"]
DAYS = ["2024-02-29", "2024-03-01", "2024-03-01", "2024-02-29"], ["2024-02-29", "2024-03-01"]


@pytest.mark.parametrize(
    ("y_train", "y_test"),
    [
        ([0, 1, 1, 0], [0, 1]),
        (NAMES[0], np.array(NAMES[1])),
        (tuple(NAMES[0]), np.array(NAMES[1], dtype=object)),
        ([0.0, 1.0, 1.0, 0.0], np.array([0, 1], dtype=np.uint8)),
        ([False, True, True, False], np.array([0, 1])),
        (np.array([7, 2**80, 2**80, 7], dtype=object), [7, 2**80]),
        ([b"u", b"v", b"v", b"u"], np.array([b"u", b"v"])),
        (np.array(DAYS[0], dtype="datetime64[D]"), np.array(DAYS[1], dtype="datetime64[ns]")),
        ([datetime.date(2024, 1, day) for day in (1, 2, 2, 1)], [datetime.date(2024, 1, day) for day in (1, 2)]),
        (np.ma.array([0, 1, 1, 0]), [0, 1]),
        (["nan", "", "", "nan"], ["nan", ""]),
    ],
)
def test_labels_of_any_kind(y_train, y_test):
    expected = values_of(np.array([0, 1, 1, 0]), np.array([0, 1]))
    np.testing.assert_array_equal(values_of(y_train, y_test), expected)


@pytest.mark.parametrize("kind", ["category", "string", "object", "str"])
def test_names_in_pandas(kind):
    pd = pytest.importorskip("pandas")
    y_train, y_test = (pd.Series(names, dtype=kind) for names in NAMES)
    expected = values_of(*NAMES)
    np.testing.assert_array_equal(values_of(y_train, y_test), expected)
    np.testing.assert_array_equal(values_of(y_train.iloc[[0, 1, 2, 3]], NAMES[1]), expected)
    np.testing.assert_array_equal(values_of(pd.Index(y_train), y_test.array), expected)


@pytest.mark.parametrize("kind", ["category", "Int64", "UInt8", "Float64", "boolean", "int64"])
def test_numbers_in_pandas(kind):
    pd = pytest.importorskip("pandas")
    y_train, y_test = pd.Series([0, 1, 1, 0]).astype(kind), pd.Series([0, 1]).astype(kind)
    expected = values_of([0, 1, 1, 0], [0, 1])
    np.testing.assert_array_equal(values_of(y_train, y_test), expected)
    np.testing.assert_array_equal(values_of(y_train, np.array([0, 1])), expected)
    if kind != "category":
        x_train, _, x_test, _ = dataset(4, 2)
        expected = knn_regression_shapley(x_train, [0.0, 1.0, 1.0, 0.0], x_test, [0.0, 1.0], k=2).values
        np.testing.assert_array_equal(knn_regression_shapley(x_train, y_train, x_test, y_test, k=2).values, expected)


def test_categories_that_no_point_has_are_no_classes():
    """The empty coalition of soft votes guesses among the classes that there are."""
    pd = pytest.importorskip("pandas")
    x_train, _, x_test, _ = dataset(4, 2)
    for case in FAMILY[1:2]:
        y_train, y_test = (pd.Categorical(names, categories=["t", "u", "v", "w"]) for names in NAMES)
        expected = case.estimate(x_train, NAMES[0], x_test, NAMES[1], 2).values
        np.testing.assert_array_equal(case.estimate(x_train, y_train, x_test, y_test, 2).values, expected)


@each
@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ([1, None, 0, 1], "1 among 4 points, first None in point 1"),
        ([1, 0, float("nan"), np.nan], "2 among 4 points, first nan in point 2"),
        (np.array([1, 0, 0, np.nan]), "1 among 4 points, first nan in point 3"),
        (np.array([None, 1, 0, 1], dtype=object), "first None in point 0"),
        (np.array(["2024-01-01", "NaT"] * 2, dtype="datetime64[s]"), "2 among 4 points, first NaT in point 1"),
        (np.ma.array([1, 0, 0, 1], mask=[0, 0, 1, 0]), "first None in point 2"),
        (["a", "b", np.nan, "a"], "first nan in point 2"),  # to NumPy it would be the string "nan"
    ],
)
def test_missing_labels(case, missing, told):
    x = dataset(4, 4)[0]
    with pytest.raises(ValueError, match=rf"y_train must have no missing (labels|targets), got .*{told}; leave"):
        case.estimate(x, missing, x, [1, 0, 0, 1], case.arguments(2))
    with pytest.raises(ValueError, match=rf"y_test must have no missing (labels|targets), got .*{told}; leave"):
        case.estimate(x, [1, 0, 0, 1], x, missing, case.arguments(2))


@each
@pytest.mark.parametrize("kind", ["category", "Int64", "Float64", "boolean", "string", "object", "datetime64[ns]"])
def test_missing_labels_in_pandas(case, kind):
    pd = pytest.importorskip("pandas")
    x = dataset(4, 4)[0]
    missing = pd.Series([1, pd.NA, 0, 1], dtype=kind if kind != "datetime64[ns]" else None)
    missing = pd.to_datetime(missing) if kind == "datetime64[ns]" else missing
    with pytest.raises(
        ValueError, match=r"y_train must have no missing .*, got 1 among 4 points, .* in point 1; leave"
    ):
        case.estimate(x, missing, x, [1, 0, 0, 1], case.arguments(2))


@pytest.mark.parametrize(
    ("y_train", "error", "message"),
    [
        (["0", "1", "0", "1"], ValueError, "of the same kind, got strings and numbers"),
        ([0, 1, "0", "1"], ValueError, "of the same kind, got numbers or strings and numbers"),  # all strings to NumPy
        ([b"0", b"1", b"0", b"1"], ValueError, "of the same kind, got bytes and numbers"),
        ([datetime.date(2024, 1, 1)] * 4, ValueError, "of the same kind, got date and numbers"),
        (np.array([{0}, 1, 2, 3], dtype=object), ValueError, "of the same kind, got numbers or set and numbers"),
    ],
)
def test_labels_of_different_kinds(y_train, error, message):
    with pytest.raises(error, match=f"y_train and y_test must be labels {message}"):
        values_of(y_train, [0, 1])


def test_labels_that_cannot_be_told_apart():
    with pytest.raises(TypeError, match="labels in y_train and y_test must be hashable, got unhashable type: 'set'"):
        values_of(np.array([{0}] * 4), np.array([{0}] * 2))
