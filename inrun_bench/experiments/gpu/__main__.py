"""The command: ``python -m inrun_bench.experiments.gpu --out results/gpu``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from inrun_bench.experiments.gpu import SUMMARY, units
from inrun_bench.figures import draw_figures
from inrun_bench.plan import PROFILES, Plan
from inrun_bench.runner import run
from inrun_bench.store import Store

__all__ = ["main"]

SHOWN = ("tflops", "tbytes_per_s", "roofline_share", "ratio_to_cublas")
SHOWN_OF_STEPS = (
    "tokens_per_s",
    "samples_per_s",
    "mfu",
    "step_ratio",
    "throughput_ratio",
    "net_throughput_ratio",
    "peak_ratio",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is not there yet, and print what is there; return 0, or 1 where something failed."""
    parser = argparse.ArgumentParser(prog="python -m inrun_bench.experiments.gpu", description=SUMMARY)
    parser.add_argument("--out", type=Path, default=Path("runs", "gpu"), help="results folder (default: runs/gpu)")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is first imported
    store = Store(options.out)
    todo = units(Plan(PROFILES["quick"], tasks=(), methods=(), seeds=(0,)))
    outcome = run(todo, store, progress=sys.stderr.isatty())
    draw_figures(store, ["gpu"])
    rows = pd.concat([store.read(unit) for unit in todo])
    for columns, metrics in (("shape dtype", SHOWN), ("optimizer compiled", SHOWN_OF_STEPS)):
        print(_table(rows[rows["metric"].isin(metrics)], ["device", "task", *columns.split(), "method"], metrics))
    print(f"{outcome.done} units done, {outcome.skipped} were there already; rows and figure are in {store.root}")
    failed = rows[rows["status"] == "error"]
    for row in failed.itertuples():
        print(f"failed: {row.task} {row.method}: {row.message}", file=sys.stderr)
    return 1 if len(failed) else 0


def _table(rows: pd.DataFrame, index: list[str], metrics: Sequence[str]) -> str:
    """Return one line a method, one column a metric."""
    rows = rows.reindex(columns=[*index, "metric", "value"]).fillna(dict.fromkeys(index, ""))
    wide = rows.set_index([*index, "metric"])["value"].unstack("metric")
    wide = wide.reindex(columns=[metric for metric in metrics if metric in wide]).reset_index()
    return f"{wide.to_string(index=False, na_rep='', float_format='{:.4g}'.format)}\n"


if __name__ == "__main__":
    sys.exit(main())
