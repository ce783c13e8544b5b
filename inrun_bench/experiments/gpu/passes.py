"""Kernels that are one pass over memory: norms and embeddings, checked and timed beside their twins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from inrun_bench.attribution.products import embedding_dot, layer_norm_dot, rms_norm_dot
from inrun_bench.experiments.gpu.checks import TOLERANCE, Expected, check_all
from inrun_bench.experiments.gpu.kernels import speeds
from inrun_bench.experiments.gpu.rounds import Attempt, attempt_rounds, device, error_row, seconds
from inrun_bench.runs.timing import Call, event_seconds, quartiles
from inrun_bench.runs.unit import Row, Setting, Unit

__all__ = ["PASSES", "TINY_PASSES", "measure_passes"]

PASSES: dict[str, dict[str, Setting]] = {
    "gpt2-small-passes": {"samples": 16, "positions": 1024, "width": 768, "vocabulary": 50304, "dtype": "float32"},
    "llama3-8b-passes": {"samples": 8, "positions": 2048, "width": 4096, "vocabulary": 128256, "dtype": "bfloat16"},
}
"""Sizes of a model's batch, and the dtype that autocast (GPT-2) or a bfloat16 model (Llama) leaves a norm's tensors."""

TINY_PASSES: dict[str, dict[str, Setting]] = {
    "tiny-passes": {"samples": 3, "positions": 5, "width": 24, "vocabulary": 7, "dtype": "float32"}
}

Kernel = Callable[..., Tensor]


def measure_passes(unit: Unit, ceilings: Mapping[tuple[str, str], float], attempt: Attempt) -> list[Row]:
    """Check, then time; ``ratio_to_torch`` is the speed over that of the twin."""
    samples, positions, width, vocabulary = (
        int(unit.settings[name]) for name in ("samples", "positions", "width", "vocabulary")
    )
    dtype = str(unit.settings["dtype"])
    kind = getattr(torch, dtype)
    a, b = (torch.randn(samples, positions, width, device=device()).to(kind) for _ in range(2))
    scale, shift, table = (torch.randn(*shape, device=device()) for shape in ((width,), (width,), (vocabulary, width)))
    ids = torch.randint(vocabulary, (samples, positions), device=device())
    size = samples * positions * width * kind.itemsize
    kernels: dict[str, tuple[Kernel, tuple[object, ...], int]] = {  # with arguments, and the bytes that must be moved
        "layer-norm-dot": (layer_norm_dot, (a, b, 1, scale, shift), 2 * size),
        "rms-norm-dot": (rms_norm_dot, (a, b, 1, scale), 2 * size),
        "embedding-dot": (embedding_dot, (ids, b, table), size + samples * positions * (4 * width + 8)),
    }
    rows: list[Row] = []
    for name, (kernel, arguments, moved) in kernels.items():
        calls: dict[str, Call] = {
            name: partial(kernel, *arguments, backend="triton"),
            f"{name}-torch": partial(kernel, *arguments, backend="torch"),
        }
        calls = {method: calls[method] for method in attempt.wanted(calls)}
        exact: Expected = {"scores": (0, kernel(*(_double(argument) for argument in arguments), backend="torch"), ())}
        calls, found = check_all(calls, {name: exact}.__getitem__, TOLERANCE[dtype], attempt)
        rows += found
        rounds, failed = attempt_rounds(calls, unit.settings, event_seconds, attempt)
        rows += [error_row(method, said) for method, said in failed.items()]
        for method in (method for method in calls if method not in failed):
            rows += speeds(method, rounds, (10 * size // kind.itemsize, moved), "float32", ceilings)
            if f"{name}-torch" in rounds[0]:
                ratio = quartiles(taken[f"{name}-torch"] / taken[method] for taken in rounds)
                rows.append({"method": method, "metric": "ratio_to_torch", **ratio, "seconds": seconds(method, rounds)})
    shape = f"{samples} x {positions} x {width}"
    return [{**row, "kernel": row["method"], "shape": shape} for row in rows]


def _double(argument: object) -> object:
    return argument.double() if isinstance(argument, Tensor) and argument.is_floating_point() else argument
