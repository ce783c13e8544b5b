"""In-Run Data Shapley, and the experiments that judge it against retraining.

>>> from inrun_bench import InRunShapley, few_run_shapley
>>> from inrun_bench import agreement, detection, linear_datamodelling_score, removal_curve  # how good values are
>>> from inrun_bench import benchmark  # all of it, on tasks and methods of your own, too
"""

from inrun_bench.adjoint import (
    coalition_gradient_shapley,
    control_variate_shapley,
    few_run_shapley,
    unrolled_influence,
)
from inrun_bench.attribution import InRunShapley
from inrun_bench.version import __version__
from tasks.lazy_names import lazy_names

__all__ = [
    "InRunShapley",
    "Method",
    "RemovalCurve",
    "Results",
    "__version__",
    "agreement",
    "benchmark",
    "coalition_gradient_shapley",
    "control_variate_shapley",
    "detection",
    "few_run_shapley",
    "linear_datamodelling_score",
    "removal_curve",
    "unrolled_influence",
]

# Names that need more than an engine does (scikit-learn, pandas, matplotlib). Their types stand in __init__.pyi: an
# import here, be it for a type checker alone, would make all that they need part of every method's code.
__getattr__ = lazy_names(
    __name__,
    {
        "Method": "methods",
        "RemovalCurve": "metrics",
        "Results": "benchmarks",
        "agreement": "metrics",
        "benchmark": "benchmarks",
        "detection": "metrics",
        "linear_datamodelling_score": "metrics",
        "removal_curve": "metrics",
    },
)
