"""What an estimator is handed: rows of whatever it takes, copies of its own, and labels that it can be fitted to."""

import importlib
import operator
import sys

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import sklearn
from joblib.externals.loky import get_reusable_executor
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.compose import make_column_transformer
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from tasks.learners import EstimatorGame
from tests.tasks.small_samples import random_coalitions, regression, samples

COLOURS = np.array(["red", "green", "blue"])


def frame(x):
    """Return columns of numbers with gaps, categories with gaps, and strings."""
    colours = COLOURS[np.digitize(x[:, 1], [-0.5, 0.5])]
    return pd.DataFrame(
        {
            "size": np.where(np.arange(len(x)) % 5 == 0, np.nan, x[:, 0]),
            "colour": pd.Categorical(np.where(np.arange(len(x)) % 7 == 3, None, colours), categories=COLOURS),
            "word": np.where(x[:, 2] > 0, "long", "short"),
        },
        index=[f"sample {number}" for number in range(len(x))],
    )


def texts(x):
    return [" ".join(f"word{feature}" for feature in np.flatnonzero(row > 0)) + " all" for row in x]


def columns_by_name():
    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["colour", "word"]), (SimpleImputer(), ["size"])
    )
    return make_pipeline(columns, LogisticRegression())


def with_gaps(x):
    return np.where(x > 1.5, np.nan, x)


KINDS = {
    "float32": (lambda x: x.astype(np.float32), LogisticRegression),
    "integers": (lambda x: (10 * x).astype(int), KNeighborsClassifier),
    "lists of numbers": (lambda x: x.tolist(), LogisticRegression),
    "texts": (texts, lambda: make_pipeline(CountVectorizer(), LogisticRegression())),
    "array of texts": (lambda x: np.array(texts(x)), lambda: make_pipeline(CountVectorizer(), LogisticRegression())),
    "dicts": (lambda x: [{"a": row[0]} for row in x], lambda: make_pipeline(DictVectorizer(), LogisticRegression())),
    "sparse matrix": (lambda x: scipy.sparse.csr_matrix(x * (x > 0)), LogisticRegression),
    "sparse array by columns": (lambda x: scipy.sparse.csc_array(x * (x > 0)), LogisticRegression),
    "sparse coordinates": (lambda x: scipy.sparse.coo_array(x * (x > 0)), LogisticRegression),
    "frame": (frame, columns_by_name),
    "gaps": (with_gaps, lambda: HistGradientBoostingClassifier(max_iter=3, min_samples_leaf=2)),
    "images": (
        lambda x: x.reshape(len(x), 2, 2),
        lambda: make_pipeline(FunctionTransformer(operator.methodcaller("reshape", -1, 4)), LogisticRegression()),
    ),
}


def picked(data, members):
    if isinstance(data, pd.DataFrame | pd.Series):
        return data.iloc[members]
    if scipy.sparse.issparse(data):
        return data.tocsr()[members]
    return [data[member] for member in members] if isinstance(data, list) else data[members]


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_any_kind_reach_the_estimator_as_they_are(kind, n_jobs):
    convert, make = KINDS[kind]
    x, y, xv, yv = samples(n_classes=2, d=4)
    coalitions = random_coalitions(24, m=4)[1:]
    coalitions[:, :6] = True
    x, xv = convert(x), convert(xv)
    fitted = [make().fit(picked(x, members), y[members]) for members in map(np.flatnonzero, coalitions)]
    expected = [-log_loss(yv, model.predict_proba(xv)) for model in fitted]
    game = EstimatorGame(make(), x, y, xv, yv, scoring="neg_log_loss", n_jobs=n_jobs)
    np.testing.assert_allclose(game(coalitions), expected)
    assert len(set(expected)) > 1


