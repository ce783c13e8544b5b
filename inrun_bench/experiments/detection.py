"""Detection: how well low values point at the training samples whose target was made wrong.

These are flipped labels or, in regression, the targets of other samples (:mod:`tasks.data`). AUROC is the chance that
such a sample has a lower value than a clean one (0.5 for random values); average precision is that of a search from the
lowest value upwards (the share of flipped samples for random values).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, roc_auc_score

import tasks
from inrun_bench.experiments.values import read_reference, read_values, reference_blocks, values_unit
from inrun_bench.plan import Plan
from inrun_bench.unit import REFERENCE, Row, Unit

SUMMARY = "AUROC and average precision of low values for wrong labels and targets"
EXCLUSIVE = False
DEFAULT = True


def units(plan: Plan) -> list[Unit]:
    """One unit a method, the reference among them where there is one."""
    found = []
    for task in plan.tasks:
        for seed in plan.seeds:
            blocks = reference_blocks(plan, task, seed)
            if blocks:
                found.append(Unit("detection", task, REFERENCE, seed, needs=blocks))
            found += [
                Unit("detection", task, method, seed, needs=(values_unit(task, method, seed),))
                for method in plan.methods
            ]
    return found


def measure(unit: Unit, needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Score one method's values as detectors of the task's wrong targets."""
    task = tasks.load(unit.task, unit.seed)
    flipped = np.zeros(task.n_train, dtype=bool)
    flipped[task.flipped] = True
    if unit.method == REFERENCE:
        values = read_reference(needs.values()).mean(axis=0)
    else:
        values = read_values(needs[unit.needs[0]])
    return [
        {"metric": "auroc", "value": float(roc_auc_score(flipped, -values))},
        {"metric": "average_precision", "value": float(average_precision_score(flipped, -values))},
        {"metric": "share_flipped", "value": float(flipped.mean())},
    ]
