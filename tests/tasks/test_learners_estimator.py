"""Games of scikit-learn estimators: what each coalition is worth, in any number of processes, and what is refused."""

import joblib
import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.cluster import KMeans
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from baselines import Game
from tasks.learners import EstimatorGame, LogisticGame, RidgeGame
from tests.tasks.test_learners import random_coalitions, regression, samples, with_constant


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
    ]
    identities = [base.identity(), *(game.identity() for game in others)]
    assert len(set(identities)) == len(identities)
    with pytest.raises(ValueError, match="an identity needs an estimator and a scoring that can be pickled"):
        EstimatorGame(LogisticRegression(), x, y, xv, yv, scoring=lambda model, x, y: 0.0).identity()


def identity_of_a_new_game():
    return EstimatorGame(LogisticRegression(C=2), *samples(), scoring="accuracy").identity()


def test_identity_is_the_same_in_another_process():
    there = joblib.Parallel(2)(joblib.delayed(identity_of_a_new_game)() for _ in range(2))
    assert there == [identity_of_a_new_game()] * 2


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
    with pytest.raises(ValueError, match="scoring"):
        EstimatorGame(learner, x, y, xv, yv, scoring="praise")
    with pytest.raises(ValueError, match="x_train must be finite"):
        EstimatorGame(learner, np.where(x > 1, np.nan, x), y, xv, yv)
    with pytest.raises(ValueError, match="y_validation must only have labels that y_train has"):
        EstimatorGame(learner, x, y, xv, yv + 1)
    with pytest.raises(ValueError, match="y_train must be finite"):
        EstimatorGame(LinearRegression(), x, np.where(y == 0, np.nan, 1.0), xv, yv)
    with pytest.raises(ValueError, match="coalitions must be a bool array"):
        EstimatorGame(learner, x, y, xv, yv)(np.ones((2, 24)))
