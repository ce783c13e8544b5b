"""One coalition's utility: the score of a scikit-learn estimator fitted to its members; what workers do.

Importing this module must not import torch: a worker would spend more time on that than on a hundred small fits.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.utils import _safe_indexing
from sklearn.utils.metaestimators import available_if

from baselines.game import described
from tasks.learners.shared_generators import draws_from, states

__all__ = ["Labels", "Learner", "Unfit", "can_be_fitted", "utilities"]

Unfit = float | Literal["constant", "raise"]

_REMEDY = (
    "give each source of chance a seed: random_state to estimators made inside of functions, "
    "np.random.default_rng(seed) in place of np.random"
)
_ROUNDING = 1e-6  # sums over threads differ from fit to fit, by far less than this


@dataclass(frozen=True)
class Labels:
    """The labels of a classifier, by output; there is one output unless `y` has columns."""

    codes: NDArray[np.int64]  # [n, outputs]: number of each training sample's class
    classes: list[NDArray[Any]]  # [outputs][K]: sorted
    needed: list[int]  # [outputs]: fewest classes that the estimator can be fitted to
    relabel: bool  # whether the estimator gets numbers 0..k-1 of the classes at hand in place of labels


@dataclass(frozen=True)
class Learner:
    """All that the utilities follow from; `labels` belong to a classifier, `targets` to a regressor."""

    estimator: Any
    score: Callable[[Any, Any, Any], float]
    own_score: bool
    x: Any
    y: Any
    x_validation: Any
    y_validation: Any
    validation_rows: NDArray[np.intp]
    labels: Labels | None
    targets: NDArray[np.float64] | None
    unfit: Unfit
    min_samples: int


def utilities(learner: Learner, coalitions: NDArray[np.bool_], repeated: int | None) -> NDArray[np.float64]:
    """Return the utility, float64 [m], of each coalition of bool [m, n].

    Coalition number `repeated` is evaluated twice; a RuntimeError tells of one that is not worth the same again, and of
    any that generators which everyone shares have a part in.
    """
    values = np.empty(len(coalitions))
    for number, coalition in enumerate(coalitions):
        before = states()
        model, values[number] = _evaluated(learner, coalition)
        _refuse_shared_generators(learner, coalition, before)
        if number == repeated:
            _refuse_chance(learner, coalition, model, values[number])
    return values


def can_be_fitted(learner: Learner, coalition: NDArray[np.bool_]) -> bool:
    """Return whether a coalition, bool [n], has the members and classes that the estimator is fitted to."""
    if np.count_nonzero(coalition) < learner.min_samples:
        return False
    if learner.labels is None:
        return True
    outputs = zip(learner.labels.codes[coalition].T, learner.labels.needed, strict=True)
    return all(len(np.unique(codes)) >= needed for codes, needed in outputs)


def _evaluated(learner: Learner, coalition: NDArray[np.bool_]) -> tuple[Any, float]:
    """Return the model, None if there is none, and the utility."""
    if can_be_fitted(learner, coalition):
        model_of = _fitted
    elif learner.unfit == "constant":
        model_of = _constant
    elif learner.unfit == "raise":
        needed = "" if learner.labels is None else f" and {max(learner.labels.needed)} classes"
        raise RuntimeError(
            f"{described(coalition)} cannot be fitted: it takes at least {learner.min_samples} members{needed}; set "
            "unfit to 'constant' or a number"
        )
    else:
        return None, float(learner.unfit)
    try:
        model = model_of(learner, np.flatnonzero(coalition))
        score = learner.score(model, *_validation_samples(learner))
    except Exception as error:  # whatever an estimator raises, the user has to know on what
        raise RuntimeError(
            f"{learner.estimator} failed on {described(coalition)}: {type(error).__name__}: {error}; if it needs more "
            f"members or classes, raise min_samples={learner.min_samples} or min_classes"
        ) from error
    if not isinstance(score, Real) or not np.isfinite(score):
        raise RuntimeError(
            f"a score must be a finite number, got {score!r} of {learner.estimator} on {described(coalition)}"
        )
    return model, float(score)


def _refuse_shared_generators(learner: Learner, coalition: NDArray[np.bool_], before: dict[str, bytes]) -> None:
    """Refuse an estimator or scorer that has drawn from a shared generator that it has not seeded itself."""
    drawn = draws_from(before, lambda: _evaluated(learner, coalition))
    if drawn:
        raise RuntimeError(
            f"{learner.estimator} or its scorer draws from {' and '.join(drawn)}, whose state is not its own, with "
            f"{described(coalition)}; a coalition has one utility, so {_REMEDY}"
        )


def _refuse_chance(learner: Learner, coalition: NDArray[np.bool_], model: Any, utility: float) -> None:
    """Refuse an estimator that is another one when it is fitted again, even where that leaves the utility as it was."""
    again, utility_again = _evaluated(learner, coalition)
    answers = zip(_answers(model, learner), _answers(again, learner), strict=True)
    if not (_equal(utility, utility_again) and all(_equal(*pair) for pair in answers)):
        raise RuntimeError(
            f"{learner.estimator} predicts something else when it is fitted again to {described(coalition)}, worth "
            f"{utility} and then {utility_again}; a coalition has one utility, so {_REMEDY}"
        )


def _answers(model: Any, learner: Learner) -> list[Any]:
    """Return what `model` says of the validation samples: predictions, and probabilities, which part two models first.

    The probabilities of several outputs are a list of arrays.
    """
    answers = [model.predict(_validation_samples(learner)[0])]
    if hasattr(model, "predict_proba"):
        probabilities = model.predict_proba(_validation_samples(learner)[0])
        answers += probabilities if isinstance(probabilities, list) else [probabilities]
    return answers


def _equal(first: Any, second: Any) -> bool:
    first, second = (np.asarray(each.toarray() if issparse(each) else each) for each in (first, second))
    if first.dtype.kind != "f" or first.shape != second.shape:
        return np.array_equal(first, second)
    scale = np.abs(np.nan_to_num(first)).max(initial=0.0)
    return np.allclose(first, second, rtol=0.0, atol=_ROUNDING * scale, equal_nan=True)


def _rows(data: Any, rows: NDArray[np.intp]) -> Any:
    # picking copies arrays but not the objects in them, and an estimator may change whatever it is handed
    return deepcopy(_safe_indexing(data, rows))


def _validation_samples(learner: Learner) -> tuple[Any, Any]:
    return _rows(learner.x_validation, learner.validation_rows), _rows(learner.y_validation, learner.validation_rows)


def _fitted(learner: Learner, members: NDArray[np.intp]) -> Any:
    estimator, x, labels = clone(learner.estimator), _rows(learner.x, members), learner.labels
    if labels is not None and labels.relabel:
        present, y = np.unique(labels.codes[members, 0], return_inverse=True)
        return _OfAllClasses(estimator.fit(x, y), labels.classes, [present], relabelled=True)
    fitted = estimator.fit(x, _rows(learner.y, members))
    seen = getattr(fitted, "classes_", None)
    if labels is None or learner.own_score or seen is None:
        return fitted
    of_outputs = seen if isinstance(seen, list) else [seen]
    if len(of_outputs) != len(labels.classes) or all(map(np.array_equal, of_outputs, labels.classes)):
        return fitted
    return _OfAllClasses(fitted, labels.classes, list(map(np.searchsorted, labels.classes, of_outputs)))


def _constant(learner: Learner, members: NDArray[np.intp]) -> Any:
    if learner.labels is not None:
        model = DummyClassifier(strategy="prior").fit(np.zeros((len(learner.labels.codes), 1)), learner.y)
        counts = [
            1 + np.bincount(codes, minlength=len(classes))
            for codes, classes in zip(learner.labels.codes[members].T, learner.labels.classes, strict=True)
        ]
        shares = [count / count.sum() for count in counts]
        model.class_prior_ = shares if len(shares) > 1 else shares[0]
        return model
    assert learner.targets is not None
    targets = learner.targets[members]
    mean = targets.mean(axis=0) if len(targets) else np.zeros(targets.shape[1:])
    return DummyRegressor(strategy="constant", constant=mean).fit(np.zeros((1, 1)), mean[None])


class _OfAllClasses(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A classifier fitted to some of the classes, as one of all classes: the others have probability 0.

    Parameters
    ----------
    fitted : classifier
        What was fitted.
    classes : list of arrays [K]
        All classes of each output.
    present : list of int arrays [k]
        Numbers of those that `fitted` knows.
    relabelled : bool
        Whether `fitted` knows them as 0..k-1.
    """

    def __init__(
        self,
        fitted: Any,
        classes: list[NDArray[Any]],
        present: list[NDArray[np.intp]],
        *,
        relabelled: bool = False,
    ) -> None:
        self.fitted = fitted
        self.classes = classes
        self.present = present
        self.relabelled = relabelled
        self.classes_ = classes if len(classes) > 1 else classes[0]

    def predict(self, x: Any) -> Any:
        """Return labels, [v] or [v, outputs]."""
        labels = self.fitted.predict(x)
        return self.classes[0][self.present[0][labels]] if self.relabelled else labels

    @available_if(lambda self: hasattr(self.fitted, "predict_proba"))  # type: ignore[untyped-decorator]
    def predict_proba(self, x: Any) -> Any:
        """Return probabilities, [v, K] or a list of them, one an output."""
        probabilities = self.fitted.predict_proba(x)
        if len(self.classes) == 1:
            return self._of_all(probabilities, 0)
        return [self._of_all(of_output, output) for output, of_output in enumerate(probabilities)]

    def _of_all(self, probabilities: NDArray[np.float64], output: int) -> NDArray[np.float64]:
        of_all = np.zeros((len(probabilities), len(self.classes[output])))
        of_all[:, self.present[output]] = probabilities
        return of_all

    def _lacks_none_and_decides(self) -> bool:
        complete = all(len(some) == len(of_all) for some, of_all in zip(self.present, self.classes, strict=True))
        return complete and hasattr(self.fitted, "decision_function")

    @available_if(_lacks_none_and_decides)  # type: ignore[untyped-decorator]
    def decision_function(self, x: Any) -> Any:
        """Return what the fitted one does, [v] or [v, K]; a class that is lacking has no value that says so."""
        return self.fitted.decision_function(x)
