"""GPU: what scores cost where training is fast; one command checks, times and writes rows.

``inrun-bench run gpu --out results/gpu``, or ``tox run -e bench-gpu``; ``python -m inrun_bench.experiments.gpu`` is
the same in a clone that is not installed.
Units run one after another in the order of their worth (:mod:`~inrun_bench.experiments.gpu.order`), and each is written
at once: a run that is cut leaves what it had, and running again goes on. ``--budget SECONDS`` begins no unit that would
not end in time. They are measured in another process; one that a kernel breaks, or that hangs, is replaced, and the
method that did it is an error (:mod:`~inrun_bench.experiments.gpu.supervisor`).

*Ceilings*: what this GPU reaches in a large matrix product of each dtype and in a large copy, measured in the same run.
All shares below are of these, and not of a data sheet's.

*Steps*: training steps of GPT-2 small (124 M parameters and a head of its own, 1024 positions, batches of 16, bf16
autocast), an MLP and a CNN, with SGD, whose probe is known before the backward pass, so that the rules compete, and
with fused AdamW, whose probe comes late; compiled and not. There is one validation sequence a step; how long its
gradient takes is the ``step_ratio`` of ``validation``. ``throughput_ratio`` is relative to the regular step of the same
round, ``net_throughput_ratio`` the same with the time of the validation gradient taken off, ``peak_ratio`` compares the
peak memory of a step, weights and optimiser included. ``model_tflops`` is the arithmetic of the model alone, three
forward passes with full attention matrices, over time, and ``mfu`` its share of the ceiling. ``host_seconds`` is
how long a step keeps the host: where that is all of its time, the GPU waits for Python. The per-sample loop,
``vmap(grad)``, runs on fewer samples, for its memory, and is compared by sample.

*Kernels*: each kernel at the shapes of the linear maps of GPT-2 (small, medium, large) and of Llama 3 8B, 16 384
positions a batch. First it is checked: against float64, on rows, columns and samples drawn at random (all of them in
small shapes), with memory poisoned beforehand, and twice, which must give the same bits. Then it takes turns with its
twin in plain torch and with ``torch.mm`` of the weight gradient alone (cuBLAS), its inputs out of the cache.
``ratio_to_cublas`` is speed over that of cuBLAS in the same round: for ``wgrad-dot``, 1 means that scores are free.
``roofline_share`` is the time that the ceilings allow over the time taken; what must be computed and moved is counted
by :func:`~inrun_bench.experiments.gpu.kernels.work`.

*Passes*: the kernels of norms and embeddings, checked in the same way; ``ratio_to_torch`` is speed over the twin's.

*Trainings*: retrainings a second of embedded tasks, thousands of models in stacks
(:mod:`~inrun_bench.experiments.gpu.trainings`), and how far their utilities are from those of the processor.

*Approximations*: how far scores are off whose probe product is in float8, or of low rank, on a model that has trained a
little, and how much faster they are (:mod:`~inrun_bench.experiments.gpu.approximations`).

Rows carry the median over rounds and its quartiles, ``low`` and ``high``. A variant that fails or runs out of memory is
a row with ``status="error"``, and the others go on. Where there is no GPU, the same code runs on tiny shapes under
Triton's interpreter: rows say ``device="cpu (interpreter)"``, and prove that it works, not how fast it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
import torch

from inrun_bench.experiments.gpu.approximations import measure_approximations
from inrun_bench.experiments.gpu.checks import TOLERANCE
from inrun_bench.experiments.gpu.kernels import measure_kernels
from inrun_bench.experiments.gpu.order import (
    APPROXIMATIONS,
    CEILINGS,
    KERNELS,
    STEPS,
    TRAININGS,
    in_order,
)
from inrun_bench.experiments.gpu.passes import measure_passes
from inrun_bench.experiments.gpu.rounds import Attempt, attempt_rounds, device, error_row, rate, recover
from inrun_bench.experiments.gpu.steps import measure_steps
from inrun_bench.experiments.gpu.trainings import measure_trainings
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.store import Store
from inrun_bench.runs.timing import Call, event_seconds
from inrun_bench.runs.unit import Row, Unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUMMARY = "kernels and training steps on a GPU: correctness, speed against cuBLAS, roofline, throughput, memory"
EXCLUSIVE = True
DEFAULT = False


def units(plan: Plan) -> list[Unit]:
    """Return all units in the order of their worth; tiny ones where there is no GPU."""
    return [planned.unit for planned in in_order(plan.seeds[0])]


def run_alone(store: Store, *, limit: float, budget: float | None = None) -> int:
    """Run the units as :func:`inrun_bench.experiments.gpu.alone.run_alone` does."""
    from inrun_bench.experiments.gpu import alone  # here: a worker imports this module, and supervises nothing

    return alone.run_alone(store, limit=limit, budget=budget)


def measure(unit: Unit, needs: Mapping[Unit, pd.DataFrame], attempt: Attempt | None = None) -> list[Row]:
    """Return the rows of one unit; shares of the ceilings are left out where `needs` does not hold them."""
    attempt = attempt or Attempt()
    recover()  # from the unit before
    with torch.random.fork_rng():
        torch.manual_seed(unit.seed)
        if unit.method == CEILINGS:
            return _measure_ceilings(unit, attempt)
        if unit.method == APPROXIMATIONS:
            return measure_approximations(unit, attempt)
        if unit.method == TRAININGS:
            return measure_trainings(unit, attempt)
        found = (row for rows in needs.values() for row in rows.itertuples() if row.status == "ok")
        highest = {(row.metric, row.dtype): row.value for row in found}
        measured = {STEPS: measure_steps, KERNELS: measure_kernels}.get(unit.method, measure_passes)
        return measured(unit, highest, attempt)


def _measure_ceilings(unit: Unit, attempt: Attempt) -> list[Row]:
    size, copied = int(unit.settings["matmul"]), int(unit.settings["copied"])
    source = torch.randint(256, (copied,), dtype=torch.uint8, device=device())  # zeros would be faster
    target = torch.empty_like(source)
    calls: dict[str, Call] = {"copy": lambda: target.copy_(source)}
    for dtype in TOLERANCE:
        x, y = (torch.randn(size, size, device=device()).to(getattr(torch, dtype)) for _ in range(2))
        calls[dtype] = partial(torch.mm, x, y)
    calls = {name: calls[name] for name in attempt.wanted(calls)}
    rounds, failed = attempt_rounds(calls, unit.settings, event_seconds, attempt)
    rows = [error_row(name, said) for name, said in failed.items()]
    for name in rounds[0]:
        metric, amount = ("tbytes_per_s", 2 * copied) if name == "copy" else ("tflops", 2 * size**3)
        rows.append(
            {"method": "copy" if name == "copy" else "matmul", "metric": metric, "dtype": name}
            | rate(name, rounds, amount)
        )
    return rows


def draw(rows: pd.DataFrame) -> Figure:
    """Draw speed by shape and throughput by training, each relative to what does without scores.

    Medians with quartiles over repetitions.
    """
    from inrun_bench.experiments.gpu import figure  # here: a worker draws nothing, and its machine may lack matplotlib

    return figure.draw(rows)
