"""Rivals: the same values from another library, in the same process, taking turns.

KNN-Shapley of 4000 MNIST digits judged by 1000, k = 5, against pyDVL, each on all cores. Values differ only where
distances tie, as those of whole-numbered pixels do now and then: there the order of neighbours is anyone's choice.

It needs ``pip install inrun-bench[rivals]`` and does not run unless it is named.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import joblib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

import tasks
from baselines import knn_shapley
from inrun_bench.plan import Plan
from inrun_bench.unit import Row, Unit

SUMMARY = "speed of knn_shapley against pyDVL on 4000 + 1000 MNIST digits (needs pydvl)"
EXCLUSIVE = True
DEFAULT = False

K = 5
N_TRAIN = 4000


def units(plan: Plan) -> list[Unit]:
    """One unit."""
    return [Unit("rivals", "mnist-mlp", "knn", plan.seeds[0], {"repeats": 5, "k": K, "n_train": N_TRAIN})]


def measure(unit: Unit, _needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Time both libraries in turn and compare their values."""
    x, y = tasks.CATALOG[unit.task].dataset()
    order = np.random.default_rng(unit.random_seed).permutation(len(x))
    x_train, x_test = np.split(x[order] / 255.0, [N_TRAIN])
    y_train, y_test = np.split(y[order], [N_TRAIN])
    contenders: dict[str, Callable[[], NDArray[np.float64]]] = {
        "knn": lambda: knn_shapley(x_train, y_train, x_test, y_test, k=K, n_jobs=-1).values,
        "pydvl-knn": lambda: _pydvl(x_train, y_train, x_test, y_test),
    }
    values = {name: run() for name, run in contenders.items()}  # warms up, too
    rounds = [{name: _seconds(run) for name, run in contenders.items()} for _ in range(int(unit.settings["repeats"]))]
    rows: list[Row] = [
        {"method": name, "metric": "seconds", "value": statistics.median(taken[name] for taken in rounds)}
        for name in contenders
    ]
    ratio = statistics.median(taken["pydvl-knn"] / taken["knn"] for taken in rounds)
    difference = float(np.abs(values["knn"] - values["pydvl-knn"]).max() / np.abs(values["knn"]).max())
    return [
        *rows,
        {"metric": "speedup", "value": ratio},
        {"metric": "largest_relative_difference", "value": difference},
    ]


def _pydvl(*data: NDArray[Any]) -> NDArray[np.float64]:
    from pydvl.valuation import Dataset, KNNShapleyValuation
    from sklearn.neighbors import KNeighborsClassifier

    x_train, y_train, x_test, y_test = data
    valuation = KNNShapleyValuation(
        model=KNeighborsClassifier(n_neighbors=K), test_data=Dataset(x_test, y_test), progress=False
    )
    with joblib.parallel_config(n_jobs=joblib.cpu_count()):
        result = valuation.fit(Dataset(x_train, y_train)).result
    values: NDArray[np.float64] = np.empty(N_TRAIN)
    values[result.indices] = result.values
    return values


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
