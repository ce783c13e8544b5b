"""KNN-Shapley against pyDVL, each on all cores, and at a size that must fit into a bounded memory.

k = 5. Values differ only where distances tie, as those of whole-numbered pixels do now and then: there the order of
neighbours is anyone's choice.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray

import tasks
from baselines import knn_shapley
from inrun_bench.experiments.rivals.turns import compare
from inrun_bench.runs.unit import Row, Unit

__all__ = ["against_pydvl", "large"]

K = 5
N_TRAIN = 4000
LARGE = (60_000, 10_000, 784)  # training points, test points, features
LARGE_BYTES = 8 * 2**30


def against_pydvl(unit: Unit) -> list[Row]:
    """Time both libraries on 4000 + 1000 MNIST digits in turn, and compare their values."""
    x, y, *_ = tasks.CATALOG[unit.task].dataset()
    order = np.random.default_rng(unit.random_seed).permutation(len(x))
    x_train, x_test = np.split(x.reshape(len(x), -1)[order] / 255.0, [N_TRAIN])
    y_train, y_test = np.split(y[order], [N_TRAIN])
    contenders: dict[str, Callable[[], NDArray[np.float64]]] = {
        "inrun-bench": lambda: knn_shapley(x_train, y_train, x_test, y_test, k=K, n_jobs=-1).values,
        "pydvl": lambda: _pydvl(x_train, y_train, x_test, y_test),
    }
    ours, theirs = (run() for run in contenders.values())  # warms up, too
    difference = float(np.abs(ours - theirs).max() / np.abs(ours).max())
    return [
        *compare(contenders, "pydvl", repeats=int(unit.settings["repeats"])),
        {"metric": "largest_relative_difference", "value": difference},
    ]


def large(unit: Unit) -> list[Row]:
    """Value 60 000 points by 10 000 in a process that may not have more than 8 GiB."""
    seed = str(unit.random_seed.generate_state(1)[0])
    said = subprocess.run(  # noqa: S603 - this file, in a process whose memory can be bounded
        [sys.executable, "-m", __name__, seed], capture_output=True, text=True, check=True
    )
    return [{"contender": "inrun-bench", **row} for row in json.loads(said.stdout)]


def _value_many(seed: int) -> list[Row]:
    import resource  # not on every system

    n_train, n_test, n_features = LARGE
    resource.setrlimit(resource.RLIMIT_DATA, (LARGE_BYTES, LARGE_BYTES))
    rng = np.random.default_rng(seed)
    x = rng.random((n_train + n_test, n_features))
    y = rng.integers(10, size=n_train + n_test)
    start = time.perf_counter()
    knn_shapley(x[:n_train], y[:n_train], x[n_train:], y[n_train:], k=K, n_jobs=-1)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return [{"metric": "seconds", "value": seconds}, {"metric": "peak_gib", "value": peak}]


def _pydvl(*data: NDArray[Any]) -> NDArray[np.float64]:
    from pydvl.valuation import Dataset, KNNShapleyValuation
    from sklearn.neighbors import KNeighborsClassifier

    x_train, y_train, x_test, y_test = data
    valuation = KNNShapleyValuation(
        model=KNeighborsClassifier(n_neighbors=K), test_data=Dataset(x_test, y_test), progress=False
    )
    with joblib.parallel_config("loky", n_jobs=joblib.cpu_count()):
        result = valuation.fit(Dataset(x_train, y_train)).result
    values: NDArray[np.float64] = np.empty(N_TRAIN)
    values[result.indices] = result.values
    return values


if __name__ == "__main__":
    print(json.dumps(_value_many(int(sys.argv[1]))))
