"""In-Run Data Shapley, and the experiments that judge it against retraining.

>>> from inrun_bench import InRunShapley, few_run_shapley
>>> from inrun_bench import agreement, detection, linear_datamodelling_score, removal_curve  # how good values are
>>> from inrun_bench import benchmark  # all of it, on tasks and methods of your own, too
"""

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

# Their types stand in __init__.pyi: an import here, be it for a type checker alone, would make all that it needs part
# of the code behind every row, and those of KNN-Shapley out of date with each change of the engine.
__getattr__ = lazy_names(
    __name__,
    {
        "InRunShapley": "attribution",
        "Method": "methods",
        "RemovalCurve": "metrics",
        "Results": "benchmarks",
        "agreement": "metrics",
        "benchmark": "benchmarks",
        "coalition_gradient_shapley": "adjoint",
        "control_variate_shapley": "adjoint",
        "detection": "metrics",
        "few_run_shapley": "adjoint",
        "linear_datamodelling_score": "metrics",
        "removal_curve": "metrics",
        "unrolled_influence": "adjoint",
    },
)
