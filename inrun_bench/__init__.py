"""In-Run Data Shapley, and the experiments that judge it against retraining.

>>> from inrun_bench import InRunShapley, few_run_shapley
"""

from inrun_bench.adjoint import (
    coalition_gradient_shapley,
    control_variate_shapley,
    few_run_shapley,
    unrolled_influence,
)
from inrun_bench.attribution import InRunShapley
from inrun_bench.version import __version__

__all__ = [
    "InRunShapley",
    "__version__",
    "coalition_gradient_shapley",
    "control_variate_shapley",
    "few_run_shapley",
    "unrolled_influence",
]
