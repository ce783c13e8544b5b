"""Values that see the end of the run: the final utility, differentiated through the whole training.

>>> import tasks
>>> from inrun_bench.adjoint import few_run_shapley
>>> few_run_shapley(tasks.load("iris-logreg", seed=0), points=4).values.shape
(16,)
"""

from inrun_bench.adjoint.checkpoints import Storage
from inrun_bench.adjoint.coalitions import coalition_gradient_shapley
from inrun_bench.adjoint.control_variate import control_variate_shapley
from inrun_bench.adjoint.diagonal import few_run_shapley, unrolled_influence
from inrun_bench.adjoint.sweep import Differentiated, DivergedRunError, differentiate

__all__ = [
    "Differentiated",
    "DivergedRunError",
    "Storage",
    "coalition_gradient_shapley",
    "control_variate_shapley",
    "differentiate",
    "few_run_shapley",
    "unrolled_influence",
]
