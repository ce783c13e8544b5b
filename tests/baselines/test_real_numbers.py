"""Numbers and labels are taken as they are given or refused: nothing is rounded or unmasked or mispaired in silence."""

from fractions import Fraction

import numpy as np
import pytest

from baselines import CachedGame, GroupedGame, KNNGraph, UtilityStore, evaluate, knn_regression_shapley, knn_shapley
from baselines.real_numbers import real_numbers

pd = pytest.importorskip("pandas")

BIG = 2**53 + 1  # the first whole number that float64 does not hold
X, TEST = np.array([[0.0], [1.0]]), np.array([[0.0]])
MASKED = np.ma.array([0.0, 1.0], mask=[False, True])


def values(x=X, y=("a", "b"), test=TEST, labels=("b",), **options):
    return knn_shapley(x, y, test, labels, **{"k": 1, **options}).values


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
@pytest.mark.parametrize("metric", ["euclidean", "cityblock"])
def test_features_are_those_that_float64_holds_or_refused(dtype, metric):
    times = np.array([[2**60], [2**60 + 2**10]], dtype=dtype)
    shown = values(times, test=times[1:], metric=metric)
    np.testing.assert_array_equal(shown, values(test=X[1:], metric=metric))
    with pytest.raises(
        ValueError, match=rf"x_train must be numbers that float64 holds .* got {2**60 + 1} among 1 such"
    ):
        values(times + np.array([[1], [0]], dtype=dtype), test=times[1:], metric=metric)


INEXACT = {
    "int64": np.array([[0], [BIG]]),
    "the largest int64": np.array([[0], [2**63 - 1]]),
    "the largest uint64": np.array([[0], [2**64 - 1]], dtype=np.uint64),
    "an integer among floats": [[0.5], [BIG]],
    "an integer beyond all types": [[0], [2**64 + 1]],
    "objects": np.array([[0], [BIG]], dtype=object),
    "a third": [[0], [Fraction(1, 3)]],
    "nullable integers": pd.DataFrame({"a": pd.array([0, BIG], dtype="Int64")}),
    "one column of a frame": pd.DataFrame({"a": [0, BIG], "b": [0.0, 1.0]}),
}
if np.finfo(np.longdouble).nmant > 52:
    INEXACT["longdouble"] = np.array([[0], [1 + np.longdouble(2) ** -60]])
    INEXACT["a large longdouble"] = np.array([[0], [np.longdouble(2) ** 1100]])


@pytest.mark.parametrize("x", INEXACT.values(), ids=INEXACT)
def test_numbers_that_float64_does_not_hold_are_refused(x):
    with pytest.raises(ValueError, match="x must be numbers that float64 holds exactly"):
        real_numbers("x", x)


EXACT = {
    "int64": np.array([[-(2**53)], [2**62]]),
    "uint64": np.array([[0], [2**63]], dtype=np.uint64),
    "nullable floats": pd.DataFrame({"a": [0.5, 1.5]}, dtype="Float64"),
    "nullable integers": pd.DataFrame({"a": [1, 2]}, dtype="Int64"),
    "columns of several types": pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5], "c": [True, False]}),
    "a frame of objects": pd.DataFrame({"a": [0.5, 1]}, dtype=object),
    "an infinity among large ones": [[np.inf], [1e300]],
}


@pytest.mark.parametrize("x", EXACT.values(), ids=EXACT)
def test_all_others_are_as_they_were(x):
    as_objects = np.asarray(x, dtype=object)
    assert (real_numbers("x", x).astype(np.float64) == as_objects).all()


def test_missing_numbers_of_nullable_columns_are_told():
    with pytest.raises(
        ValueError, match="x_train must be finite, got NaN or infinity in 1 of 2 points, first in point 1"
    ):
        values(pd.DataFrame({"a": pd.array([0.5, pd.NA], dtype="Float64")}))


def test_tensors_that_numpy_cannot_read_are_named():
    torch = pytest.importorskip("torch")
    for tensor in (torch.zeros(2, 1, requires_grad=True), torch.zeros(2, 1, dtype=torch.bfloat16)):
        with pytest.raises(TypeError, match="x_train must be numbers that NumPy can read, got Tensor"):
            values(tensor)


LABELS = {
    "uint64 and int64": (np.array([2**53, BIG], dtype=np.uint64), np.array([BIG])),
    "int64 and float64": (np.array([BIG, 2**53]), np.array([2.0**53])),
    "a list and uint64": ([2**53, BIG], np.array([BIG], dtype=np.uint64)),
}


@pytest.mark.parametrize(("train", "test"), LABELS.values(), ids=LABELS)
def test_labels_are_not_merged_by_rounding(train, test):
    np.testing.assert_array_equal(values(y=train, labels=test), values())


