"""Games of scikit-learn estimators: what each coalition is worth, in any number of processes, and what is refused."""

import importlib
import random
import sys
from types import ModuleType

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.cluster import KMeans
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.tree import DecisionTreeClassifier

from baselines import Game
from tasks.code_identity import CodeIdentityError
from tasks.learners import EstimatorGame, LogisticGame, RidgeGame
from tests.tasks.small_samples import random_coalitions, regression, samples, with_constant


def test_utilities_are_those_of_the_batched_games():
    x, y, xv, yv = samples(n_classes=2)
    coalitions = random_coalitions(24)
    coalitions[2:, :2] = True
    learner = LogisticRegression(fit_intercept=False, solver="newton-cholesky", tol=1e-10)
    for scoring, utility in (("neg_log_loss", "loss"), (None, "accuracy"), ("accuracy", "accuracy")):
        game = EstimatorGame(learner, with_constant(x), y, with_constant(xv), yv, scoring=scoring)
        assert isinstance(game, Game)
        np.testing.assert_allclose(game(coalitions), LogisticGame(x, y, xv, yv, utility=utility)(coalitions), atol=1e-8)


def test_a_regressor_and_its_own_score():
    x, y, xv, yv = regression()
    coalitions = random_coalitions(24)[1:]
    coalitions[:, :8] = True
    ridge = RidgeGame(x, y, xv, yv, l2=1e-10, utility="r2")
    np.testing.assert_allclose(
        EstimatorGame(LinearRegression(), x, y, xv, yv)(coalitions), ridge(coalitions), rtol=1e-6
    )


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_utilities_do_not_depend_on_workers_batches_or_calls(n_jobs):
    forest = make_pipeline(StandardScaler(), RandomForestClassifier(n_estimators=3))
    data = samples()
    coalitions = random_coalitions(24, m=10)
    alone = np.array([EstimatorGame(forest, *data)(coalition[None])[0] for coalition in coalitions])
    game = EstimatorGame(forest, *data, n_jobs=n_jobs)
    np.testing.assert_array_equal(game(coalitions), alone)
    np.testing.assert_array_equal(game(coalitions[::-1]), alone[::-1])


def test_the_seed_takes_the_place_of_each_open_random_state_and_of_no_other():
    data = samples(n=40)
    coalitions = random_coalitions(40, m=10)

    def utilities(state, seed):
        tree = DecisionTreeClassifier(splitter="random", max_depth=2, random_state=state)
        return EstimatorGame(make_pipeline(StandardScaler(), tree), *data, random_state=seed)(coalitions)

    assert (utilities(None, 0) != utilities(None, 1)).any()
    np.testing.assert_array_equal(utilities(5, 0), utilities(5, 1))
    np.testing.assert_array_equal(utilities(None, 5), utilities(5, 0))


def few_coalitions():
    """Return nobody, one class, and samples of all three classes but one sample only of each."""
    coalitions = np.zeros((3, 24), bool)
    coalitions[1, 0] = coalitions[2, :3] = True
    return coalitions


def test_what_cannot_be_fitted_is_worth_what_a_constant_is():
    x, y, xv, yv = samples(n_classes=3)
    share = np.bincount(yv) / len(yv)

    def utilities(scoring):
        return EstimatorGame(KNeighborsClassifier(5), x, y, xv, yv, scoring=scoring, min_samples=5)(few_coalitions())

    np.testing.assert_allclose(utilities(None), share[0])  # the only class or, of equals, the first
    uniform, halved = -np.log(3), share @ np.log([1 / 2, 1 / 4, 1 / 4])  # one more of the first class: 2, 1, 1
    np.testing.assert_allclose(utilities("neg_log_loss"), [uniform, halved, uniform])


def test_a_regressor_without_enough_samples_predicts_their_mean_or_zero():
    x, y, xv, yv = regression()
    scoring = "neg_mean_squared_error"
    utilities = EstimatorGame(LinearRegression(), x, y, xv, yv, scoring=scoring, min_samples=4)(few_coalitions())
    means = [0, y[0], y[:3].mean()]
    np.testing.assert_allclose(utilities, [-((yv - mean) ** 2).mean() for mean in means])


def test_what_cannot_be_fitted_is_worth_a_given_number_or_refused():
    data = samples(n_classes=3)
    given = EstimatorGame(LogisticRegression(), *data, unfit=-7)(few_coalitions())
    np.testing.assert_array_equal(given[:2], -7)
    assert given[2] > 0
    game = EstimatorGame(LogisticRegression(), *data, unfit="raise")
    assert game(few_coalitions()[2:]) == given[2:]
    with pytest.raises(RuntimeError, match=r"the coalition of size 1 with members \[0\] cannot be fitted"):
        game(few_coalitions()[1:])


