"""The units of the GPU benchmark in the order of their worth, with the seconds planned for each.

A run may be cut at any second, so what matters most comes first: whole training steps of GPT-2, then ``wgrad_dot``
against cuBLAS at the shapes of GPT-2 and Llama 3, then all that explains them.

The seconds are estimates for an H100 with sixteen cores, from its ceilings (700 TFLOP/s in bfloat16, 3 TB/s), the
rounds of each variant, and the time that compilers took for the same graphs elsewhere. They only decide what is
still begun before a budget ends, and no row depends on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from inrun_bench.experiments.gpu.approximations import SIZES, TINY_SIZES
from inrun_bench.experiments.gpu.kernels import LAYERS, TINY_LAYERS, Layer
from inrun_bench.experiments.gpu.passes import PASSES, TINY_PASSES
from inrun_bench.experiments.gpu.steps import BASELINES, CORE, JOINT, LAGGED, LAGGED_JOINT, OTHERS
from inrun_bench.experiments.gpu.trainings import TASKS
from inrun_bench.runs.unit import Setting, Unit

__all__ = [
    "APPROXIMATIONS",
    "CEILINGS",
    "INTERPRETED",
    "KERNELS",
    "PASSES_METHOD",
    "STEPS",
    "TRAININGS",
    "Planned",
    "in_order",
]

CEILINGS, STEPS, KERNELS, PASSES_METHOD = "ceilings", "steps", "kernels", "passes"
TRAININGS, APPROXIMATIONS = "trainings", "approximations"
INTERPRETED = "cpu (interpreter)"


@dataclass(frozen=True)
class Planned:
    """A unit, and how long it should take, in seconds."""

    unit: Unit
    seconds: float


def in_order(seed: int) -> list[Planned]:
    """Return all units for the GPU at hand; where there is none, tiny ones for Triton's interpreter."""
    return list(_on_gpu(seed) if torch.cuda.is_available() else _interpreted(seed))


def _on_gpu(seed: int) -> Iterator[Planned]:
    unit = partial(_unit, {"device": torch.cuda.get_device_name()}, seed)
    ceilings = unit("machine", CEILINGS, {"matmul": 8192, "copied": 2**30}, rounds=20, budget=2.0)
    yield Planned(ceilings, 4)

    def steps(task: str, optimizer: str, compiled: str, variants: str, budget: float) -> Unit:
        settings = {"optimizer": optimizer, "compiled": compiled, "variants": variants}
        return unit(task, STEPS, settings, rounds=15, budget=budget, needs=(ceilings,))

    def kernels(layer: str, names: str) -> Unit:
        settings = {**vars(LAYERS[layer]), "kernels": names}
        return unit(layer, KERNELS, settings, rounds=50, budget=2.0, needs=(ceilings,))

    yield Planned(steps("gpt2-small", "adamw", "no", CORE, 10.0), 20)
    yield Planned(steps("gpt2-small", "sgd", "no", CORE, 10.0), 20)
    yield Planned(steps("gpt2-small", "adamw", "inductor", CORE, 10.0), 110)  # compilation takes 95 of them
    yield Planned(steps("gpt2-small", "sgd", "inductor", CORE, 10.0), 80)  # two of its graphs are in the cache

    yield Planned(steps("gpt2-small", "adamw", "no", f"{BASELINES} {LAGGED} {LAGGED_JOINT}", 10.0), 18)

    first = [layer for layer in LAYERS if layer.startswith(("gpt2-small", "llama3")) and _is_bfloat16(LAYERS[layer])]
    others = [layer for layer in LAYERS if layer not in first]
    for layer in first:
        yield Planned(kernels(layer, "wgrad-dot"), 4)

    for optimizer, seconds in (("sgd", 45), ("adamw", 25)):
        variants = f"{BASELINES} {OTHERS[optimizer]}"
        yield Planned(steps("gpt2-small", optimizer, "no", variants, 10.0), seconds)
    for task in ("mlp", "cnn"):
        for optimizer in ("sgd", "adamw"):
            yield Planned(steps(task, optimizer, "no", f"{CORE} {OTHERS[optimizer]}", 6.0), 15)

    for layer in first:
        yield Planned(kernels(layer, "project-dot gram-dot"), 6)
    for name, sizes in PASSES.items():
        yield Planned(unit(name, PASSES_METHOD, sizes, rounds=50, budget=1.0, needs=(ceilings,)), 6)
    for layer in others:
        yield Planned(kernels(layer, "wgrad-dot project-dot gram-dot"), 5)

    for task in TASKS:
        yield Planned(unit(task, TRAININGS, {"coalitions": 20_000}, rounds=5, budget=5.0), 15)
    yield Planned(unit("gpt-text", APPROXIMATIONS, SIZES, rounds=5, budget=0.2), 35)


def _interpreted(seed: int) -> Iterator[Planned]:
    unit = partial(_unit, {"device": INTERPRETED}, seed, rounds=1, budget=0.0)
    ceilings = unit("machine", CEILINGS, {"matmul": 32, "copied": 2**16})
    yield Planned(ceilings, 1)
    for task, optimizer, compiled, variants in (
        ("gpt-tiny", "adamw", "no", f"{CORE} {LAGGED} {JOINT} {LAGGED_JOINT}"),
        ("gpt-tiny", "sgd", "aot_eager", CORE),
        ("gpt-tiny", "sgd", "no", f"{BASELINES} {OTHERS['sgd']}"),
        ("mlp-tiny", "sgd", "no", f"{CORE} {OTHERS['sgd']}"),
        ("cnn-tiny", "sgd", "no", f"{CORE} {OTHERS['sgd']}"),
        ("cnn-tiny", "adamw", "no", f"{CORE} {OTHERS['adamw']}"),
    ):
        settings = {"optimizer": optimizer, "compiled": compiled, "variants": variants}
        yield Planned(unit(task, STEPS, settings, needs=(ceilings,)), 5)
    for name, layer in TINY_LAYERS.items():
        settings = {**vars(layer), "kernels": "wgrad-dot project-dot gram-dot"}
        yield Planned(unit(name, KERNELS, settings, needs=(ceilings,)), 5)
    for name, sizes in TINY_PASSES.items():
        yield Planned(unit(name, PASSES_METHOD, sizes, needs=(ceilings,)), 5)
    yield Planned(unit(TASKS[0], TRAININGS, {"coalitions": 16}), 5)
    yield Planned(unit("gpt-text", APPROXIMATIONS, TINY_SIZES), 5)


def _unit(
    where: Mapping[str, Setting],
    seed: int,
    task: str,
    method: str,
    settings: Mapping[str, Setting],
    *,
    rounds: int,
    budget: float,
    needs: tuple[Unit, ...] = (),
) -> Unit:
    """Return a unit of at most so many rounds, which starts new ones, but for the first few, for `budget` seconds."""
    return Unit("gpu", task, method, seed, {**where, **settings, "rounds": rounds, "budget": budget}, needs)


def _is_bfloat16(layer: Layer) -> bool:
    return layer.dtype == "bfloat16"
