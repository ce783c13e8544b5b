"""Rivals: the same work by another library, or by a plain loop, in the same process, taking turns.

- ``knn``: KNN-Shapley of 4000 MNIST digits judged by 1000, against pyDVL;
- ``knn-large``: KNN-Shapley of 60 000 points judged by 10 000, within 8 GiB of memory (nobody to compare with);
- ``logistic``: utilities of logistic regressions, 100 samples of breast cancer, against pyDVL;
- ``training-loop``: trainings of digits-mlp, against one model at a time;
- ``estimators``: what the estimators themselves cost, on a game that returns at once.

It needs ``pip install inrun-bench[rivals]`` and does not run unless it is named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd

from inrun_bench.experiments.rivals import logistic, neighbours, overhead_of_estimators, training_loop
from inrun_bench.experiments.rivals.turns import threads
from inrun_bench.report.markdown import markdown
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.unit import Row, Unit

SUMMARY = "speed against pyDVL and against a training loop, and what estimators cost themselves (needs pydvl)"
EXCLUSIVE = True
DEFAULT = False

REPEATS = 5

_MEASURES: dict[str, Callable[[Unit], list[Row]]] = {
    "knn": neighbours.against_pydvl,
    "knn-large": neighbours.large,
    "logistic": logistic.against_pydvl,
    "training-loop": training_loop.against_batches,
    "estimators": overhead_of_estimators.overhead,
}

_TASKS = {"logistic": "breast-cancer-logreg", "training-loop": "digits-mlp", "estimators": "none"}


def units(plan: Plan) -> list[Unit]:
    """One unit a comparison."""
    return [
        Unit("rivals", _TASKS.get(what, "mnist-mlp"), what, plan.seeds[0], {"repeats": REPEATS}) for what in _MEASURES
    ]


def measure(unit: Unit, _needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Run one comparison, on all cores."""
    with threads():
        return _MEASURES[unit.method](unit)


def table(rows: pd.DataFrame) -> str:
    """Return all comparisons."""
    if rows.empty:
        return ""
    cells = [
        [
            str(row.method),
            "" if pd.isna(row.players) else f"{row.players:.0f}",
            "" if pd.isna(row.contender) else row.contender,
            row.metric.replace("_", " "),
            f"{row.value:.3g}",
        ]
        for row in rows.sort_values(["method", "players"], kind="stable").itertuples()
    ]
    return (
        "**Rivals** (medians of turns on the same cores): `knn_shapley` of 4000 MNIST digits judged by 1000, k = 5, "
        "against pyDVL 0.10; the same of 60 000 x 784 points judged by 10 000; utilities of logistic regressions on "
        "100 samples of breast cancer against pyDVL; trainings of digits-mlp against a loop over models; and what an "
        "estimator costs itself, in microseconds a coalition and player.\n\n"
        f"{markdown(cells, ['comparison', 'players', 'contender', 'metric', 'value'])}"
    )
