"""Methods of data valuation, as the experiments run them: ``method(task, seed, *, groups, budget, stop) -> Valuation``.

A module here names its methods in ``METHODS``; to add a method is to add one file, or to name a :class:`Method`, or a
plain callable, under the entry-point group ``inrun_bench.methods`` in a package of your own. Values are higher for
better samples; `evaluations` of the valuation counts trainings, so that costs compare. What of the options a method
takes, it says itself (:attr:`Method.options`).
"""

from tasks.lazy_names import lazy_names

__all__ = ["METHODS", "Method", "method_names", "method_of", "valued"]

# Their types stand in __init__.pyi: what is imported here is part of the code behind every method's rows.
__getattr__ = lazy_names(
    __name__,
    {
        "METHODS": "registry",
        "Method": "method",
        "method_names": "registry",
        "method_of": "registry",
        "valued": "registry",
    },
)
