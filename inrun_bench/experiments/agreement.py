"""Agreement: how well each method's values agree with the retraining reference.

The noise ceiling says what agreement a perfect method would show, since the reference has Monte Carlo noise of its
own: the two halves of the reference are compared by the same metrics (one half against the other, a lower bound), and
for the correlations the ceiling is ``sqrt(2 r / (1 + r))``, r the split-half correlation (Spearman-Brown prophecy for
the reliability of the whole, square root since only one side is noisy).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from inrun_bench.experiments.values import read_reference, read_values, reference_blocks, values_unit
from inrun_bench.plan import Plan
from inrun_bench.unit import REFERENCE, Row, Unit

SUMMARY = "in-run orders, Monte Carlo, TMC, KNN and random against the retraining reference"
EXCLUSIVE = False
DEFAULT = True

TOP_SHARE = 0.1


def units(plan: Plan) -> list[Unit]:
    """One unit a method, and one for the reference against itself."""
    found = []
    for task in plan.tasks_with_reference:
        for seed in plan.seeds:
            blocks = reference_blocks(plan, task, seed)
            found.append(Unit("agreement", task, REFERENCE, seed, needs=blocks))
            found += [
                Unit("agreement", task, method, seed, needs=(values_unit(task, method, seed), *blocks))
                for method in plan.methods
            ]
    return found


def measure(unit: Unit, needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Compare one method's values, or the reference's halves, with the reference."""
    blocks = read_reference(rows for need, rows in needs.items() if need.method == REFERENCE)
    if unit.method == REFERENCE:
        even, odd = blocks[0::2].mean(axis=0), blocks[1::2].mean(axis=0)
        halves = metrics(even, odd)
        ceilings = {f"{name}_ceiling": ceiling(halves[name]) for name in ("spearman", "pearson")}
        cost = [rows[rows["metric"] == "cost"].iloc[0] for rows in needs.values()]
        seen = {**halves, **ceilings}
    else:
        own = needs[unit.needs[0]]
        seen = metrics(read_values(own), blocks.mean(axis=0))
        cost = [own[own["metric"] == "cost"].iloc[0]]
    evaluations, seconds = (sum(row[column] for row in cost) for column in ("evaluations", "seconds"))
    return [
        {"metric": name, "value": value, "evaluations": int(evaluations), "seconds": float(seconds)}
        for name, value in seen.items()
    ]


def metrics(values: NDArray[np.float64], reference: NDArray[np.float64]) -> dict[str, float]:
    """Return Spearman, Kendall and Pearson correlations and the overlap of the top tenths of two float64 [n]."""
    top = max(1, round(TOP_SHARE * len(reference)))
    best, best_reference = (set(np.argsort(v, kind="stable")[-top:].tolist()) for v in (values, reference))
    constant = np.ptp(values) == 0 or np.ptp(reference) == 0  # no ranks, no correlation
    correlations = {"spearman": stats.spearmanr, "kendall": stats.kendalltau, "pearson": stats.pearsonr}
    return {
        **{
            name: float("nan") if constant else float(correlate(values, reference).statistic)
            for name, correlate in correlations.items()
        },
        "top10_overlap": float("nan") if constant else len(best & best_reference) / top,
    }


def ceiling(split_half: float) -> float:
    """Return the correlation with a reference that a perfect method would show, from that of the reference's halves."""
    r = max(split_half, 0.0)
    return float(np.sqrt(2 * r / (1 + r)))