def test_classes_that_a_coalition_lacks_have_probability_zero():
    x, y, xv, yv = samples(n_classes=3)
    coalition = (y != 1)[None]
    learner = LogisticRegression().fit(x[y != 1], y[y != 1])
    kept = yv != 1
    expected = np.log(learner.predict_proba(xv[kept])[np.arange(kept.sum()), yv[kept] // 2]).mean()

    def utility(xv, yv, scoring):
        return EstimatorGame(LogisticRegression(), x, y, xv, yv, scoring=scoring)(coalition)[0]

    assert utility(xv[kept], yv[kept], scorer_of_all_classes) == pytest.approx(expected)
    assert utility(xv[~kept], yv[~kept], "accuracy") == 0


def scorer_of_all_classes(model, x, y):
    assert list(model.classes_) == [0, 1, 2]
    return np.log(model.predict_proba(x)[np.arange(len(y)), y]).mean()


class Picky(ClassifierMixin, BaseEstimator):
    """Refuses player 3, whose feature is 3."""

    def fit(self, x, y):
        if (x == 3).any():
            raise ArithmeticError("three is too many")
        self.classes_ = np.unique(y)
        return self

    def predict(self, x):
        return np.full(len(x), self.classes_[0])


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_failing_estimator_is_named_with_its_coalition_and_its_error(n_jobs):
    x = np.arange(12.0)[:, None]
    y = np.arange(12) % 2
    game = EstimatorGame(Picky(), x, y, x, y, n_jobs=n_jobs)
    coalitions = np.ones((2, 12), bool)
    coalitions[0, 3] = False
    assert game(coalitions[:1]) == 0.5
    pattern = r"Picky\(\) failed on the coalition of size 12 with members \[0, .*, 9, \.\.\.\]: ArithmeticError: three"
    with pytest.raises(RuntimeError, match=pattern):
        game(coalitions)


def score_of_nobody(model, x, y):
    return np.nan


def test_a_score_that_is_not_finite_is_named():
    data = samples()
    with pytest.raises(RuntimeError, match=r"a score must be a finite number, got nan of .* size 24 with members"):
        EstimatorGame(LogisticRegression(), *data, scoring=score_of_nobody)(np.ones((1, 24), bool))


def test_identity_changes_with_all_that_utilities_follow_from_and_with_nothing_else():
    x, y, xv, yv = samples()
    base = EstimatorGame(LogisticRegression(), x, y, xv, yv)
    assert base.identity() == EstimatorGame(LogisticRegression(), x, y, xv, yv, n_jobs=2).identity()
    others = [
        EstimatorGame(LogisticRegression(C=2.0), x, y, xv, yv),
        EstimatorGame(DecisionTreeClassifier(), x, y, xv, yv),
        EstimatorGame(LogisticRegression(), x, y, xv, yv, scoring="neg_log_loss"),
        EstimatorGame(LogisticRegression(), x, y, xv, yv, scoring=score_of_nobody),
        EstimatorGame(LogisticRegression(), x, y, xv, yv, unfit=0.0),
        EstimatorGame(LogisticRegression(), x, y, xv, yv, min_samples=2),
        EstimatorGame(LogisticRegression(), x, y, xv, yv, random_state=1),
        EstimatorGame(LogisticRegression(), x, 1 - y, xv, yv),
        EstimatorGame(LogisticRegression(), x + 1, y, xv, yv),
        EstimatorGame(LogisticRegression(), x.astype(np.float32), y, xv, yv),
        EstimatorGame(LogisticRegression(), x, y, xv + 1, yv),
        EstimatorGame(LogisticRegression(), x, y, xv, 1 - yv),
        EstimatorGame(LogisticRegression(), x, y, xv, yv, min_classes=1),
        EstimatorGame(LogisticRegression(), x, y, xv, yv, relabel=True),
        EstimatorGame(LogisticRegression(), pd.DataFrame(x), y, pd.DataFrame(xv), yv),
    ]
    identities = [base.identity(), *(game.identity() for game in others)]
    assert len(set(identities)) == len(identities)


def test_identity_changes_with_the_code_of_estimators_and_scorers(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    source = """
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
class Mine(ClassifierMixin, BaseEstimator):
    def fit(self, x, y):
        return self
    def predict(self, x):
        return x[:, 0] > 0
def score(model, x, y):
    return 1.0
"""

    def identity(source, *, mine=False, scored=False):
        tmp_path.joinpath("mine_of_estimator.py").write_text(source)
        sys.modules.pop("mine_of_estimator", None)
        importlib.invalidate_caches()
        module = importlib.import_module("mine_of_estimator")
        learner = module.Mine() if mine else LogisticRegression()
        return EstimatorGame(learner, *samples(), scoring=module.score if scored else "accuracy").identity()

    for uses in ({"mine": True}, {"scored": True}):
        assert identity(source, **uses) == identity(source, **uses) != identity(source.replace("0", "5"), **uses)
    assert identity(source) == identity(source.replace("0", "5"))
    del sys.modules["mine_of_estimator"]


def test_code_that_is_not_in_a_file_has_no_identity():
    notebook = ModuleType("notebook")
    sys.modules["notebook"] = notebook
    try:
        exec("def score(model, x, y):\n    return 1.0", vars(notebook))  # noqa: S102
        game = EstimatorGame(LogisticRegression(), *samples(), scoring=notebook.score)
        assert game(np.ones((1, 24), bool)) == 1
        with pytest.raises(CodeIdentityError, match="the source of module notebook is not to be had"):
            game.identity()
    finally:
        del sys.modules["notebook"]


def identity_of_a_new_game(kind):
    x, y, xv, yv = samples()
    if kind == "frame":
        x, xv = (pd.DataFrame({"a": each[:, 0], "b": pd.Categorical(each[:, 1] > 0), "c": "word"}) for each in (x, xv))
        y, yv = (pd.Series(np.array(["no", "yes"])[each], dtype="string") for each in (y, yv))
    elif kind == "texts":
        x, xv = ([" ".join(map(str, row)) for row in each] for each in (x, xv))
    return EstimatorGame(LogisticRegression(C=2), x, y, xv, yv, scoring="accuracy").identity()


@pytest.mark.parametrize("kind", ["array", "frame", "texts"])
def test_identity_is_the_same_in_another_process(kind):
    there = joblib.Parallel(2)(joblib.delayed(identity_of_a_new_game)(kind) for _ in range(2))
    assert there == [identity_of_a_new_game(kind)] * 2


def chance_of_the_estimator(x):
    return x + np.random.normal(scale=3, size=x.shape)  # noqa: NPY002


def chance_of_the_standard_library(x):
    return x * random.gauss()


def chance_of_its_own(x):
    return x + np.random.default_rng().normal(scale=3, size=x.shape)


class OfSomeForest(ClassifierMixin, BaseEstimator):
    def fit(self, x, y):
        self.forest_ = RandomForestClassifier(100).fit(x, y)  # no parameter of this class: its seed is out of reach
        self.classes_ = self.forest_.classes_
        return self

    def predict(self, x):
        return self.forest_.predict(x)

    def predict_proba(self, x):
        return self.forest_.predict_proba(x)


def score_of_some_samples(model, x, y):
    chosen = np.random.permutation(len(x))[:20]  # noqa: NPY002
    return np.log(model.predict_proba(x[chosen])[np.arange(20), y[chosen]]).mean()


HIDDEN = {
    "np.random in a function": (
        make_pipeline(FunctionTransformer(chance_of_the_estimator), LogisticRegression()),
        None,
    ),
    "random in a function": (
        make_pipeline(FunctionTransformer(chance_of_the_standard_library), LogisticRegression()),
        None,
    ),
    "an estimator within": (OfSomeForest(), None),
    "the scorer": (LogisticRegression(), score_of_some_samples),
    "a generator of its own": (make_pipeline(FunctionTransformer(chance_of_its_own), LogisticRegression()), None),
}
DRAWS = {
    "np.random in a function": "numpy.random",
    "random in a function": "random",
    "an estimator within": "numpy.random",
    "the scorer": "numpy.random",
}


@pytest.mark.parametrize(("kind", "n_jobs"), [*((kind, 1) for kind in HIDDEN), ("an estimator within", 2)])
def test_hidden_chance_is_refused_with_the_coalition_that_shows_it(kind, n_jobs):
    learner, scoring = HIDDEN[kind]
    coalitions = np.ones((4, 24), bool)
    coalitions[2, 6:] = False
    game = EstimatorGame(learner, *samples(d=6), scoring=scoring, n_jobs=n_jobs)
    pattern = r"when it is fitted again to the coalition of size 6 with members \[0, 1, 2, 3, 4, 5\], worth .*a seed"
    if kind in DRAWS:
        pattern = rf"or its scorer draws from {DRAWS[kind]}, whose state .* with the coalition of size .*a seed"
    for _ in range(3 - n_jobs):  # joblib starts its workers anew after an error
        with pytest.raises(RuntimeError, match=pattern):
            game(coalitions)


def a_rare_draw(x):
    return x if random.random() < 2 else -x  # noqa: S311


def a_draw_beyond_some_size(x):
    return x + (np.random.normal(size=x.shape) if len(x) == 20 else 0.0)  # noqa: NPY002


def a_draw_of_torch(x):
    import torch  # not above: workers import this file

    return x + 0.0 * float(torch.rand(1))


def a_draw_that_is_seeded(x):
    np.random.seed(0)  # noqa: NPY002
    return x + np.random.normal(size=x.shape)  # noqa: NPY002


@pytest.mark.parametrize(
    ("function", "generator"),
    [(a_rare_draw, "random"), (a_draw_beyond_some_size, "numpy.random"), (a_draw_of_torch, "torch")],
)
def test_draws_from_shared_generators_are_refused_even_where_they_change_nothing_or_are_rare(function, generator):
    game = EstimatorGame(make_pipeline(FunctionTransformer(function), LogisticRegression()), *samples())
    few, many = np.arange(24) < 6, np.arange(24) < 20
    with pytest.raises(RuntimeError, match=f"or its scorer draws from {generator}, whose state is not its own"):
        game(np.stack([few, many]))


def test_draws_from_a_generator_that_is_seeded_before_are_no_chance():
    game = EstimatorGame(make_pipeline(FunctionTransformer(a_draw_that_is_seeded), LogisticRegression()), *samples())
    everyone = np.ones((1, 24), bool)
    utility = game(everyone)
    random.random()  # noqa: S311
    np.random.random()  # noqa: NPY002
    assert game(everyone) == utility


class Weighted:
    """A scorer that can be changed."""

    def __init__(self):
        self.weight = 1.0

    def __call__(self, model, x, y):
        return self.weight * model.score(x, y)


def test_a_scorer_that_is_changed_afterwards_does_not_change_the_game():
    scorer, everyone = Weighted(), np.ones((1, 24), bool)
    game = EstimatorGame(LogisticRegression(), *samples(), scoring=scorer)
    utility, identity = game(everyone), game.identity()
    scorer.weight = 0.0
    assert (game(everyone), game.identity()) == (utility, identity)


class Counted(ClassifierMixin, BaseEstimator):
    fits = 0

    def fit(self, x, y):
        type(self).fits += 1
        self.classes_ = np.unique(y)
        return self

    def predict(self, x):
        return np.full(len(x), self.classes_[0])


class Rounding(RegressorMixin, BaseEstimator):
    """Another one at each fit, by no more than sums over threads are; and predicts NaN for the first sample."""

    fits = 0

    def fit(self, x, y):
        type(self).fits += 1
        self.slope_ = 1 + 1e-12 * self.fits
        return self

    def predict(self, x):
        predicted = self.slope_ * x[:, 0]
        predicted[0] = np.nan
        return predicted


def score_without_gaps(model, x, y):
    return -np.nanmean((model.predict(x) - y) ** 2)


def test_rounding_is_not_chance():
    x, _, xv, yv = regression()
    game = EstimatorGame(Rounding(), x, x[:, 0], xv, yv, scoring=score_without_gaps)
    np.testing.assert_allclose(game(np.ones((1, 24), bool)), -((xv[1:, 0] - yv[1:]) ** 2).mean())


def test_looking_for_chance_costs_one_fit_a_game():
    coalitions = random_coalitions(24, m=6)
    of_one = coalitions & (samples()[1] == 0)
    Counted.fits = 0
    game = EstimatorGame(Counted(), *samples(), n_jobs=1)
    game(of_one)
    assert Counted.fits == 0  # nothing could be fitted, and so nothing be told
    n_fitted = sum(len(np.unique(samples()[1][coalition])) == 2 for coalition in coalitions)
    game(coalitions)
    assert Counted.fits == n_fitted + 1
    game(coalitions)
    assert Counted.fits == 2 * n_fitted + 1


def test_bad_input():
    x, y, xv, yv = samples()
    learner = LogisticRegression()
    for bad in ("median", np.nan, True, None):
        with pytest.raises(ValueError, match="unfit must be 'constant', 'raise' or a finite number, got"):
            EstimatorGame(learner, x, y, xv, yv, unfit=bad)
    with pytest.raises(TypeError, match="estimator must be a scikit-learn classifier or regressor, got KMeans"):
        EstimatorGame(KMeans(), x, y, xv, yv)
    with pytest.raises(TypeError, match="estimator must be a scikit-learn classifier or regressor, got object"):
        EstimatorGame(object(), x, y, xv, yv)
    with pytest.raises(ValueError, match="min_samples must be at least 1, got 0"):
        EstimatorGame(learner, x, y, xv, yv, min_samples=0)
    for bad in (["accuracy"], 3):
        with pytest.raises(TypeError, match=r"scoring must be the name of a scorer, a callable .* or None, got"):
            EstimatorGame(learner, x, y, xv, yv, scoring=bad)
    with pytest.raises(ValueError, match=r"n_jobs must be a positive number, .* got 0"):
        EstimatorGame(learner, x, y, xv, yv, n_jobs=0)
    with pytest.raises(TypeError, match="n_jobs must be an integer"):
        EstimatorGame(learner, x, y, xv, yv, n_jobs=1.5)
    with pytest.raises(ValueError, match="min_samples must be at most the number of training samples, 24, got 25"):
        EstimatorGame(learner, x, y, xv, yv, min_samples=25)
    with pytest.raises(ValueError, match="min_classes must be at most the number of classes of y_train, 2, got 9"):
        EstimatorGame(learner, x, y, xv, yv, min_classes=9)
    with pytest.raises(TypeError, match="relabel must be True or False, got 1"):
        EstimatorGame(learner, x, y, xv, yv, relabel=1)
    with pytest.raises(ValueError, match="scoring"):
        EstimatorGame(learner, x, y, xv, yv, scoring="praise")
    with pytest.raises(ValueError, match="y_validation must only have labels that y_train has"):
        EstimatorGame(learner, x, y, xv, yv + 1)
    with pytest.raises(ValueError, match="y_train must be finite"):
        EstimatorGame(LinearRegression(), x, np.where(y == 0, np.nan, 1.0), xv, yv)
    with pytest.raises(ValueError, match="coalitions must be a bool array"):
        EstimatorGame(learner, x, y, xv, yv)(np.ones((2, 24)))
    with pytest.raises(ValueError, match=r"y_train must have one entry, or .* of the 24 samples, got shape \(23,\)"):
        EstimatorGame(learner, x, y[1:], xv, yv)
    with pytest.raises(ValueError, match=r"y_train must have one entry for each of the 24 samples, .* got \(23,\)"):
        EstimatorGame(LinearRegression(), x, y[1:], xv, yv)
    with pytest.raises(ValueError, match="the same number of outputs, got 2 and 1"):
        EstimatorGame(learner, x, np.stack([y, y], axis=1), xv, yv)
    for missing in (None, np.nan, pd.NA, pd.NaT):
        labels = np.where(y == 0, "a", "b").astype(object)
        labels[3] = missing
        with pytest.raises(ValueError, match=r"y_train must not have missing labels .* 1 samples, first for sample 3"):
            EstimatorGame(learner, x, labels, xv, np.where(yv == 0, "a", "b"))
    with pytest.raises(TypeError, match="labels must be of one kind, so that they can be sorted"):
        EstimatorGame(learner, x, np.array(["a", 1], object)[y], xv, np.array(["a", 1], object)[yv])
    with pytest.raises(ValueError, match="y_train must have at least two classes, got only"):
        EstimatorGame(learner, x, np.zeros(24), xv, np.zeros(30))
    for nothing in ("text", 3, None, np.float64(3)):
        with pytest.raises(
            TypeError, match="x_train must be an array, data frame, sparse matrix or list of samples, got"
        ):
            EstimatorGame(learner, nothing, y, xv, yv)
    with pytest.raises(ValueError, match="x_validation must have at least one sample, got none"):
        EstimatorGame(learner, x, y, xv[:0], yv[:0])
    for bad in ({"relabel": True}, {"min_classes": "all"}):
        with pytest.raises(ValueError, match="relabel and min_classes are for classifiers, LinearRegression is a regr"):
            EstimatorGame(LinearRegression(), x, y, xv, yv, **bad)
    with pytest.raises(ValueError, match="relabel must be False where y_train has several outputs, got 2 of them"):
        EstimatorGame(learner, x, np.stack([y, y], axis=1), xv, np.stack([yv, yv], axis=1), relabel=True)
    with pytest.raises(ValueError, match="min_classes must be at least 1, got 0"):
        EstimatorGame(learner, x, y, xv, yv, min_classes=0)
    with pytest.raises(TypeError, match="min_classes must be an integer of at least 1, got 'some'"):
        EstimatorGame(learner, x, y, xv, yv, min_classes="some")
