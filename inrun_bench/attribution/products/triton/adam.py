"""Triton kernel of ``adam_secant``: one pass over weights, gradient and moments.

Bound by memory: four tensors are read once and two written, for some twenty operations an element. Numbers that are the
same for a whole parameter lie on the device, where the step's counter of a fused optimiser does.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from inrun_bench.attribution.products.adam_secant import AdamNumbers, Decay
from inrun_bench.attribution.products.triton.tiles import divisible, tile_constants

__all__ = ["CONFIGS", "adam_kernel", "adam_secant_triton", "attributes", "constexprs", "signature"]

CONFIGS: list[dict[str, int]] = [{"BLOCK": 1024, "num_warps": 4, "num_stages": 2}]

TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


@triton.jit
def _hypot(x, y):  # type: ignore[no-untyped-def]
    x, y = tl.abs(x), tl.abs(y)
    large = tl.maximum(x, y)
    share = tl.minimum(x, y) / tl.maximum(large, TINY)
    return large * tl.sqrt(1.0 + share * share)


@triton.jit  # type: ignore[untyped-decorator]
def adam_kernel(  # type: ignore[no-untyped-def]
    w_ptr,
    g_ptr,
    average_ptr,
    square_ptr,
    numbers_ptr,
    slope_ptr,
    empty_ptr,
    size,
    eps,
    COUPLED: tl.constexpr,
    DECOUPLED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write D and u(0) of BLOCK elements."""
    k = tl.load(numbers_ptr).to(tl.float32)
    gain = tl.load(numbers_ptr + 1).to(tl.float32)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    g = tl.load(g_ptr + at, mask=mask, other=0.0).to(tl.float32)
    h = g
    both = g
    past = tl.zeros((BLOCK,), dtype=tl.float32)
    rest = tl.zeros((BLOCK,), dtype=tl.float32)
    if average_ptr is not None:
        average = tl.load(average_ptr + at, mask=mask, other=0.0).to(tl.float32)
        rest = average * tl.load(numbers_ptr + 2).to(tl.float32)
    if square_ptr is not None:
        square = tl.load(square_ptr + at, mask=mask, other=0.0).to(tl.float32)
        past = tl.sqrt(square * tl.load(numbers_ptr + 3).to(tl.float32))
    root_0 = past
    if COUPLED or DECOUPLED:
        w = tl.load(w_ptr + at, mask=mask, other=0.0).to(tl.float32)
        decayed = w * tl.load(numbers_ptr + 4).to(tl.float32)
    if COUPLED:
        h = g + decayed
        both = h + decayed
        root_0 = _hypot(decayed * k, past)
        rest += gain * decayed
    root = _hypot(h * k, past)
    rest = rest / (root_0 + eps)
    share = both / tl.maximum(root + root_0, TINY)
    slope = (gain - k * k * rest * share) / (root + eps)
    if DECOUPLED:
        rest += decayed
    tl.store(slope_ptr + at, slope, mask=mask)
    tl.store(empty_ptr + at, rest, mask=mask)


def adam_secant_triton(
    weights: Tensor,
    gradient: Tensor,
    moments: tuple[Tensor, Tensor] | None,
    numbers: AdamNumbers,
    eps: float,
    decay: Decay,
) -> tuple[Tensor, Tensor]:
    """Return D and u(0) of one parameter."""
    if not isinstance(numbers, Tensor):
        numbers = torch.tensor([float(x) for x in numbers], dtype=torch.float64, device=weights.device)
    w, g = weights.contiguous(), gradient.contiguous()
    average, square = (None, None) if moments is None else (x.contiguous() for x in moments)
    slope = torch.empty(weights.shape, dtype=torch.float32, device=weights.device)
    empty = torch.empty(weights.shape, dtype=weights.dtype, device=weights.device)
    config = CONFIGS[0]
    grid = (triton.cdiv(w.numel(), config["BLOCK"]),)
    pointers = (w, g, average, square, numbers, slope, empty)
    adam_kernel[grid](*pointers, w.numel(), eps, COUPLED=decay == "coupled", DECOUPLED=decay == "decoupled", **config)
    return slope, empty


def signature(dtype: str) -> dict[str, str]:
    """Return the types of the kernel's arguments for weights of a dtype ("bf16", "fp16" or "fp32"), ahead of time."""
    types = dict.fromkeys(adam_kernel.arg_names, f"*{dtype}")
    types.update(numbers_ptr="*fp64", slope_ptr="*fp32", size="i32", eps="fp32")
    return types | dict.fromkeys(constexprs(CONFIGS[0]), "constexpr")


def constexprs(config: dict[str, int]) -> dict[str, Any]:
    """Return the arguments known ahead of time, for AdamW."""
    return {"COUPLED": False, "DECOUPLED": True, **tile_constants(config)}


def attributes() -> dict[tuple[int], list[list[Any]]]:
    """Return which arguments are multiples of 16, as the launcher finds them for the sizes of common models."""
    pointers = ["w_ptr", "g_ptr", "average_ptr", "square_ptr", "numbers_ptr", "slope_ptr", "empty_ptr"]
    return divisible(adam_kernel, [*pointers, "size"])
