r"""Any scikit-learn estimator on any coalition of training samples, one fit a coalition, in parallel through joblib.

The utility of a coalition S is the score on the validation samples of a clone of the estimator fitted to S alone: the
estimator's own ``score`` (accuracy or R squared), or that of a scikit-learn scorer, such as ``"neg_log_loss"``.

**Samples.** The game picks rows, as scikit-learn's cross-validation does, and leaves the rest to the estimator: arrays
of any type, lists of texts, sparse matrices, data frames with columns by name, categories and gaps; labels that are
numbers or strings; one output or several, multilabel too. What an estimator refuses is an error that names the
coalition. Each fit and each score gets copies of its own, so that an estimator may change what it is handed, as a
``StandardScaler(copy=False)`` does.

**Coalitions that cannot be fitted** are decided by what they contain, not by how the estimator fails: those with fewer
than `min_samples` members, and for a classifier those with fewer than `min_classes` classes, in any output. The
estimator is not asked; `unfit` says what they are worth:

- ``"constant"``: what a model that knows nothing of the features is worth. A classifier's predicts the shares of the
  classes in S with one pseudo-count for each class of `y_train` (Laplace's rule of succession), so the empty coalition
  predicts all classes with the same probability, and of the most probable ones the first. A regressor's predicts the
  mean of S, and 0 for the empty coalition. Neither looks at the validation samples, nor at targets outside S.
- a number: worth that much.
- ``"raise"``: refused.

Whatever fails for another reason, and a score that is not finite, is an error that names the coalition: a utility is
never made up silently.

**Classes that S lacks.** A classifier fitted to some of the classes gives no probabilities for the others; a scorer
sees them as 0. A classifier that needs all of them (``GaussianNB(priors=...)``) takes ``min_classes="all"``; one that
can be fitted to a single class, as trees and neighbours can, ``min_classes=1``. One that demands labels 0..k-1, such as
that of xgboost, takes ``relabel=True``: it is fitted to the numbers of the classes that S has, in sorted order, and its
predictions are translated back; its own ``score`` is accuracy then.

**Randomness.** A game has one utility a coalition, so every ``random_state`` that the estimator leaves at None, its
parts' included, is set to the game's `random_state`. Utilities thus depend neither on the number of workers nor on
which coalitions are asked for together. Whatever draws from ``np.random``, ``random`` or torch's generator is refused
with the coalition that it does so for, unless it seeds that generator itself: their states are compared before and
after each coalition. Generators of an estimator's own, which nobody sees, are looked for in the first call: the
smallest coalition that can be fitted is evaluated twice in a row, and if the utility or a prediction differs, the game
is refused. A difference that only others would show is not found.

**Variance**: none beyond that of the estimator's own randomness, which is fixed. **Cost**: one fit and one score of the
estimator a coalition, and one of each for the first call. Coalitions travel to the workers in batches, several a
worker; inside of ``joblib.parallel_config(backend="dask")`` or ``"ray"`` the workers are those of a cluster. Workers of
joblib's own take a few seconds to start, in which they import scikit-learn; they stay for later calls.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from numbers import Real
from typing import Any, Literal

import joblib
import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone, is_classifier, is_regressor
from sklearn.metrics import check_scoring
from sklearn.utils import indexable
from sklearn.utils.parallel import Parallel, delayed

from baselines.arguments import whole_number
from tasks.code_identity import code_identity
from tasks.learners.fitting import Labels, Learner, Unfit, can_be_fitted, utilities
from tasks.learners.samples import checked_coalitions, class_codes_of_outputs, real_targets, sample_count

__all__ = ["EstimatorGame"]

_BATCHES_A_WORKER = 4  # fits take unequal times: the last batches should not keep the others waiting


class EstimatorGame:
    """The game of a scikit-learn estimator (see the module's docstring).

    Parameters
    ----------
    estimator : scikit-learn classifier or regressor
        Cloned, never fitted itself; a pipeline, too.
    x_train : [n] or [n, ...]
        Training samples, the players: an array, data frame, sparse matrix or list, whatever the estimator takes.
    y_train : [n] or [n, outputs]
        Their labels, numbers or strings of two classes or more; of a regressor real numbers.
    x_validation, y_validation : [v] or [v, ...], [v] or [v, outputs]
        Samples that utilities are measured on.
    scoring : str, callable or None
        Name of a scikit-learn scorer, or a callable (estimator, x, y) -> float; None for the estimator's own ``score``.
        Higher must be better.
    unfit : float, "constant" or "raise"
        What coalitions that cannot be fitted are worth.
    min_samples : int
        Fewest members that the estimator can be fitted to and scored with: for instance `n_neighbors` of a
        nearest-neighbours classifier.
    min_classes : int or "all"
        Fewest classes that a classifier can be fitted to, in each output; "all" for those of `y_train`.
    relabel : bool
        Whether a classifier is fitted to numbers 0..k-1 in place of the labels of the k classes in a coalition.
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
        If `estimator` is neither a classifier nor a regressor, samples have no rows, a number is none, labels cannot be
        sorted, or targets are no real numbers.
    ValueError
        If numbers of samples or outputs do not match, a label is missing, a target is NaN or infinite, a classifier
        gets only one class or a validation label that never occurs in training, an argument is out of range, or one for
        classifiers comes with a regressor. When called: if `coalitions` is not bool [m, n_players].
    RuntimeError
        When called, naming the coalition: if the estimator fails on it, its score is not finite, it cannot be fitted
        and `unfit` is ``"raise"``, the estimator or the scorer draws from generators that everyone shares, or it is
        worth something else when it is evaluated again.

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
        x_train: Any,
        y_train: Any,
        x_validation: Any,
        y_validation: Any,
        *,
        scoring: str | Callable[[Any, Any, Any], float] | None = None,
        unfit: Unfit = "constant",
        min_samples: int = 1,
        min_classes: int | Literal["all"] = 2,
        relabel: bool = False,
        random_state: int = 0,
        n_jobs: int | None = None,
    ) -> None:
        if not isinstance(estimator, BaseEstimator) or not (is_classifier(estimator) or is_regressor(estimator)):
            raise TypeError(f"estimator must be a scikit-learn classifier or regressor, got {type(estimator).__name__}")
        if unfit not in ("constant", "raise") and (
            isinstance(unfit, bool) or not isinstance(unfit, Real) or not np.isfinite(unfit)
        ):
            raise ValueError(f"unfit must be 'constant', 'raise' or a finite number, got {unfit!r}")
        if scoring is not None and not isinstance(scoring, str) and not callable(scoring):
            raise TypeError(
                "scoring must be the name of a scorer, a callable (estimator, x, y) -> float or None, "
                f"got {scoring!r} ({type(scoring).__name__})"
            )
        if n_jobs is not None and whole_number("n_jobs", n_jobs, minimum=-(2**31)) == 0:
            raise ValueError("n_jobs must be a positive number, a negative one as joblib counts, or None, got 0")
        n, v = sample_count("x_train", x_train), sample_count("x_validation", x_validation)
        if whole_number("min_samples", min_samples) > n:
            raise ValueError(f"min_samples must be at most the number of training samples, {n}, got {min_samples}")
        labels = targets = None
        if is_classifier(estimator):
            labels = _labels(y_train, y_validation, n, v, min_classes, relabel)
        elif relabel or min_classes != 2:
            raise ValueError(f"relabel and min_classes are for classifiers, {type(estimator).__name__} is a regressor")
        else:
            targets, _ = real_targets(y_train, y_validation, n, v, several=True)
        estimator = _without_chance(estimator, whole_number("random_state", random_state, minimum=0))
        samples = (*indexable(x_train, y_train), *indexable(x_validation, y_validation))
        # copies, of the scorer too, so that whoever changes the originals does not change the game
        x, y, x_validation, y_validation = map(deepcopy, samples)
        self.n_players = n
        self.n_jobs = n_jobs
        self._is_repeatable = False  # not known yet
        self._learner = Learner(
            estimator=estimator,
            score=deepcopy(check_scoring(estimator, scoring)),
            own_score=scoring is None,
            x=x,
            y=y,
            x_validation=x_validation,
            y_validation=y_validation,
            validation_rows=np.arange(v),
            labels=labels,
            targets=targets,
            unfit=unfit if isinstance(unfit, str) else float(unfit),
            min_samples=whole_number("min_samples", min_samples),
        )

    def __call__(self, coalitions: NDArray[np.bool_], /) -> NDArray[np.float64]:
        """Return the utility, float64 [m], of each coalition of bool [m, n_players]."""
        coalitions = checked_coalitions(coalitions, self.n_players)
        if len(coalitions) == 0:
            return np.empty(0)
        # in the worker that evaluates it: chance is looked for where utilities come from, and nobody waits for it
        repeated = None if self._is_repeatable else self._easiest_to_fit(coalitions)
        n_batches = min(len(coalitions), _BATCHES_A_WORKER * joblib.effective_n_jobs(self.n_jobs))
        batches = np.array_split(np.arange(len(coalitions)), n_batches)
        with _torch_left_at_home():
            values = Parallel(self.n_jobs)(
                delayed(utilities)(self._learner, coalitions[batch], repeated - batch[0] if repeated in batch else None)
                for batch in batches
            )
        self._is_repeatable = self._is_repeatable or repeated is not None
        return np.concatenate(values)

    def identity(self) -> str:
        """Return a digest of all that the utilities follow from: data, parameters and code.

        The code is that of estimators and scorers of your own and what they import, and the versions of whatever is
        installed; see `tasks.code_identity`.

        Raises
        ------
        CodeIdentityError
            A ValueError, if the estimator, `scoring` or the samples cannot be pickled, or the source of their code is
            not to be had, for instance that of a notebook's cell.
        """
        return code_identity(self._learner)

    def _easiest_to_fit(self, coalitions: NDArray[np.bool_]) -> int | None:
        """Return the number of the smallest coalition that can be fitted: chance shows most where data decide least."""
        by_size = np.argsort(coalitions.sum(axis=1), kind="stable")
        return next((int(number) for number in by_size if can_be_fitted(self._learner, coalitions[number])), None)


