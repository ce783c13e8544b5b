"""In-Run Data Shapley for PyTorch: a library of its own, that knows nothing of tasks, experiments or files.

A *probe* (:mod:`~inrun_bench.attribution.probes`) decides the direction q of a step, a *ghost rule*
(:mod:`~inrun_bench.attribution.families`) computes every sample's dot product with it, and the *ledger*
(:mod:`~inrun_bench.attribution.ledger.ledger`) keeps the books. Adding one never touches the others.
"""

from inrun_bench.attribution.engine import InRunShapley
from inrun_bench.attribution.families import ghost_rule, supported_layers
from inrun_bench.attribution.ledger.ledger import Entry, Ledger
from inrun_bench.attribution.ledger.pages import ParquetPages
from inrun_bench.attribution.probes import First, Integrated, Probe, Second, Trapezoid

__all__ = [
    "Entry",
    "First",
    "InRunShapley",
    "Integrated",
    "Ledger",
    "ParquetPages",
    "Probe",
    "Second",
    "Trapezoid",
    "ghost_rule",
    "supported_layers",
]
