"""Kernels at the shapes of layers: right, the same from run to run, and how fast."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from inrun_bench.experiments.gpu.checks import TOLERANCE, Expected, check_all
from inrun_bench.experiments.gpu.rounds import Attempt, attempt_rounds, device, error_row, rate, seconds
from inrun_bench.runs.timing import Call, Rounds, event_seconds, quartiles
from inrun_bench.runs.unit import Row, Unit

__all__ = ["LAYERS", "TINY_LAYERS", "Layer", "measure_kernels", "speeds", "work"]

SAMPLED = 64  # rows and columns of the weight gradient that are checked against float64


@dataclass(frozen=True)
class Layer:
    """A linear map and its batch: `samples` of `positions` each, `validation` positions for the gram rule."""

    samples: int
    positions: int
    d_in: int
    d_out: int
    validation: int
    dtype: str = "bfloat16"


def _block(width: int) -> dict[str, Layer]:
    """Return the linear maps of a GPT-2 block."""
    sizes = {"qkv": (width, 3 * width), "proj": (width, width), "up": (width, 4 * width), "down": (4 * width, width)}
    return {name: Layer(16, 1024, *size, validation=1024) for name, size in sizes.items()}


LLAMA = {"q": (4096, 4096), "kv": (4096, 1024), "gate-up": (4096, 14336), "down": (14336, 4096)}
GPT2 = {"small": 768, "medium": 1024, "large": 1280}
LAYERS = {
    **{f"gpt2-{size}-{name}": layer for size, width in GPT2.items() for name, layer in _block(width).items()},
    **{f"llama3-8b-{name}": Layer(8, 2048, *size, validation=2048) for name, size in LLAMA.items()},
    "gpt2-small-proj-float16": replace(_block(768)["proj"], dtype="float16"),
    "gpt2-small-proj-float32": replace(_block(768)["proj"], dtype="float32"),
}
TINY_LAYERS = {
    "tiny-float32": Layer(3, 5, 17, 9, validation=4, dtype="float32"),
    "tiny-bfloat16": Layer(2, 20, 16, 33, validation=7),
}


def work(kernel: str, layer: Layer) -> tuple[int, int]:
    """Return the operations that a kernel must do and the bytes that it must move.

    Each input is read and each output written once. With N = samples x positions, d_in and d_out the sizes of the map,
    V validation positions, and s bytes a number:

    ===========  ===================  ===========================================================
    kernel       operations           bytes
    ===========  ===================  ===========================================================
    cublas       2 N d_in d_out       s N (d_in + d_out) + s d_in d_out
    wgrad-dot    2 N d_in d_out       s N (d_in + d_out) + (4 + 4) d_in d_out + 4 samples
    project-dot  2 N d_in d_out       s N (d_in + d_out) + 4 d_in d_out + 4 samples
    gram-dot     2 N V (d_in + d_out) s (N + V) (d_in + d_out) + 4 samples
    ===========  ===================  ===========================================================

    Probe, scores and the gradient of ``wgrad-dot`` are float32, as in mixed precision; the gradient of cuBLAS is of its
    inputs' dtype. Operations of lower order (the dots themselves, 2 samples d_in d_out) are left out; a multiplication
    and an addition are two.

    Examples
    --------
    >>> work("cublas", Layer(2, 8, 4, 4, validation=1))
    (512, 288)
    """
    n, both, area = layer.samples * layer.positions, layer.d_in + layer.d_out, layer.d_in * layer.d_out
    size, scores = getattr(torch, layer.dtype).itemsize, 4 * layer.samples
    return {
        "cublas": (2 * n * area, size * (n * both + area)),
        "wgrad-dot": (2 * n * area, size * n * both + 8 * area + scores),
        "project-dot": (2 * n * area, size * n * both + 4 * area + scores),
        "gram-dot": (2 * n * layer.validation * both, size * (n + layer.validation) * both + scores),
    }[kernel]


def measure_kernels(unit: Unit, ceilings: Mapping[tuple[str, str], float], attempt: Attempt) -> list[Row]:
    """Check, then time; `ceilings` are what the machine reaches, by metric and dtype, as far as that is known."""
    layer = Layer(**{name: unit.settings[name] for name in Layer.__dataclass_fields__})  # type: ignore[arg-type]
    shape = f"{layer.samples} x {layer.positions} x {layer.d_in} -> {layer.d_out}"
    inputs = _inputs(layer)
    calls = _kernel_calls(inputs, str(unit.settings["kernels"]).split())
    calls = {name: calls[name] for name in attempt.wanted(calls)}
    checked = {name: call for name, call in calls.items() if name != "cublas"}
    alive, rows = check_all(checked, lambda kernel: _expected(kernel, inputs), TOLERANCE[layer.dtype], attempt)
    calls = {name: call for name, call in calls.items() if name == "cublas" or name in alive}
    rounds, failed = attempt_rounds(calls, unit.settings, event_seconds, attempt)
    rows += [error_row(name, said) for name, said in failed.items()]
    for name in (name for name in calls if name not in failed):
        rows += speeds(name, rounds, work(name.removesuffix("-torch"), layer), layer.dtype, ceilings)
        if "cublas" in rounds[0]:
            ratio = quartiles(taken["cublas"] / taken[name] for taken in rounds)
            rows.append({"method": name, "metric": "ratio_to_cublas", **ratio, "seconds": seconds(name, rounds)})
    return [{**row, "kernel": row["method"], "shape": shape} for row in rows]


def speeds(
    name: str, rounds: Rounds, work: tuple[int, int], dtype: str, ceilings: Mapping[tuple[str, str], float]
) -> list[Row]:
    """Return rows of what was computed and moved in a second, and the share of what the ceilings allow."""
    operations, moved = work
    flops, traffic = rate(name, rounds, operations), rate(name, rounds, moved)
    rows = [
        {"method": name, "metric": "tflops", **flops},
        {"method": name, "metric": "tbytes_per_s", **traffic},
    ]
    highest = ceilings.get(("tflops", dtype)), ceilings.get(("tbytes_per_s", "copy"))
    if None not in highest:
        shares = (found["value"] / top for found, top in zip((flops, traffic), highest, strict=True) if top)
        rows.append({"method": name, "metric": "roofline_share", "value": max(shares), "seconds": flops["seconds"]})
    return rows


def _inputs(layer: Layer) -> dict[str, Tensor]:
    """Draw inputs a [B, T, d_in], output gradients b [B, T, d_out], a probe, and a validation sequence's a and b."""
    shapes = {
        "a": (layer.samples, layer.positions, layer.d_in),
        "b": (layer.samples, layer.positions, layer.d_out),
        "probe": (layer.d_out, layer.d_in),
        "a_val": (layer.validation, layer.d_in),
        "b_val": (layer.validation, layer.d_out),
    }
    dtypes = {"probe": torch.float32}  # as weights are, in mixed precision
    return {
        name: torch.randn(shape, device=device()).to(dtypes.get(name, getattr(torch, layer.dtype)))
        for name, shape in shapes.items()
    }