LABELS = {
    "strings": lambda y: np.array(["no", "yes"])[y],
    "list": lambda y: np.array(["no", "yes"])[y].tolist(),
    "booleans": lambda y: y == 1,
    "objects": lambda y: np.array(["no", "yes"], object)[y],
    "series": lambda y: pd.Series(np.array(["no", "yes"])[y], index=np.arange(len(y))[::-1]),
    "categories": lambda y: pd.Series(pd.Categorical.from_codes(y, ["no", "yes"])),
    "nullable strings": lambda y: pd.Series(np.array(["no", "yes"])[y], dtype="string"),
    "column": lambda y: pd.DataFrame({"answer": y}),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_any_kind_are_worth_the_same(kind):
    x, y, xv, yv = samples(n_classes=2)
    coalitions = random_coalitions(24, m=6)
    expected = EstimatorGame(DecisionTreeClassifier(), x, y, xv, yv)(coalitions)
    labelled = EstimatorGame(DecisionTreeClassifier(), x, LABELS[kind](y), xv, LABELS[kind](yv))
    np.testing.assert_array_equal(labelled(coalitions), expected)


def test_what_an_estimator_refuses_is_told_with_the_coalition():
    x, y, xv, yv = samples()
    x[5] = np.nan
    coalitions = np.ones((2, 24), bool)
    coalitions[0, 5] = False
    game = EstimatorGame(LogisticRegression(), x, y, xv, yv)
    assert 0.5 < game(coalitions[:1]) <= 1
    with pytest.raises(RuntimeError, match=r"failed on the coalition of size 24 with members \[0, .* contains NaN"):
        game(coalitions)


def test_settings_of_scikit_learn_hold_for_workers():
    columns = make_column_transformer((StandardScaler(), ["size"]), verbose_feature_names_out=False)
    learner = make_pipeline(columns, make_column_transformer(("passthrough", ["size"])), LogisticRegression())
    x, y, xv, yv = samples()
    x, xv = (frame(each)[["size"]].fillna(0.0) for each in (x, xv))
    with sklearn.config_context(transform_output="pandas"):
        one, two = (EstimatorGame(learner, x, y, xv, yv, n_jobs=n)(np.ones((3, 24), bool)) for n in (1, 2))
    np.testing.assert_array_equal(one, two)


def multilabel(n=24, v=30):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n + v, 4))
    y = (x @ rng.normal(size=(4, 3)) + rng.normal(size=(n + v, 3)) > 0).astype(int)
    return x[:n], y[:n], x[n:], y[n:]


@pytest.mark.parametrize("sparse", [False, True])
def test_multilabel_classifiers(sparse):
    x, y, xv, yv = multilabel()
    coalitions = random_coalitions(24, m=6)
    of_two = [all(len(np.unique(column)) == 2 for column in y[coalition].T) for coalition in coalitions]
    expected = [
        OneVsRestClassifier(KNeighborsClassifier(1)).fit(x[coalition], y[coalition]).score(xv, yv)
        if fitted
        else (yv == constant(y[coalition])).all(axis=1).mean()
        for coalition, fitted in zip(coalitions, of_two, strict=True)
    ]
    labels = [scipy.sparse.csr_array(each) if sparse else each for each in (y, yv)]
    learner = OneVsRestClassifier(KNeighborsClassifier(1))
    game = EstimatorGame(learner, x, labels[0], xv, labels[1], scoring=share_of_right_rows)
    np.testing.assert_allclose(game(coalitions), expected)
    assert 1 < sum(of_two) < len(of_two)


def share_of_right_rows(model, x, y):
    labels, predicted = (each.toarray() if scipy.sparse.issparse(each) else each for each in (y, model.predict(x)))
    return (labels == predicted).all(axis=1).mean()


def constant(y):
    """Return the more frequent label of each column, the first of equals."""
    return (2 * y.sum(axis=0) > len(y)).astype(int)


def score_of_outputs(model, x, y):
    return -sum(log_loss(y[:, output], p, labels=[0, 1]) for output, p in enumerate(model.predict_proba(x)))


def score_of_probabilities(model, x, y):
    return -np.abs(model.predict_proba(x) - y).mean()


def test_multilabel_classifiers_with_one_array_of_probabilities_answer_as_they_are():
    x, y, xv, yv = multilabel()
    learner = OneVsRestClassifier(LogisticRegression())
    game = EstimatorGame(learner, x, y, xv, yv, scoring=score_of_probabilities)
    expected = score_of_probabilities(learner.fit(x, y), xv, yv)
    np.testing.assert_allclose(game(np.ones((1, 24), bool)), expected)


def test_outputs_with_a_single_class_have_probability_zero_for_the_other():
    x, y, xv, yv = multilabel()
    coalition = np.zeros((1, 24), bool)
    coalition[0, np.flatnonzero(y[:, 0] == 1)[:5]] = True
    assert len(np.unique(y[coalition[0], 0])) == 1
    tree = DecisionTreeClassifier(random_state=0).fit(x[coalition[0]], y[coalition[0]])
    padded = [
        p if p.shape[1] == 2 else np.stack([1 - p[:, 0], p[:, 0]] if classes[0] else [p[:, 0], 1 - p[:, 0]], axis=1)
        for p, classes in zip(tree.predict_proba(xv), tree.classes_, strict=True)
    ]
    expected = -sum(log_loss(yv[:, output], p, labels=[0, 1]) for output, p in enumerate(padded))
    game = EstimatorGame(DecisionTreeClassifier(), x, y, xv, yv, scoring=score_of_outputs, min_classes=1)
    np.testing.assert_allclose(game(coalition), expected)


