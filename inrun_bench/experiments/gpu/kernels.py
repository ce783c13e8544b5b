"""Kernels at the shapes of layers: right, the same from run to run, and how fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from inrun_bench.experiments.gpu.rounds import (
    Call,
    device,
    error_row,
    event_seconds,
    message,
    quartiles,
    rate,
    take_turns,
)
from inrun_bench.unit import Row, Unit

__all__ = ["LAYERS", "TINY_LAYERS", "TOLERANCE", "Layer", "measure_kernels", "work"]

TOLERANCE = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 1e-2}  # ||got - expected|| / ||expected||
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


def measure_kernels(unit: Unit, ceilings: Mapping[tuple[str, str], float]) -> list[Row]:
    """Check, then time; `ceilings` are what the machine reaches, by metric and dtype."""
    layer = Layer(**{name: unit.settings[name] for name in Layer.__dataclass_fields__})  # type: ignore[arg-type]
    shape = f"{layer.samples} x {layer.positions} x {layer.d_in} -> {layer.d_out}"
    inputs = _inputs(layer)
    calls = _kernel_calls(inputs)
    rows: list[Row] = []
    for name in [name for name in calls if name != "cublas"]:
        try:
            rows += _check(name, calls[name], inputs, TOLERANCE[layer.dtype])
        except Exception as error:  # not to be timed either; the others go on
            del calls[name]
            rows.append(error_row(name, message(error)))
    rounds, failed = take_turns(calls, unit.settings, event_seconds)
    rows += [error_row(name, said) for name, said in failed.items()]
    for name in (name for name in calls if name not in failed):
        operations, moved = work(name.removesuffix("-torch"), layer)
        flops, traffic = rate(name, rounds, operations), rate(name, rounds, moved)
        rows.append({"method": name, "metric": "tflops", **flops})
        rows.append({"method": name, "metric": "tbytes_per_s", **traffic})
        share = max(
            flops["value"] / ceilings["tflops", layer.dtype], traffic["value"] / ceilings["tbytes_per_s", "copy"]
        )
        rows.append({"method": name, "metric": "roofline_share", "value": share, "seconds": flops["seconds"]})
        if "cublas" in rounds[0]:
            ratio = quartiles(taken["cublas"] / taken[name] for taken in rounds)
            rows.append({"method": name, "metric": "ratio_to_cublas", **ratio, "seconds": flops["seconds"]})
    return [{**row, "kernel": row["method"], "shape": shape} for row in rows]


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


def _kernel_calls(inputs: Mapping[str, Tensor]) -> dict[str, Call]:
    """Return what is compared: the weight gradient alone, and each kernel and its twin."""
    from inrun_bench.attribution.kernels.gram_dot import gram_dot
    from inrun_bench.attribution.kernels.project_dot import project_dot
    from inrun_bench.attribution.kernels.wgrad_dot import wgrad_dot

    a, b, probe, a_val, b_val = inputs.values()
    rows, columns = b.flatten(0, 1), a.flatten(0, 1)  # [B T, d_out], [B T, d_in]
    calls: dict[str, Call] = {"cublas": lambda: torch.mm(rows.t(), columns)}
    for suffix, backend in (("", "triton"), ("-torch", "torch")):
        calls[f"wgrad-dot{suffix}"] = partial(wgrad_dot, a, b, probe, backend=backend)  # type: ignore[arg-type]
        calls[f"project-dot{suffix}"] = partial(project_dot, a, b, probe, backend=backend)  # type: ignore[arg-type]
        calls[f"gram-dot{suffix}"] = partial(gram_dot, a, b, a_val, b_val, backend=backend)  # type: ignore[arg-type]
    return calls


def _check(name: str, call: Call, inputs: Mapping[str, Tensor], tolerance: float) -> list[Row]:
    """Compare with float64, and one run with the next."""
    results = [_poisoned(call) for _ in range(2)]
    same = all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    kernel = name.removesuffix("-torch")
    *gradient, scores = results[0]
    errors = {"scores": _score_error(kernel, scores, inputs)}
    if gradient:
        errors["gradient"] = _gradient_error(gradient[0], inputs)
    rows = [
        _judged({"method": name, "metric": "error", "value": error, "of": of}, error <= tolerance, f"above {tolerance}")
        for of, error in errors.items()
    ]
    repeatable = {"method": name, "metric": "deterministic", "value": float(same)}
    return [*rows, _judged(repeatable, same or name != kernel, "bits differ")]  # no promise is made of the twins


def _judged(row: Row, passed: bool, otherwise: str) -> Row:
    if passed:
        return row
    return {**row, "status": "error", "message": f"{row['metric']} of {row['method']} is {row['value']:g}: {otherwise}"}


def _poisoned(call: Call) -> tuple[Tensor, ...]:
    """Return what `call` returns, [gradient,] scores, computed in memory that held no number before."""
    found = call()
    old = found if isinstance(found, tuple) else (found,)
    for tensor in old:
        tensor.fill_(torch.nan)
    del found, old, tensor  # the allocator hands the same memory out again
    found = call()
    return found if isinstance(found, tuple) else (found,)


def _gradient_error(gradient: Tensor, inputs: Mapping[str, Tensor]) -> float:
    """Compare rows and columns drawn at random; all where there are few."""
    a, b = (inputs[name].flatten(0, 1) for name in ("a", "b"))
    rows, columns = (torch.randperm(x.shape[1])[:SAMPLED].to(x.device) for x in (b, a))
    expected = b[:, rows].double().t() @ a[:, columns].double()
    return _relative(gradient[rows][:, columns], expected)


def _score_error(kernel: str, scores: Tensor, inputs: Mapping[str, Tensor]) -> float:
    """Compare the scores of a few samples, drawn at random."""
    a, b, probe, a_val, b_val = inputs.values()
    if kernel == "gram-dot":  # the probe in factors
        probe = b_val.double().t() @ a_val.double()
    samples = torch.randperm(len(a))[:4].to(a.device)
    expected = torch.stack([(b[i].double().t() @ a[i].double() * probe).sum() for i in samples])
    return _relative(scores[samples], expected)


def _relative(got: Tensor, expected: Tensor) -> float:
    error = float((got.double() - expected).norm() / expected.norm())
    return error if np.isfinite(error) else float("inf")