def _kernel_calls(inputs: Mapping[str, Tensor], kernels: Sequence[str]) -> dict[str, Call]:
    """Return what is compared: the weight gradient alone, and each of `kernels` and its twin."""
    from inrun_bench.attribution.products.gram_dot import gram_dot
    from inrun_bench.attribution.products.project_dot import project_dot
    from inrun_bench.attribution.products.wgrad_dot import wgrad_dot

    a, b, probe, a_val, b_val = inputs.values()
    functions: dict[str, Callable[..., object]] = {
        "wgrad-dot": partial(wgrad_dot, a, b, probe),
        "project-dot": partial(project_dot, a, b, probe),
        "gram-dot": partial(gram_dot, a, b, a_val, b_val),
    }
    rows, columns = b.flatten(0, 1), a.flatten(0, 1)  # [B T, d_out], [B T, d_in]
    calls: dict[str, Call] = {"cublas": lambda: torch.mm(rows.t(), columns)}
    for name in kernels:
        calls[name] = partial(functions[name], backend="triton")
        calls[f"{name}-torch"] = partial(functions[name], backend="torch")
    return calls


def _expected(kernel: str, inputs: Mapping[str, Tensor]) -> Expected:
    """Return the scores of a few samples in float64, and some rows and columns of the gradient, drawn at random."""
    a, b, probe, a_val, b_val = inputs.values()
    if kernel == "gram-dot":  # the probe in factors
        probe = b_val.double().t() @ a_val.double()
    samples = torch.randperm(len(a))[:4]
    scores = torch.stack([(b[i].double().t() @ a[i].double() * probe).sum() for i in samples.tolist()])
    if kernel != "wgrad-dot":
        return {"scores": (0, scores, (samples.to(a.device),))}
    rows, columns = (torch.randperm(x.shape[-1])[:SAMPLED].to(x.device) for x in (b, a))
    gradient = b.flatten(0, 1)[:, rows].double().t() @ a.flatten(0, 1)[:, columns].double()
    return {"gradient": (0, gradient, (rows, columns)), "scores": (1, scores, (samples.to(a.device),))}
