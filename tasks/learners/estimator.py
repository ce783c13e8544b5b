r"""Any scikit-learn estimator on any coalition of training samples, one fit a coalition, in parallel through joblib.

The utility of a coalition S is the score on the validation samples of a clone of the estimator fitted to S alone: the
estimator's own ``score`` (accuracy or R squared), or that of a scikit-learn scorer, such as ``"neg_log_loss"``.

**Coalitions that cannot be fitted** are decided by what they contain, not by how the estimator fails: the empty one,
those with fewer than `min_samples` members, and for a classifier those with a single class. The estimator is not asked;
`unfit` says what they are worth:

- ``"constant"``: what a model that knows nothing of the features is worth. A classifier's predicts the shares of the
  classes in S with one pseudo-count for each class of `y_train` (Laplace's rule of succession), so the empty coalition
  predicts all classes with the same probability, and of the most probable ones the first. A regressor's predicts the
  mean of S, and 0 for the empty coalition. Neither looks at the validation samples, nor at targets outside S.
- a number: worth that much.
- ``"raise"``: refused.

Whatever fails for another reason, and a score that is not finite, is an error that names the coalition: a utility is
never made up silently.

**Classes that S lacks.** A classifier fitted to some of the classes gives no probabilities for the others; a scorer
sees them as 0.

**Randomness.** A game has one utility a coalition, so every ``random_state`` that the estimator leaves at None, its
parts' included, is set to the game's `random_state`. Utilities thus depend neither on the number of workers nor on
which coalitions are asked for together.

**Variance**: none beyond that of the estimator's own randomness, which is fixed. **Cost**: one fit and one score of the
estimator a coalition. Coalitions travel to the workers in batches, several a worker; inside of
``joblib.parallel_config(backend="dask")`` or ``"ray"`` the workers are those of a cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import joblib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone, is_classifier, is_regressor
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.metrics import check_scoring

from baselines.arguments import whole_number
from baselines.game import described
from tasks.learners.coalitions import checked_coalitions
from tasks.learners.identity import identity_of
from tasks.learners.samples import class_codes, features, real_targets

__all__ = ["EstimatorGame"]

Unfit = float | Literal["constant", "raise"]

_BATCHES_A_WORKER = 4  # fits take unequal times: the last batches should not keep the others waiting


class EstimatorGame:
    """The game of a scikit-learn estimator (see the module's docstring).

    Parameters
    ----------
    estimator : scikit-learn classifier or regressor
        Cloned, never fitted itself; a pipeline, too.
    x_train : float [n, d]
        Features of the training samples, the players.
    y_train : [n]
        Their labels, numbers or strings of two classes or more; of a regressor real numbers.
    x_validation, y_validation : float [v, d], [v]
        Samples that utilities are measured on.
    scoring : str, callable or None
        Name of a scikit-learn scorer, or a callable (estimator, x, y) -> float; None for the estimator's own ``score``.
        Higher must be better.
    unfit : float, "constant" or "raise"
        What coalitions that cannot be fitted are worth.
    min_samples : int
        Fewest members that the estimator can be fitted to and scored with: for instance `n_neighbors` of a
        nearest-neighbours classifier.
    random_state : int
        Takes the place of each ``random_state`` that is None.
    n_jobs : int or None
        Workers, as joblib counts them: -1 for all processors, None for one or what `joblib.parallel_config` says.

    Attributes
    ----------
    n_players : int
        Number of training samples.

    Raises
    ------
    TypeError
        If `estimator` is neither a classifier nor a regressor, a number is none, or features are no real numbers.
    ValueError
        If shapes do not match, a feature, label or target is NaN or infinite, a classifier gets only one class or a
        validation label that never occurs in training, or `unfit` or `scoring` is unknown. When called: if
        `coalitions` is not bool [m, n_players].
    RuntimeError
        When called, naming the coalition: if the estimator fails on it, its score is not finite, or it cannot be
        fitted and `unfit` is ``"raise"``.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.tree import DecisionTreeClassifier
    >>> game = EstimatorGame(DecisionTreeClassifier(), [[0.0], [1.0]], ["a", "b"], [[0.2], [0.9]], ["a", "b"])
    >>> game(np.array([[False, False], [False, True], [True, True]]))
    array([0.5, 0.5, 1. ])
    """

    def __init__(
        self,
        estimator: Any,
        x_train: ArrayLike,
        y_train: ArrayLike,
        x_validation: ArrayLike,
        y_validation: ArrayLike,
        *,
        scoring: str | Callable[[Any, Any, Any], float] | None = None,
        unfit: Unfit = "constant",
        min_samples: int = 1,
        random_state: int = 0,
        n_jobs: int | None = None,
    ) -> None:
        x, xv = features(x_train, x_validation)
        if not isinstance(estimator, BaseEstimator) or not (is_classifier(estimator) or is_regressor(estimator)):
            raise TypeError(f"estimator must be a scikit-learn classifier or regressor, got {type(estimator).__name__}")
        if is_classifier(estimator):
            codes, validation_codes, classes = class_codes(y_train, y_validation, len(x), len(xv))
            y, yv = classes[codes], classes[validation_codes]
        else:
            (y, yv), classes = real_targets(y_train, y_validation, len(x), len(xv)), None
        if unfit not in ("constant", "raise") and (
            isinstance(unfit, bool) or not isinstance(unfit, Real) or not np.isfinite(unfit)
        ):
            raise ValueError(f"unfit must be 'constant', 'raise' or a finite number, got {unfit!r}")
        self.n_players = len(x)
        self.n_jobs = n_jobs
        self._learner = _Learner(
            estimator=_without_chance(estimator, whole_number("random_state", random_state, minimum=0)),
            score=check_scoring(estimator, scoring),
            own_score=scoring is None,
            classes=classes,
            x=x,
            y=y,
            x_validation=xv,
            y_validation=yv,
            unfit=unfit if isinstance(unfit, str) else float(unfit),
            min_samples=whole_number("min_samples", min_samples),
        )

    def __call__(self, coalitions: NDArray[np.bool_], /) -> NDArray[np.float64]:
        """Return the utility, float64 [m], of each coalition of bool [m, n_players]."""
        coalitions = checked_coalitions(coalitions, self.n_players)
        if len(coalitions) == 0:
            return np.empty(0)
        n_batches = min(len(coalitions), _BATCHES_A_WORKER * joblib.effective_n_jobs(self.n_jobs))
        utilities = joblib.Parallel(self.n_jobs)(
            joblib.delayed(_utilities)(self._learner, batch) for batch in np.array_split(coalitions, n_batches)
        )
        return np.concatenate(utilities)

    def identity(self) -> str:
        """Return a digest of all that the utilities follow from, scikit-learn's version included.

        Raises
        ------
        ValueError
            If the estimator or `scoring` cannot be pickled, for instance because of a lambda.
        """
        learner = self._learner
        try:
            recipe = joblib.hash((learner.estimator, learner.score))
        except Exception as error:  # whatever a third party's object raises
            raise ValueError(
                f"an identity needs an estimator and a scoring that can be pickled; give a name or a function of a "
                f"module in place of a lambda ({type(error).__name__}: {error})"
            ) from error
        # labels enter as text: they may be strings
        labels = [repr(array.tolist()) for array in (learner.y, learner.y_validation)]
        parameters = {"recipe": recipe, "labels": labels, "unfit": learner.unfit, "min_samples": learner.min_samples}
        return identity_of(type(self).__name__, parameters, learner.x, learner.x_validation)


@dataclass(frozen=True)
class _Learner:
    """What a worker needs; `classes` is None for a regressor."""

    estimator: Any
    score: Callable[[Any, Any, Any], float]
    own_score: bool
    classes: NDArray[Any] | None
    x: NDArray[np.float64]
    y: NDArray[Any]
    x_validation: NDArray[np.float64]
    y_validation: NDArray[Any]
    unfit: Unfit
    min_samples: int


def _without_chance(estimator: Any, random_state: int) -> Any:
    """Return an unfitted clone, each random_state of which (those of its parts included) is given."""
    fixed = clone(estimator)
    left_open = [
        name
        for name, value in fixed.get_params(deep=True).items()
        if value is None and (name == "random_state" or name.endswith("__random_state"))
    ]
    return fixed.set_params(**dict.fromkeys(left_open, random_state))


def _utilities(learner: _Learner, coalitions: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.array([_utility(learner, coalition) for coalition in coalitions])


def _utility(learner: _Learner, coalition: NDArray[np.bool_]) -> float:
    if _can_be_fitted(learner, coalition):
        fitted = _fitted
    elif learner.unfit == "constant":
        fitted = _constant
    elif learner.unfit == "raise":
        raise RuntimeError(
            f"{described(coalition)} cannot be fitted: it takes at least {learner.min_samples} members"
            f"{'' if learner.classes is None else ' and two classes'}; set unfit to 'constant' or a number"
        )
    else:
        return float(learner.unfit)
    try:
        score = learner.score(fitted(learner, coalition), learner.x_validation, learner.y_validation)
    except Exception as error:  # whatever an estimator raises, the user has to know on what
        raise RuntimeError(
            f"{learner.estimator} failed on {described(coalition)}: {type(error).__name__}: {error}; if it needs "
            f"more members, raise min_samples={learner.min_samples}"
        ) from error
    if not isinstance(score, Real) or not np.isfinite(score):
        raise RuntimeError(
            f"a score must be a finite number, got {score!r} of {learner.estimator} on {described(coalition)}"
        )
    return float(score)


def _can_be_fitted(learner: _Learner, coalition: NDArray[np.bool_]) -> bool:
    y = learner.y[coalition]
    return len(y) >= learner.min_samples and (learner.classes is None or len(np.unique(y)) > 1)


def _fitted(learner: _Learner, coalition: NDArray[np.bool_]) -> Any:
    fitted = clone(learner.estimator).fit(learner.x[coalition], learner.y[coalition])
    if learner.own_score or learner.classes is None or np.array_equal(fitted.classes_, learner.classes):
        return fitted
    return _OfAllClasses(fitted, learner.classes)


def _constant(learner: _Learner, coalition: NDArray[np.bool_]) -> Any:
    y = learner.y[coalition]
    if learner.classes is not None:
        one_of_each = np.concatenate([learner.classes, y])
        return DummyClassifier(strategy="prior").fit(np.zeros((len(one_of_each), 1)), one_of_each)
    mean = y.mean() if len(y) else 0.0
    return DummyRegressor(strategy="constant", constant=mean).fit(learner.x, learner.y)


class _OfAllClasses(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A classifier fitted to some of the classes, as one of all classes: the others have probability 0."""

    def __init__(self, fitted: Any, classes: NDArray[Any]) -> None:
        self.fitted = fitted
        self.classes = classes
        self.classes_ = classes

    def predict(self, x: NDArray[np.float64]) -> NDArray[Any]:
        """Return the label, [v], of each sample."""
        labels: NDArray[Any] = self.fitted.predict(x)
        return labels

    def predict_proba(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return probabilities, [v, K]."""
        probabilities = np.zeros((len(x), len(self.classes)))
        probabilities[:, np.searchsorted(self.classes, self.fitted.classes_)] = self.fitted.predict_proba(x)
        return probabilities
