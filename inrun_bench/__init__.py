"""In-Run Data Shapley, and the experiments that judge it against retraining.

>>> from inrun_bench import InRunShapley
"""

from importlib.metadata import version

from inrun_bench.attribution import InRunShapley

__version__ = version("inrun-bench")
__all__ = ["InRunShapley", "__version__"]
