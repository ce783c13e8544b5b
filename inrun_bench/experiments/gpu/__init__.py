"""GPU: what scores cost where training is fast; one command checks, times and writes rows.

``python -m inrun_bench.experiments.gpu --out results/gpu``, or ``tox run -e bench-gpu``. Five kinds of units:

*Ceilings*, planned at 10 s: what this GPU reaches in a large matrix product of each dtype and in a large copy, measured
in the same run. All shares below are of these, and not of a data sheet's.

*Kernels*, planned at 4 min: each kernel at the shapes of the linear maps of GPT-2 (small,
medium, large) and of Llama 3 8B, 16 384 positions a batch. First it is checked: against float64, on rows, columns and
samples drawn at random (all of them in small shapes), with memory poisoned beforehand, and twice, which must give the
same bits. Then it takes turns with its twin in plain torch and with ``torch.mm`` of the weight gradient alone (cuBLAS),
its inputs out of the cache. ``ratio_to_cublas`` is speed over that of cuBLAS in the same round: for ``wgrad-dot``, 1
means that scores are free. ``roofline_share`` is the time that the ceilings allow over the time taken; what must be
computed and moved is counted by :func:`~inrun_bench.experiments.gpu.kernels.work`.

*Approximations*, planned at 30 s: how far scores are off whose probe product is in float8, or of low rank, on a model
that has trained a little, and how much faster they are (:mod:`~inrun_bench.experiments.gpu.approximations`).

*Steps*, planned at 5 min, half of it compilation: training steps of GPT-2 small (124 M parameters and a head of its
own, 1024 positions, batches of 16, bf16 autocast), an MLP and a CNN, with SGD, whose probe is known before the backward
pass, so that the rules compete, and with fused AdamW, whose probe comes late; compiled and not. There is one validation
sequence a step; how long its gradient takes is the ``step_ratio`` of ``validation``. ``throughput_ratio`` is relative
to the regular step of the same round, ``net_throughput_ratio`` the same with the time of the validation gradient taken
off, ``peak_ratio`` compares the peak memory of a step, weights and optimiser included. ``mfu`` is the arithmetic of the
model alone, three forward passes, over time and ceiling. The per-sample loop, ``vmap(grad)``, runs on fewer samples,
for its memory, and is compared by sample.

*Trainings*, planned at 1 min: retrainings a second of embedded tasks, thousands of models in stacks
(:mod:`~inrun_bench.experiments.gpu.trainings`), and how far their utilities are from those of the processor.

Rows carry the median over rounds and its quartiles, ``low`` and ``high``. A variant that fails or runs out of memory is
a row with ``status="error"``, and the others go on. Where there is no GPU, the same code runs on tiny shapes under
Triton's interpreter: rows say ``device="cpu (interpreter)"``, and prove that it works, not how fast it is.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from functools import partial

import pandas as pd
import torch

from inrun_bench.experiments.gpu.approximations import SIZES, TINY_SIZES, measure_approximations
from inrun_bench.experiments.gpu.kernels import LAYERS, TINY_LAYERS, TOLERANCE, measure_kernels
from inrun_bench.experiments.gpu.rounds import Call, device, error_row, event_seconds, rate, take_turns
from inrun_bench.experiments.gpu.steps import STEPS_OF, TINY_STEPS_OF, measure_steps
from inrun_bench.experiments.gpu.trainings import TASKS, measure_trainings
from inrun_bench.plan import Plan
from inrun_bench.unit import Row, Setting, Unit

SUMMARY = "kernels and training steps on a GPU: correctness, speed against cuBLAS, roofline, throughput, memory"
EXCLUSIVE = True
DEFAULT = False

CEILINGS, KERNELS, APPROXIMATIONS, STEPS = "ceilings", "kernels", "approximations", "steps"
TRAININGS = "trainings"
INTERPRETED = "cpu (interpreter)"


def units(plan: Plan) -> list[Unit]:
    """Ceilings; for each layer its kernels; for each model its steps. Tiny ones where there is no GPU."""
    gpu, seed = torch.cuda.is_available(), plan.seeds[0]
    where: dict[str, Setting] = {"device": torch.cuda.get_device_name() if gpu else INTERPRETED}
    sizes: dict[str, Setting] = {"matmul": 8192 if gpu else 32, "copied": 2**30 if gpu else 2**16}
    ceilings = Unit("gpu", "machine", CEILINGS, seed, {**where, **sizes, **_repeats(20, 2.0)})
    kernels = [
        Unit("gpu", name, KERNELS, seed, {**where, **vars(layer), **_repeats(50, 3.0)}, needs=(ceilings,))
        for name, layer in (LAYERS if gpu else TINY_LAYERS).items()
    ]
    steps = [
        Unit("gpu", name, STEPS, seed, {**where, "optimizer": o, "compiled": c, **_repeats(15, 20.0)}, (ceilings,))
        for name, ways in (STEPS_OF if gpu else TINY_STEPS_OF).items()
        for o, c in ways
    ]
    approximations = Unit(
        "gpu", "gpt-text", APPROXIMATIONS, seed, {**where, **(SIZES if gpu else TINY_SIZES), **_repeats(5, 0.2)}
    )
    trainings = [
        Unit("gpu", name, TRAININGS, seed, {**where, "coalitions": 20_000 if gpu else 16, **_repeats(5, 10.0)})
        for name in (TASKS if gpu else TASKS[:1])
    ]
    return [ceilings, *kernels, approximations, *steps, *trainings]


def _repeats(rounds: int, seconds: float) -> dict[str, Setting]:
    """Return how many rounds a unit takes at most, and for how long it starts new ones; without a GPU, one round."""
    return {"rounds": rounds, "budget": seconds} if torch.cuda.is_available() else {"rounds": 1, "budget": 0.0}


def measure(unit: Unit, needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Check and time the kernels of one layer or the steps of one model, or find the ceilings."""
    gc.collect()  # engines and models of other units hold each other
    with torch.random.fork_rng():
        torch.manual_seed(unit.seed)
        if unit.method == CEILINGS:
            return _measure_ceilings(unit)
        if unit.method == APPROXIMATIONS:
            return measure_approximations(unit)
        if unit.method == TRAININGS:
            return measure_trainings(unit)
        (ceilings,) = needs.values()
        highest = {(row.metric, row.dtype): row.value for row in ceilings.itertuples()}
        return (measure_kernels if unit.method == KERNELS else measure_steps)(unit, highest)


def _measure_ceilings(unit: Unit) -> list[Row]:
    size, copied = int(unit.settings["matmul"]), int(unit.settings["copied"])
    source = torch.randint(256, (copied,), dtype=torch.uint8, device=device())  # zeros would be faster
    target = torch.empty_like(source)
    calls: dict[str, Call] = {"copy": lambda: target.copy_(source)}
    for dtype in TOLERANCE:
        x, y = (torch.randn(size, size, device=device()).to(getattr(torch, dtype)) for _ in range(2))
        calls[dtype] = partial(torch.mm, x, y)
    rounds, failed = take_turns(calls, unit.settings, event_seconds)
    rows = [error_row(name, said) for name, said in failed.items()]
    for name in rounds[0]:
        metric, amount = ("tbytes_per_s", 2 * copied) if name == "copy" else ("tflops", 2 * size**3)
        rows.append(
            {"method": "copy" if name == "copy" else "matmul", "metric": metric, "dtype": name}
            | rate(name, rounds, amount)
        )
    return rows
