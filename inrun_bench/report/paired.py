"""Differences between methods, paired by seed: what one seed is easier for all of them than another drops out."""

from __future__ import annotations

import pandas as pd

from inrun_bench.report.intervals import mean_interval
from inrun_bench.report.looks import in_order, look
from inrun_bench.report.markdown import markdown
from inrun_bench.runs.unit import REFERENCE

__all__ = ["AGAINST", "paired_differences"]

AGAINST = "inrun-first"
"""The method that others are compared with, seed by seed: the paper's own, named before anything was measured."""


def paired_differences(rows: pd.DataFrame, of: str = "") -> str:
    """Return a table of how much more each method agrees with the reference than :data:`AGAINST` does.

    Parameters
    ----------
    rows : DataFrame
        With columns task, method, seed, metric and value. Tasks of one seed have no intervals, and are left out; so
        are seeds with several rows of one method (judged by two references, say).
    of : str
        What the table is of, ``", recipe adamw,"`` say.

    Returns
    -------
    str
        In Markdown; empty where no task has two seeds of both methods.
    """
    spearman = rows[(rows["metric"] == "spearman") & (rows["method"] != REFERENCE)]
    once = spearman.groupby(["task", "method", "seed"])["value"].agg(lambda own: own.iloc[0] if len(own) == 1 else None)
    once = once.dropna()  # nothing is paired with rows of several definitions
    base = once[once.index.get_level_values("method") == AGAINST].droplevel("method")
    seeds = base.groupby("task").size()
    names = [task for task in dict.fromkeys(spearman["task"]) if seeds.get(task, 0) > 1]
    if not names:
        return ""
    cells = []
    for method in in_order(m for m in spearman["method"] if m not in (AGAINST, "random")):
        own = once[once.index.get_level_values("method") == method].droplevel("method")
        differences = (own - base).astype(float).dropna()
        cells.append([look(method).markdown, *(_difference(differences, task) for task in names)])
    numbers = sorted({int(seeds[task]) for task in names})
    return (
        f"**Paired differences**{of} of the Spearman correlation with the reference to that of "
        f"{look(AGAINST).markdown}, on the same {' or '.join(map(str, numbers))} seeds [95 % confidence interval]; in "
        f"brackets, on how many of them it is larger.\n\n{markdown(cells, ['method', *names])}"
    )


def _difference(differences: pd.Series, task: str) -> str:
    own = differences[differences.index.get_level_values("task") == task]
    if own.empty:
        return ""
    mean, low, high, n = mean_interval(own)
    interval = f" [{low:+.3f}, {high:+.3f}]" if n > 1 else ""
    return f"{mean:+.3f}{interval} ({int((own > 0).sum())} of {n})"
