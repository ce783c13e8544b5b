"""Learners as games: what a model fitted to a coalition of training samples is worth, retrained to the optimum.

Players are training samples; the utility of a coalition is that of the learner fitted to its members alone, judged on
validation samples. Unlike a trajectory game (`tasks.trajectory_game`) there is no recipe: a convex learner has one
optimum, which needs neither initial weights nor a batch order.

================  ============================================  =====================================================
game              learner                                       how
================  ============================================  =====================================================
`LogisticGame`    logistic regression, two classes or more      batched Newton, all coalitions of a chunk at once
`RidgeGame`       ridge regression                              closed form, all coalitions of a chunk at once
`EstimatorGame`   any scikit-learn estimator                    one fit a coalition, in parallel through joblib
================  ============================================  =====================================================

Each is a `baselines.Game`, works on arrays, and has an `identity()` that keys a store of its utilities.
"""

from typing import TYPE_CHECKING

from tasks.lazy_names import lazy_names

if TYPE_CHECKING:
    from tasks.learners.estimator import EstimatorGame
    from tasks.learners.logistic import LogisticGame
    from tasks.learners.ridge import RidgeGame

__all__ = ["EstimatorGame", "LogisticGame", "RidgeGame"]

__getattr__ = lazy_names(__name__, {"EstimatorGame": "estimator", "LogisticGame": "logistic", "RidgeGame": "ridge"})