@contextmanager
def _torch_left_at_home() -> Iterator[None]:
    """Keep torch's warning filters from workers: scikit-learn hands them all, and they would have to import torch."""
    with warnings.catch_warnings():
        warnings.filters = [each for each in warnings.filters if not each[2].__module__.startswith("torch.")]
        yield


def _labels(
    y_train: Any, y_validation: Any, n: int, v: int, min_classes: int | Literal["all"], relabel: bool
) -> Labels:
    codes, _, classes = class_codes_of_outputs(y_train, y_validation, n, v)
    if all(len(of_output) < 2 for of_output in classes):
        raise ValueError(f"y_train must have at least two classes, got only {classes[0][0]!r}")
    if relabel and len(classes) > 1:
        raise ValueError(f"relabel must be False where y_train has several outputs, got {len(classes)} of them")
    if not isinstance(relabel, bool | np.bool_):
        raise TypeError(f"relabel must be True or False, got {relabel!r} ({type(relabel).__name__})")
    most = max(len(of_output) for of_output in classes)
    least = None if min_classes == "all" else whole_number("min_classes", min_classes)
    if least is not None and least > most:
        raise ValueError(f"min_classes must be at most the number of classes of y_train, {most}, got {min_classes}")
    needed = [len(of_output) if least is None else min(least, len(of_output)) for of_output in classes]
    return Labels(codes, classes, needed, relabel)


def _without_chance(estimator: Any, random_state: int) -> Any:
    """Return an unfitted clone, each random_state of which (those of its parts included) is given."""
    fixed = clone(estimator)
    left_open = [
        name
        for name, value in fixed.get_params(deep=True).items()
        if value is None and (name == "random_state" or name.endswith("__random_state"))
    ]
    return fixed.set_params(**dict.fromkeys(left_open, random_state))