@pytest.mark.parametrize("columns", [["b", "a"], ["a", "c"], ["a", "b", "c"]])
def test_frames_whose_columns_differ_are_refused(columns):
    train = pd.DataFrame([[0.0, 1.0], [2.0, 3.0]], columns=["a", "b"])
    test = pd.DataFrame([range(len(columns))], columns=columns)
    with pytest.raises(
        ValueError, match=r"x_train and x_test must have the same columns .* take x_test\[x_train.columns"
    ):
        values(train, test=test)
    values(train, test=test.to_numpy()[:, :2])


def test_masked_entries_are_refused_everywhere(tmp_path):
    class Masked:
        n_players = 2

        def __call__(self, coalitions):
            return np.ma.array(np.ones(len(coalitions)), mask=coalitions[:, 0])

    class Fine:
        n_players = 2

        def __call__(self, coalitions):
            return np.ones(len(coalitions))

    store, coalitions = UtilityStore(tmp_path / "u.db"), np.array([[True, False]])
    masked = np.ma.array(coalitions, mask=[[True, False]])
    refusals = {
        "what a game": [
            lambda: evaluate(Masked(), coalitions),
            lambda: CachedGame(Masked(), store, identity="masked")(coalitions),
        ],
        "what compute returns": [lambda: store.evaluate("a", coalitions, lambda c: np.ma.array([[1.0]], mask=True))],
        "coalitions": [
            lambda: evaluate(Fine(), masked),
            lambda: store.evaluate("a", masked, lambda c: np.ones((1, 1))),
        ],
        "groups": [lambda: GroupedGame(Fine(), np.ma.array([0, 1], mask=[False, True]))],
        "x_train": [lambda: values(MASKED[:, None])],
        "x_test": [lambda: values(None, test=MASKED[None], metric="precomputed")],
        "indices of a k-NN graph": [
            lambda: values(None, test=KNNGraph(np.ma.array([[0]], mask=True), n_train=2), metric="precomputed")
        ],
        "distances of a k-NN graph": [
            lambda: values(None, test=KNNGraph([[0, 1]], MASKED[None], n_train=2), metric="precomputed")
        ],
    }
    for name, calls in refusals.items():
        for call in calls:
            with pytest.raises(ValueError, match=f"{name}.* must have no masked entries, got 1"):
                call()
    with pytest.raises(ValueError, match="y_train must have no missing targets"):
        knn_regression_shapley(X, MASKED, TEST, [0.0], k=1)


@pytest.mark.parametrize(
    "utilities", [np.array([0, BIG]), np.array([0, np.longdouble("1e400")])], ids=["int64", "long"]
)
def test_utilities_that_float64_does_not_hold_are_refused(utilities, tmp_path):
    class Large:
        n_players = 1

        def __call__(self, coalitions):
            return utilities[: len(coalitions)]

    if utilities[1] == np.inf:
        pytest.skip("a long double is a double here")
    coalitions = np.array([[False], [True]])
    with pytest.raises(ValueError, match=r"float64 holds exactly|finite"):
        evaluate(Large(), coalitions)
    store = UtilityStore(tmp_path / "u.db")
    with pytest.raises(ValueError, match=r"float64 holds exactly|finite"):
        evaluate(CachedGame(Large(), store, identity="large"), coalitions)
    assert len(store) == (utilities.dtype != np.int64)  # the finite one of the two


def test_coalitions_of_other_players_are_refused_and_do_not_name_a_game(tmp_path):
    class Sizes:
        n_players = 3

        def __call__(self, coalitions):
            return coalitions.sum(axis=1).astype(float)

        def measure(self, coalitions):
            return coalitions.sum(axis=1).astype(float)[:, None]

    class Measured(Sizes):
        measures, utility = ("loss",), "loss"

    for name, game in {"one": Sizes(), "measured": Measured()}.items():
        cached = CachedGame(game, UtilityStore(tmp_path / "u.db"), identity=name)
        for call in (cached, cached.measure):
            with pytest.raises(ValueError, match=r"coalitions must be a bool array of shape \(m, 3\)"):
                call(np.ones((1, 4), bool))
        assert cached(np.ones((1, 3), bool)) == 3
    grouped = GroupedGame(Sizes(), [0, 0, 1])
    for coalitions in (np.ones((1, 3), bool), np.ones((1, 2), int), np.ones(2, bool)):
        with pytest.raises(
            ValueError, match=r"coalitions must be a bool array of shape \(m, 2\), a column for each group"
        ):
            grouped(coalitions)


@pytest.mark.parametrize("n_train", [6.5, 2.0, "2", True])
def test_a_graph_says_how_many_points_there_are(n_train):
    with pytest.raises(TypeError, match="n_train of a k-NN graph must be an integer"):
        values(None, test=KNNGraph([[0, 1]], n_train=n_train), metric="precomputed")
