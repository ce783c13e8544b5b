"""Triton kernel of ``project_dot``: (x Q) in registers, dotted with y by row where it is formed.

All samples' positions are the rows, B T, of one matrix product x [rows, depth] by Q [depth, width]. A program forms one
tile [BLOCK_M, BLOCK_N] of it, over one stretch of the depth, multiplies it with the same tile of y and writes the sums
of its rows: one number for BLOCK_N of the product. A tile may span samples, so that one scheme serves T = 1 and T in
the thousands. ``parts [V, stretches, column tiles, B, T]`` is then summed in fixed order; no two programs write one
number, and the outcome is deterministic.

Where there are too few tiles to fill the chip (small batches, T = 1) the depth is cut in stretches: the scores are
linear in the product, so that its pieces may be dotted one by one.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from inrun_bench.attribution.products.backend import interpreted
from inrun_bench.attribution.products.triton.tiles import PROGRAMS, ceil_div, choose_tile, divisible, tile_constants

__all__ = [
    "CONFIGS",
    "CONFIGS_FLOAT32",
    "attributes",
    "constexprs",
    "project_dot_triton",
    "project_kernel",
    "signature",
]

CONFIGS: list[dict[str, int]] = [
    {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 4, "num_stages": 4},
    {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 4},
    {"BLOCK_M": 256, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3},
]
"""Candidates for half precision. All have one BLOCK_N, on which the number of parts depends."""

CONFIGS_FLOAT32: list[dict[str, int]] = [
    {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 32, "num_warps": 8, "num_stages": 3},
    {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 32, "num_warps": 8, "num_stages": 3},
]

SMALL = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2}
SMALL_PRODUCT = 2**20  # rows x depth x width up to which one small tile serves
STRETCH = 256  # of the depth, at least, for one program
GROUP = 8


@triton.jit  # type: ignore[untyped-decorator]
def project_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    y_ptr,
    probe_ptr,
    lengths_ptr,
    parts_ptr,
    rows,
    positions,
    depth,
    width,
    columns,  # column tiles of all probes
    span,  # of the depth, for one program; a multiple of BLOCK_K
    x_b,
    x_t,
    x_k,
    y_b,
    y_t,
    y_n,
    q_v,
    q_k,
    q_n,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,  # for the interpreter, which multiplies the bits of bfloat16
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Write the row sums of one tile of (x Q) * y, over one stretch of the depth."""
    # a group of row tiles visits all columns before the next group starts: x and Q are found in L2
    row_tiles = tl.cdiv(rows, BLOCK_M)
    stretch = tl.program_id(0) // (row_tiles * columns)
    tile = tl.program_id(0) % (row_tiles * columns)
    first = tile // (GROUP * columns) * GROUP
    size = min(row_tiles - first, GROUP)
    row_tile = first + (tile % (GROUP * columns)) % size
    column = (tile % (GROUP * columns)) // size
    probe_tiles = tl.cdiv(width, BLOCK_N)

    row = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    n = column % probe_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    start = stretch * span
    k = tl.arange(0, BLOCK_K)
    sample = (row // positions).to(tl.int64)
    position = (row % positions).to(tl.int64)
    valid = row < rows
    end = min(start + span, depth)
    if lengths_ptr is not None:
        valid = position < tl.load(lengths_ptr + sample, mask=valid, other=0)
        end = tl.where(tl.max(valid.to(tl.int32), 0) > 0, end, start)  # a tile of padding multiplies nothing

    k_first = (start + k).to(tl.int64)
    x_ptrs = x_ptr + (sample * x_b + position * x_t)[:, None] + k_first[None, :] * x_k
    q_ptrs = probe_ptr + (column // probe_tiles).to(tl.int64) * q_v + k_first[:, None] * q_k + n[None, :] * q_n
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for at in range(start, end, BLOCK_K):
        x = tl.load(x_ptrs, mask=valid[:, None] & (k[None, :] < depth - at), other=0.0)
        q = tl.load(q_ptrs, mask=(k[:, None] < depth - at) & (n[None, :] < width), other=0.0)
        if WIDEN:
            x, q = x.to(tl.float32), q.to(tl.float32)
        acc = tl.dot(x, q, acc, input_precision=PRECISION)
        x_ptrs += BLOCK_K * x_k
        q_ptrs += BLOCK_K * q_k

    y_ptrs = y_ptr + (sample * y_b + position * y_t)[:, None] + n.to(tl.int64)[None, :] * y_n
    y = tl.load(y_ptrs, mask=valid[:, None] & (n[None, :] < width), other=0.0)
    sums = tl.sum(acc * y.to(tl.float32), 1)
    stretches = tl.cdiv(depth, span)
    part = (column // probe_tiles * stretches + stretch) * probe_tiles + column % probe_tiles
    tl.store(parts_ptr + part.to(tl.int64) * rows + row, sums, mask=row < rows)


def project_dot_triton(x: Tensor, y: Tensor, probe: Tensor, lengths: Tensor | None, input_precision: str) -> Tensor:
    """Return the scores [V, B] of x [B, T, depth], y [B, T, width] and probe [V, depth, width], in the dtype of x."""
    samples, positions, depth = x.shape
    probes, _, width = probe.shape
    rows = samples * positions
    small = interpreted() or rows * depth * width <= SMALL_PRODUCT
    block_n = SMALL["BLOCK_N"] if small else CONFIGS[0]["BLOCK_N"]
    probe_tiles = ceil_div(width, block_n)
    columns = probes * probe_tiles
    span = _span(depth, ceil_div(rows, 64) * columns)
    stretches = ceil_div(depth, span)
    parts = torch.empty(probes, stretches * probe_tiles, samples, positions, dtype=torch.float32, device=x.device)
    lengths = None if lengths is None else lengths.to(torch.int32).contiguous()
    sizes = (rows, positions, depth, width, columns, span)
    arguments = (x, y, probe, lengths, parts, *sizes, *x.stride(), *y.stride(), *probe.stride())
    constants = {"PRECISION": input_precision, "WIDEN": interpreted(), "GROUP": GROUP}
    configs = CONFIGS_FLOAT32 if x.dtype == torch.float32 else CONFIGS
    config = SMALL if small else choose_tile(configs, rows, columns * stretches)
    grid = (ceil_div(rows, config["BLOCK_M"]) * columns * stretches,)
    project_kernel[grid](*arguments, **constants, **config)
    return parts.sum(1).sum(2)  # twice: a sum over both would copy, and this order is plain


def _span(depth: int, tiles: int) -> int:
    """Return how much of the depth a program takes, so that there are enough programs; whatever config is chosen."""
    stretches = max(1, min(PROGRAMS // tiles, depth // STRETCH))
    return ceil_div(ceil_div(depth, stretches), 128) * 128


def signature(dtype: str) -> dict[str, str]:
    """Return the types of the kernel's arguments for inputs of a dtype ("bf16", "fp16" or "fp32"), ahead of time."""
    types = dict.fromkeys(project_kernel.arg_names, "i32")
    types.update(x_ptr=f"*{dtype}", y_ptr=f"*{dtype}", probe_ptr=f"*{dtype}", parts_ptr="*fp32")
    return types | dict.fromkeys(constexprs(CONFIGS[0]), "constexpr")


def constexprs(config: dict[str, int], input_precision: str = "ieee") -> dict[str, Any]:
    """Return the arguments known ahead of time, for contiguous inputs without padding."""
    known = {"lengths_ptr": None, "x_k": 1, "y_n": 1, "q_n": 1}
    return {**known, "PRECISION": input_precision, "WIDEN": False, "GROUP": GROUP, **tile_constants(config)}


def attributes() -> dict[tuple[int], list[list[Any]]]:
    """Return which arguments are multiples of 16, as the launcher finds them for the sizes of common models."""
    pointers = ["x_ptr", "y_ptr", "probe_ptr", "parts_ptr"]
    even = [*pointers, "rows", "depth", "width", "span", "x_b", "x_t", "y_b", "y_t", "q_v", "q_k"]
    return divisible(project_kernel, even)