def test_one_classifier_an_output_fails_on_single_classes_unless_they_are_not_asked_for():
    x, y, xv, yv = multilabel()
    learner = MultiOutputClassifier(LogisticRegression())
    coalitions = np.stack([np.ones(24, bool), y[:, 1] == 1])
    assert np.isfinite(EstimatorGame(learner, x, y, xv, yv)(coalitions)).all()
    with pytest.raises(RuntimeError, match=r"failed on the coalition of size .* raise min_samples=1 or min_classes"):
        EstimatorGame(learner, x, y, xv, yv, min_classes=1)(coalitions)


def test_an_output_needs_no_more_classes_than_there_are():
    x, y, xv, yv = multilabel()
    y[:, 2], yv[:, 2] = 1, 1
    learner = KNeighborsClassifier(1)
    expected = learner.fit(x, y).score(xv, yv)
    np.testing.assert_allclose(EstimatorGame(learner, x, y, xv, yv, unfit="raise")(np.ones((1, 24), bool)), expected)


def test_regressors_of_several_outputs():
    x, y, xv, yv = regression()
    y, yv = np.stack([y, y**2], axis=1), np.stack([yv, yv**2], axis=1)
    coalitions = random_coalitions(24, m=4)
    game = EstimatorGame(LinearRegression(), x, y, xv, yv, scoring="neg_mean_squared_error", min_samples=10)
    expected = []
    for coalition in coalitions:
        mean = y[coalition].mean(axis=0) if coalition.any() else np.zeros(2)
        fitted = coalition.sum() >= 10
        predicted = LinearRegression().fit(x[coalition], y[coalition]).predict(xv) if fitted else mean
        expected.append(-((yv - predicted) ** 2).mean())
    np.testing.assert_allclose(game(coalitions), expected)


class Vandal(RegressorMixin, BaseEstimator):
    """Predicts what it remembers of its samples, which it then overwrites, and so those that it predicts."""

    def fit(self, x, y):
        self.mean_ = np.mean([cell[0] for cell in x[:, 0]])
        overwritten(x)
        y[:] = 0
        return self

    def predict(self, x):
        predicted = self.mean_ + np.array([cell[0] for cell in x[:, 0]])
        overwritten(x)
        return predicted


def overwritten(x):
    for cell in x[:, 0]:
        cell[0] = 0.0
    x[:] = None


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_estimators_that_overwrite_what_they_are_handed_change_nothing(n_jobs):
    _, y, _, yv = regression()
    x, xv = np.empty((24, 1), object), np.empty((30, 1), object)
    x[:, 0], xv[:, 0] = [[value] for value in y], [[value] for value in yv]
    coalitions = random_coalitions(24, m=6)[2:]
    coalitions[:, 0] = True
    before = y.copy(), yv.copy()
    game = EstimatorGame(Vandal(), x, y, xv, yv, scoring="neg_mean_squared_error", n_jobs=n_jobs)
    expected = [-(y[coalition].mean() ** 2) for coalition in coalitions]
    for _ in range(2):
        np.testing.assert_allclose(game(coalitions), expected)
    assert x[0, 0] == [y[0]]
    np.testing.assert_array_equal((y, yv)[0], before[0])
    np.testing.assert_array_equal(yv, before[1])


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_scaling_in_place_is_worth_what_scaling_copies_is(n_jobs):
    x, y, xv, yv = samples(d=2000, v=100)  # so large that joblib maps them into workers' memory, to be read only
    coalitions = random_coalitions(24, m=6)
    in_place, copied = (
        EstimatorGame(make_pipeline(StandardScaler(copy=copy), KNeighborsClassifier(1)), x, y, xv, yv, n_jobs=n_jobs)
        for copy in (False, True)
    )
    np.testing.assert_array_equal(in_place(coalitions), copied(coalitions))
    np.testing.assert_array_equal(in_place(coalitions), copied(coalitions))


def test_the_game_stays_what_it_was_when_the_samples_change():
    x, y, xv, yv = samples()
    coalitions = random_coalitions(24, m=4)
    game = EstimatorGame(LogisticRegression(), x, y, xv, yv)
    before = game(coalitions)
    x[:], y[:], xv[:], yv[:] = 0, 0, 0, 0
    np.testing.assert_array_equal(game(coalitions), before)


class Consecutive(ClassifierMixin, BaseEstimator):
    """Demands labels 0..k-1, as that of xgboost does."""

    def __init__(self, learner=None):
        self.learner = learner

    def fit(self, x, y):
        if not np.array_equal(np.unique(y), np.arange(len(np.unique(y)))):
            raise ValueError(f"expected labels 0..k-1, got {np.unique(y)}")
        self.fitted_ = self.learner.fit(x, y)
        self.classes_ = self.fitted_.classes_
        return self

    def predict(self, x):
        return self.fitted_.predict(x)

    def predict_proba(self, x):
        return self.fitted_.predict_proba(x)


