"""What a unit found, in a few lines of the log."""

from __future__ import annotations

from collections.abc import Sequence

from inrun_bench.experiments.gpu.supervisor import Finished
from inrun_bench.runs.unit import Row

__all__ = ["told"]

METRICS = {
    "ceilings": ("tflops", "tbytes_per_s"),
    "steps": (
        "tokens_per_s",
        "samples_per_s",
        "net_throughput_ratio",
        "peak_ratio",
        "mfu",
        "step_ratio",
        "host_seconds",
    ),
    "kernels": ("ratio_to_cublas", "tflops"),
    "passes": ("ratio_to_torch", "tbytes_per_s"),
    "trainings": ("trainings_per_s", "largest_difference"),
    "approximations": ("score_error", "speed_to_exact"),
}
"""What is told of a unit of each kind; the rest is in the rows."""


def told(finished: Finished, budget: float | None) -> str:
    """Return the unit, the seconds it took and the budget that is left, its main results and what failed."""
    unit = finished.planned.unit
    how = [str(unit.settings[name]) for name in ("optimizer", "compiled", "kernels") if name in unit.settings]
    rest = "" if budget is None else f", {budget - finished.elapsed:.0f} s left"
    lines = [
        f"[{finished.elapsed:5.0f} s] {' '.join((unit.task, unit.method, *how))}: {finished.seconds:.0f} s "
        f"({finished.planned.seconds:.0f} planned{rest})"
    ]
    good = [row for row in finished.rows if row.get("status", "ok") == "ok"]
    for metric in METRICS.get(unit.method, ()):
        own = [row for row in good if row["metric"] == metric]
        if own:
            lines.append(f"    {metric}: {', '.join(_value(row, own) for row in own)}")
    lines += [
        f"    failed: {row['method']}: {' '.join(str(row['message']).split())[:300]}"
        for row in finished.rows
        if row not in good
    ]
    return "\n".join(lines)


def _value(row: Row, rows: Sequence[Row]) -> str:
    names = {other["method"] for other in rows}
    name = row["method"] if len(names) == len(rows) else f"{row['method']} {row.get('dtype', '')}"
    return f"{name} {row['value']:,.4g}" if row["value"] < 1e4 else f"{name} {row['value']:,.0f}"
