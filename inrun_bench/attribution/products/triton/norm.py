"""Triton kernel of ``layer_norm_dot`` and ``rms_norm_dot``: one pass over a and b, one number a row.

A row, all that is normalised together, lies in registers whole: mean and variance are exact two-pass ones, without a
second pass over memory. A program holds the probes in registers and visits every so many rows, so that they are read
once for a program and not once for a row. ``parts [B, T]`` are summed by sample in fixed order.

Bound by memory: a and b are read once, 2 B T D numbers, for about ten operations each. The config follows from D alone,
and nothing is tuned.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from inrun_bench.attribution.products.triton.tiles import ceil_div, divisible, tile_constants

__all__ = ["CONFIGS", "attributes", "constexprs", "norm_dot_triton", "norm_kernel", "signature"]

CONFIGS: list[dict[str, int]] = [
    {"BLOCK_ROWS": 32, "BLOCK_D": 64, "num_warps": 4, "num_stages": 2},
    {"BLOCK_ROWS": 8, "BLOCK_D": 256, "num_warps": 4, "num_stages": 2},
    {"BLOCK_ROWS": 4, "BLOCK_D": 512, "num_warps": 4, "num_stages": 2},
    {"BLOCK_ROWS": 2, "BLOCK_D": 1024, "num_warps": 4, "num_stages": 2},
    {"BLOCK_ROWS": 1, "BLOCK_D": 2048, "num_warps": 4, "num_stages": 2},
    {"BLOCK_ROWS": 1, "BLOCK_D": 4096, "num_warps": 8, "num_stages": 2},
    {"BLOCK_ROWS": 1, "BLOCK_D": 8192, "num_warps": 16, "num_stages": 2},
]
"""By width: the first whose BLOCK_D holds the row serves it. Twice the widest would spill registers."""

PROGRAMS = 528  # four for each processor of an H100 or H200


@triton.jit  # type: ignore[untyped-decorator]
def norm_kernel(  # type: ignore[no-untyped-def]
    a_ptr,
    b_ptr,
    weight_ptr,
    bias_ptr,
    parts_ptr,
    rows,
    positions,
    width,
    eps,
    a_b,
    a_t,
    a_d,
    b_b,
    b_t,
    b_d,
    CENTRED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write <xhat * q_weight + q_bias, b> of every row of this program."""
    d = tl.arange(0, BLOCK_D)[None, :]
    inside = d < width
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + d, mask=inside, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + d, mask=inside, other=0.0).to(tl.float32)
    d_far = d.to(tl.int64)
    for tile in range(tl.program_id(0), tl.cdiv(rows, BLOCK_ROWS), tl.num_programs(0)):
        row = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        sample = (row // positions).to(tl.int64)
        position = (row % positions).to(tl.int64)
        mask = (row < rows)[:, None] & inside
        b_ptrs = b_ptr + (sample * b_b + position * b_t)[:, None] + d_far * b_d
        b = tl.load(b_ptrs, mask=mask, other=0.0).to(tl.float32)
        tangent = tl.zeros((BLOCK_ROWS, BLOCK_D), dtype=tl.float32)
        if weight_ptr is not None:
            a_ptrs = a_ptr + (sample * a_b + position * a_t)[:, None] + d_far * a_d
            a = tl.load(a_ptrs, mask=mask, other=0.0).to(tl.float32)
            if CENTRED:
                mean = tl.sum(a, 1) / width
                a = tl.where(inside, a - mean[:, None], 0.0)
            rstd = 1.0 / tl.sqrt(tl.sum(a * a, 1) / width + eps)
            tangent += a * rstd[:, None] * weight
        if bias_ptr is not None:
            tangent += bias
        tl.store(parts_ptr + row, tl.sum(tangent * b, 1), mask=row < rows)


def norm_dot_triton(
    a: Tensor, b: Tensor, q_weight: Tensor | None, q_bias: Tensor | None, eps: float, centred: bool
) -> Tensor:
    """Return the scores [B] of a and b [B, T, D] and probes [D]."""
    samples, positions, width = a.shape
    rows = samples * positions
    parts = torch.empty(samples, positions, dtype=torch.float32, device=a.device)
    config = next(config for config in CONFIGS if width <= config["BLOCK_D"])
    weight, bias = (None if q is None else q.contiguous() for q in (q_weight, q_bias))
    sizes = (rows, positions, width, eps)
    grid = (min(ceil_div(rows, config["BLOCK_ROWS"]), PROGRAMS),)
    norm_kernel[grid](a, b, weight, bias, parts, *sizes, *a.stride(), *b.stride(), CENTRED=centred, **config)
    return parts.sum(1)


def signature(dtype: str) -> dict[str, str]:
    """Return the types of the kernel's arguments for inputs of a dtype ("bf16", "fp16" or "fp32"), ahead of time."""
    types = dict.fromkeys(norm_kernel.arg_names, "i32")
    types.update(a_ptr=f"*{dtype}", b_ptr=f"*{dtype}", weight_ptr="*fp32", bias_ptr="*fp32", parts_ptr="*fp32")
    return types | {"eps": "fp32"} | dict.fromkeys(constexprs(CONFIGS[0]), "constexpr")


def constexprs(config: dict[str, int], centred: bool = True) -> dict[str, Any]:
    """Return the arguments known ahead of time, for contiguous inputs and both probes."""
    return {"a_d": 1, "b_d": 1, "CENTRED": centred, **tile_constants(config)}


def attributes() -> dict[tuple[int], list[list[Any]]]:
    """Return which arguments are multiples of 16, as the launcher finds them for the sizes of common models."""
    pointers = ["a_ptr", "b_ptr", "weight_ptr", "bias_ptr", "parts_ptr"]
    even = [*pointers, "rows", "width", "a_b", "a_t", "b_b", "b_t"]
    return divisible(norm_kernel, even)