@pytest.mark.parametrize("scoring", [None, "accuracy", "neg_log_loss"])
@pytest.mark.parametrize("names", [np.array([0, 1, 2]), np.array(["a", "b", "c"])])
def test_relabelled_classifiers_are_worth_what_others_are(scoring, names):
    x, y, xv, yv = samples(n_classes=3)
    coalitions = np.concatenate([random_coalitions(24, m=6), (y != 0)[None], (y != 1)[None], (y == 2)[None]])
    y, yv = names[y], names[yv]
    expected = EstimatorGame(LogisticRegression(), x, y, xv, yv, scoring=scoring)(coalitions)
    learner = Consecutive(LogisticRegression())
    relabelled = EstimatorGame(learner, x, y, xv, yv, scoring=scoring, relabel=True)
    np.testing.assert_allclose(relabelled(coalitions), expected)
    with pytest.raises(RuntimeError, match=r"failed on the coalition of size .* expected labels 0..k-1"):
        EstimatorGame(learner, x, y, xv, yv, scoring=scoring)(coalitions)


def test_relabelled_classifiers_decide():
    x, y, xv, yv = samples(n_classes=2)
    names = np.array(["a", "b"])
    game = EstimatorGame(LinearSVC(random_state=0), x, names[y], xv, names[yv], scoring="roc_auc", relabel=True)
    expected = roc_auc_score(yv, LinearSVC(random_state=0).fit(x, y).decision_function(xv))
    np.testing.assert_allclose(game(np.ones((1, 24), bool)), expected)


def answers(model, x, y):
    return 10.0 * hasattr(model, "predict_proba") + hasattr(model, "decision_function")


def test_relabelled_classifiers_answer_what_the_fitted_one_does_and_decide_where_no_class_is_lacking():
    x, y, xv, yv = samples(n_classes=3)
    coalitions = np.stack([np.ones(24, bool), y != 1])
    for learner, expected in ((LinearSVC(), [1, 0]), (LogisticRegression(), [11, 10]), (GaussianNB(), [10, 10])):
        game = EstimatorGame(learner, x, y, xv, yv, scoring=answers, relabel=True)
        np.testing.assert_array_equal(game(coalitions), expected)


def test_classifiers_that_need_all_classes_are_worth_the_constant_without_them():
    x, y, xv, yv = samples(n_classes=3)
    coalitions = np.stack([np.ones(24, bool), y != 2])
    learner = GaussianNB(priors=[0.2, 0.3, 0.5])
    most = np.argmax(np.bincount(y[y != 2]))
    expected = [learner.fit(x, y).score(xv, yv), (yv == most).mean()]
    np.testing.assert_allclose(EstimatorGame(learner, x, y, xv, yv, min_classes="all")(coalitions), expected)
    np.testing.assert_allclose(EstimatorGame(learner, x, y, xv, yv, min_classes=3)(coalitions), expected)
    with pytest.raises(RuntimeError, match=r"GaussianNB.* failed on the coalition .* raise min_samples=1 or min_class"):
        EstimatorGame(learner, x, y, xv, yv)(coalitions)
    with pytest.raises(RuntimeError, match="cannot be fitted: it takes at least 1 members and 3 classes"):
        EstimatorGame(learner, x, y, xv, yv, min_classes="all", unfit="raise")(coalitions)


def test_classifiers_of_a_single_class_are_asked_where_one_suffices():
    x, y, xv, yv = samples(n_classes=2)
    coalitions = np.stack([y == 1, y == 0])
    learner = DummyClassifier(strategy="uniform", random_state=0)
    game = EstimatorGame(learner, x, y, xv, yv, min_classes=1)
    np.testing.assert_allclose(game(coalitions), [(yv == 1).mean(), (yv == 0).mean()])


def test_the_constant_of_several_outputs_predicts_shares_with_one_pseudo_count_a_class():
    x, y, xv, yv = multilabel()
    coalition = np.zeros((2, 24), bool)
    coalition[1, :3] = True
    game = EstimatorGame(KNeighborsClassifier(5), x, y, xv, yv, scoring=score_of_outputs, min_samples=5)
    ones = [np.full(3, 0.5), (1 + y[:3].sum(axis=0)) / 5]
    expected = [(yv * np.log(share) + (1 - yv) * np.log(1 - share)).mean(axis=0).sum() for share in ones]
    np.testing.assert_allclose(game(coalition), expected)


def torch_is_loaded(model, x, y):
    return float("torch" in sys.modules)


def test_workers_do_without_torch_even_where_it_is_loaded():
    importlib.import_module("torch")
    get_reusable_executor().shutdown()  # other tests' workers may have a use for it
    game = EstimatorGame(LogisticRegression(), *samples(), scoring=torch_is_loaded, n_jobs=2)
    assert game(np.ones((4, 24), bool)).tolist() == [0, 0, 0, 0]
