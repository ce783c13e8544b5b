"""In-Run Data Shapley, and the experiments that judge it against retraining.

>>> from inrun_bench import InRunShapley, few_run_shapley
>>> from inrun_bench import agreement, detection, linear_datamodelling_score, removal_curve  # how good values are
>>> from inrun_bench import benchmark  # all of it, on tasks and methods of your own, too
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inrun_bench.adjoint import (
    coalition_gradient_shapley,
    control_variate_shapley,
    few_run_shapley,
    unrolled_influence,
)
from inrun_bench.attribution import InRunShapley
from inrun_bench.version import __version__
from tasks.lazy_names import lazy_names

if TYPE_CHECKING:
    from inrun_bench.benchmarks import Results, benchmark
    from inrun_bench.methods import Method
    from inrun_bench.metrics import (
        RemovalCurve,
        agreement,
        detection,
        linear_datamodelling_score,
        removal_curve,
    )

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

__getattr__ = lazy_names(  # which need more than an engine does: scikit-learn, pandas, matplotlib
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
