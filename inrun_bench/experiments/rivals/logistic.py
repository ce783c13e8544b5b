"""Utilities of logistic regressions against pyDVL: the same data, model, estimator and number of evaluations.

The model is scikit-learn's ``LogisticRegression`` (C = 1) on features with a constant column and no other intercept,
judged by its accuracy; :class:`tasks.learners.LogisticGame` fits the same. Both libraries follow permutations, pyDVL on
all cores; it does not fit coalitions of one class, and scores them 0, where ours have a utility as all others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import joblib
import numpy as np

import tasks
from baselines import permutation_shapley
from inrun_bench.experiments.rivals.turns import compare
from inrun_bench.runs.unit import Row, Unit
from tasks.learners import LogisticGame

__all__ = ["against_pydvl"]

PERMUTATIONS = 40
COMPARED = 200  # coalitions whose utilities are compared one by one


def against_pydvl(unit: Unit) -> list[Row]:
    """Time both libraries in turn, and compare their utilities of random coalitions of two classes."""
    task = tasks.load(unit.task, unit.seed)
    (x_train, y_train), (x_validation, y_validation) = (
        (split.x.double().numpy(), split.y.numpy()) for split in (task.train, task.validation)
    )
    data = (x_train, y_train, x_validation, y_validation)
    game = LogisticGame(*data, utility="accuracy")
    utility = _pydvl_utility(*data)
    rng = np.random.default_rng(unit.random_seed)
    coalitions = rng.random((COMPARED, task.n_train)) < rng.random((COMPARED, 1))
    coalitions = coalitions[[len(np.unique(y_train[c])) == 2 for c in coalitions]]
    theirs = [_pydvl_evaluate(utility, c) for c in coalitions]
    difference = np.abs(game(coalitions) - theirs)

    def ours() -> object:
        return permutation_shapley(game, n_permutations=PERMUTATIONS, rng=unit.random_seed)

    evaluations = PERMUTATIONS * (task.n_train - 1)
    contenders: dict[str, Callable[[], object]] = {
        "inrun-bench": ours,
        "pydvl": lambda: _pydvl_values(utility),
    }
    for run in contenders.values():
        run()
    return [
        *compare(
            contenders,
            "pydvl",
            repeats=int(unit.settings["repeats"]),
            work={"inrun-bench": evaluations + 2, "pydvl": evaluations},
        ),
        {"metric": "largest_difference", "value": float(difference.max())},
        {"metric": "mean_difference", "value": float(difference.mean())},
    ]


def _pydvl_utility(x_train: Any, y_train: Any, x_validation: Any, y_validation: Any) -> Any:
    from pydvl.valuation import Dataset, ModelUtility, SupervisedScorer
    from sklearn.linear_model import LogisticRegression

    def constant(x: Any) -> Any:
        return np.column_stack([x, np.ones(len(x))])

    scorer = SupervisedScorer("accuracy", Dataset(constant(x_validation), y_validation), default=0.0, range=(0, 1))
    utility = ModelUtility(
        LogisticRegression(fit_intercept=False, max_iter=1000), scorer, catch_errors=True, show_warnings=False
    )
    return utility.with_dataset(Dataset(constant(x_train), y_train))


def _pydvl_evaluate(utility: Any, coalition: Any) -> float:
    from pydvl.valuation.types import Sample

    return float(utility(Sample(None, np.flatnonzero(coalition))))


def _pydvl_values(utility: Any) -> Any:
    from pydvl.valuation import MinUpdates, PermutationSampler, ShapleyValuation

    valuation = ShapleyValuation(utility, PermutationSampler(seed=0), MinUpdates(PERMUTATIONS), progress=False)
    with joblib.parallel_config("loky", n_jobs=joblib.cpu_count()):
        return valuation.fit(utility.training_data).result
