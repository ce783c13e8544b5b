"""Tables of the documentation, made from rows: ``python -m inrun_bench.experiments.gpu.tables --into docs/kernels.md``.

They are of what was measured on a GPU; rows of Triton's interpreter are passed over. Without any, they say so.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from inrun_bench.experiments.gpu.kernels import LAYERS
from inrun_bench.experiments.gpu.order import INTERPRETED
from inrun_bench.experiments.gpu.steps import MODELS
from inrun_bench.report import update_section
from inrun_bench.runs.store import Store

__all__ = ["BEGIN", "END", "main", "tables", "targets"]

BEGIN, END = "<!-- gpu: begin (python -m inrun_bench.experiments.gpu.tables --into) -->", "<!-- gpu: end -->"
MISSING = "not yet measured"


def tables(folder: Path) -> str:
    """Return Markdown: the targets and, for each GPU in the results `folder`, what was measured on it."""
    return _by_card(folder, (_targets, _steps, _kernels, _rest))


def targets(folder: Path) -> str:
    """Return Markdown: the targets and how far each GPU in the results `folder` came."""
    return _by_card(folder, (_targets,))


def _by_card(folder: Path, parts: Sequence[Callable[[pd.DataFrame], str]]) -> str:
    rows, runs = pd.DataFrame({"device": []}), []
    if (folder / "store.json").exists():
        store = Store(folder, create=False)
        rows = store.read_all("gpu")
        runs = json.loads((folder / "manifest.json").read_text())
    cards = [card for card in rows["device"].unique() if card != INTERPRETED]
    if not cards:
        return f"Nothing has been measured on a GPU yet.\n\n{_targets(rows)}"
    shown = []
    for card in cards:
        of_card = rows[rows["device"] == card].sort_values("task", key=_place, kind="stable")
        texts = [_heading(card, runs), *(part(of_card) for part in parts)]
        shown += [text for text in texts if text]
    return "\n\n".join(shown)


def _place(tasks: pd.Series[Any]) -> pd.Series[Any]:
    """Return where tasks stand in the tables: as the benchmark takes them, GPT-2 first."""
    known = [*MODELS, *LAYERS]
    return tasks.map(lambda task: known.index(task) if task in known else len(known))


def _heading(card: str, runs: Sequence[dict[str, object]]) -> str:
    own = [run for run in runs if run.get("device") == card]
    days = sorted({str(run["started"])[:10] for run in own})
    versions: dict[str, str] = own[-1]["versions"] if own else {}  # type: ignore[assignment]
    stated = ", ".join(f"{name} {versions.get(name)}" for name in ("torch", "triton"))
    return f"### {card}, {' and '.join(days)} ({stated})"


def _targets(rows: pd.DataFrame) -> str:
    def reached(metric: str, method: str, tasks: str, label: str) -> str:
        if "metric" not in rows:
            return ""
        own = rows[(rows["metric"] == metric) & (rows["method"] == method) & rows["task"].str.startswith(tasks)]
        if own.empty:
            return ""
        return f"{label} {own['value'].min():.2f} to {own['value'].max():.2f}"

    def cell(*found: str) -> str:
        return "; ".join(filter(None, found)) or MISSING

    first = "inrun-first"
    cells = [
        (
            "`wgrad_dot` at 85 % of cuBLAS' speed for the weight gradient alone, GPT-2 small and Llama-3 8B shapes",
            cell(
                reached("ratio_to_cublas", "wgrad-dot", "gpt2-small", "GPT-2 small"),
                reached("ratio_to_cublas", "wgrad-dot", "llama3-8b", "Llama-3 8B"),
            ),
        ),
        (
            "GPT-2 small training step with first-order scores at 95 % of regular throughput, validation apart",
            cell(reached("net_throughput_ratio", first, "gpt2-small", "")).strip(),
        ),
        (
            "peak memory of that step within 1.05 of a regular one",
            cell(reached("peak_ratio", first, "gpt2-small", "")).strip(),
        ),
    ]
    return _markdown(cells, ("target", "reached"))


def _steps(rows: pd.DataFrame) -> str:
    ratios = {"net_throughput_ratio": ".3f", "throughput_ratio": ".3f", "peak_ratio": ".2f", "mfu": ".3f"}
    steps = rows[rows["metric"].isin(["tokens_per_s", "samples_per_s", *ratios])]
    cells = []
    for (task, optimizer, compiled, method), own in steps.groupby(
        ["task", "optimizer", "compiled", "method"], sort=False
    ):
        found = own.drop_duplicates("metric").set_index("metric")["value"]  # a baseline is in several units
        speed = found.get("tokens_per_s", found.get("samples_per_s"))
        others = (f"{found[metric]:{form}}" if metric in found else "" for metric, form in ratios.items())
        cells.append((task, optimizer, "" if compiled == "no" else "compiled", method, _number(speed), *others))
    throughput = ("tokens or samples / s", "ratio, validation apart", "ratio")
    return _markdown(cells, ("model", "optimizer", "", "step", *throughput, "memory", "MFU"))


def _kernels(rows: pd.DataFrame) -> str:
    own = rows[rows["metric"].isin(["ratio_to_cublas", "ratio_to_torch"]) & ~rows["method"].str.endswith("-torch")]
    shares = rows[rows["metric"] == "roofline_share"].drop_duplicates(["task", "method"])
    shares = shares.set_index(["task", "method"])["value"]
    cells = []
    for row in own[own["method"] != "cublas"].itertuples():
        speed = f"{row.value:.3f} of {'cuBLAS' if row.metric == 'ratio_to_cublas' else 'torch'}"
        share = f"{shares[row.task, row.method]:.2f}" if (row.task, row.method) in shares else ""
        cells.append((row.method, row.task, row.shape, _number(row.seconds * 1e6), speed, share))
    return _markdown(cells, ("kernel", "layer", "shape", "us", "speed", "share of the roofline"))


def _rest(rows: pd.DataFrame) -> str:
    own = rows[rows["metric"].isin(["trainings_per_s", "score_error", "speed_to_exact"])]
    cells = [(row.task, row.method, row.metric.replace("_", " "), _number(row.value)) for row in own.itertuples()]
    return _markdown(cells, ("task", "method", "measure", "value"))


def _number(value: float) -> str:
    return f"{value:,.3g}" if value < 1e3 else f"{value:,.0f}"


def _markdown(cells: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    return str(tabulate(cells, head, tablefmt="pipe", disable_numparse=True)) if cells else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, or put them between the marks of a Markdown file (``--into FILE``); ``--targets`` alone."""
    parser = argparse.ArgumentParser(prog="python -m inrun_bench.experiments.gpu.tables", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("results", "gpu"), help="results (default: results/gpu)")
    parser.add_argument("--into", type=Path, help=f"a file that holds the lines {BEGIN!r} and {END!r}")
    parser.add_argument("--targets", action="store_true", help="no more than the targets and what was reached")
    options = parser.parse_args(arguments)
    text = (targets if options.targets else tables)(options.out)
    if options.into is None:
        print(text)
    else:
        update_section(options.into, text, BEGIN, END)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
