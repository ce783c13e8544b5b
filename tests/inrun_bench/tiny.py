"""A plan that takes seconds, and ways to look at what it left behind."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from inrun_bench.experiments import EXPERIMENTS, estimators, fidelity, overhead, removal, retraining, scale
from inrun_bench.runs import runner, stored_values
from inrun_bench.runs.plan import Plan, Profile
from inrun_bench.runs.store import Store
from inrun_bench.runs.unit import Unit

TASK = "breast-cancer-logreg"
METHODS = ("random", "inrun-first", "inrun-integrated", "knn")
PROFILE = Profile(seeds=(0, 1))
KNOBS = [  # of each experiment that has any
    (
        fidelity.KNOBS,
        fidelity.Knobs(
            {"default": fidelity.Grid((1.0, 5.0, 20.0), (4, 10), coalitions=40, steps=20, validation=32)},
            stages=(0.0, 0.5),
        ),
    ),
    (removal.KNOBS, removal.Knobs(draws=3, runs=2)),
    (retraining.KNOBS, retraining.Knobs({"default": 20}, blocks=2, more_methods=())),
    (scale.KNOBS, scale.Knobs({TASK: ((50, 2), (50, 4), (100, 2))}, subsets=8, runs=1, training_steps=2e4)),
    (overhead.KNOBS, overhead.Knobs(repeats=2, workloads={"mlp": 1})),
    (estimators.KNOBS, estimators.Knobs({"default": 25}, repetitions=1)),
    (stored_values.REFERENCES, stored_values.ReferenceKnobs({"default": 20}, blocks=2)),
]
for knobs, tiny in KNOBS:
    knobs["tiny"] = tiny
PLAN = Plan("tiny", tasks=(TASK,), methods=METHODS, seeds=PROFILE.seeds)
TIMINGS = ["seconds", "peak_bytes"]


def units_of(*experiments: str, plan: Plan = PLAN) -> list[Unit]:
    return [unit for name in experiments for unit in EXPERIMENTS[name].units(plan)]


def run(units: Sequence[Unit], store: Store, **how: Any) -> runner.Outcome:
    """Run units of the experiments that there are."""
    return runner.run(units, store, EXPERIMENTS, **how)


def files(root: Path) -> dict[str, tuple[int, bytes]]:
    """Modification time and content of every file with rows."""
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (root / "rows").glob("*.parquet")}


def without_timings(store: Store, experiment: str) -> pd.DataFrame:
    return store.read_all(experiment).drop(columns=TIMINGS)


def without_clip_names(drawing: bytes) -> bytes:
    """Return an SVG without names that hash unrounded places: the solver of layouts is exact to rounding alone."""
    return re.sub(rb"\bp[0-9a-f]{10}\b", b"", drawing)
