"""Triton kernel of ``gram_dot``: two tables of inner products, tile by tile, multiplied in registers.

The rows are all samples' positions, B T; the columns the validation samples' positions, N. A program forms one tile
[BLOCK_M, BLOCK_N] of a a_val^T, then the same tile of b b_val^T, in two accumulators, and writes the row sums of their
product: ``parts [column tiles, B, T]``, which are summed in fixed order. A tile may span samples. Neither table exists
outside the registers, and no two programs write one number, so that the outcome is deterministic.

Two accumulators share the registers that one has in a plain product, which bounds the tile to 256 x 64.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from inrun_bench.attribution.products.backend import interpreted
from inrun_bench.attribution.products.triton.tiles import ceil_div, choose_tile, divisible, tile_constants

__all__ = ["CONFIGS", "CONFIGS_FLOAT32", "attributes", "constexprs", "gram_dot_triton", "gram_kernel", "signature"]

CONFIGS: list[dict[str, int]] = [
    {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 4},
    {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 8, "num_stages": 4},
    {"BLOCK_M": 256, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 8, "num_stages": 4},
]
"""Candidates for half precision. All have one BLOCK_N, on which the number of parts depends."""

CONFIGS_FLOAT32: list[dict[str, int]] = [
    {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3},
    {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 8, "num_stages": 3},
]

SMALL = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2}
SMALL_PRODUCT = 2**20  # rows x columns x depth up to which one small tile serves


@triton.jit  # type: ignore[untyped-decorator]
def gram_kernel(  # type: ignore[no-untyped-def]
    a_ptr,
    b_ptr,
    a_val_ptr,
    b_val_ptr,
    parts_ptr,
    rows,
    positions,
    columns,
    d_in,
    d_out,
    a_b,
    a_t,
    a_k,
    b_b,
    b_t,
    b_k,
    a_val_n,
    a_val_k,
    b_val_n,
    b_val_k,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write the row sums of one tile of (a a_val^T) * (b b_val^T)."""
    column_tiles = tl.cdiv(columns, BLOCK_N)
    column_tile = tl.program_id(0) % column_tiles  # neighbours read the same rows, which are found in L2
    row = (tl.program_id(0) // column_tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    sample = (row // positions).to(tl.int64)
    position = (row % positions).to(tl.int64)
    valid, given = row < rows, n < columns
    n_far = n.to(tl.int64)
    of_inputs = _inner_products(
        a_ptr + sample * a_b + position * a_t,
        a_val_ptr + n_far * a_val_n,
        valid,
        given,
        d_in,
        a_k,
        a_val_k,
        PRECISION,
        WIDEN,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    of_gradients = _inner_products(
        b_ptr + sample * b_b + position * b_t,
        b_val_ptr + n_far * b_val_n,
        valid,
        given,
        d_out,
        b_k,
        b_val_k,
        PRECISION,
        WIDEN,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    sums = tl.sum(of_inputs * of_gradients, 1)
    tl.store(parts_ptr + column_tile.to(tl.int64) * rows + row, sums, mask=valid)


@triton.jit  # type: ignore[untyped-decorator]
def _inner_products(  # type: ignore[no-untyped-def]
    x_rows,  # pointers [BLOCK_M]
    y_rows,  # pointers [BLOCK_N]
    valid,
    given,
    depth,
    x_k,
    y_k,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,  # for the interpreter, which multiplies the bits of bfloat16
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    k = tl.arange(0, BLOCK_K)
    x_ptrs = x_rows[:, None] + k.to(tl.int64)[None, :] * x_k
    y_ptrs = y_rows[None, :] + k.to(tl.int64)[:, None] * y_k
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for at in range(0, depth, BLOCK_K):
        x = tl.load(x_ptrs, mask=valid[:, None] & (k[None, :] < depth - at), other=0.0)
        y = tl.load(y_ptrs, mask=given[None, :] & (k[:, None] < depth - at), other=0.0)
        if WIDEN:
            x, y = x.to(tl.float32), y.to(tl.float32)
        acc = tl.dot(x, y, acc, input_precision=PRECISION)
        x_ptrs += BLOCK_K * x_k
        y_ptrs += BLOCK_K * y_k
    return acc


def gram_dot_triton(a: Tensor, b: Tensor, a_val: Tensor, b_val: Tensor, input_precision: str) -> Tensor:
    """Return the scores [B] of a [B, T, d_in] and b [B, T, d_out], of the dtypes of a_val and b_val."""
    samples, positions, d_in = a.shape
    columns, d_out = b_val.shape
    rows = samples * positions
    small = interpreted() or rows * columns * max(d_in, d_out) <= SMALL_PRODUCT
    column_tiles = ceil_div(columns, (SMALL if small else CONFIGS[0])["BLOCK_N"])
    parts = torch.empty(column_tiles, samples, positions, dtype=torch.float32, device=a.device)
    sizes = (rows, positions, columns, d_in, d_out)
    strides = (*a.stride(), *b.stride(), *a_val.stride(), *b_val.stride())
    constants = {"PRECISION": input_precision, "WIDEN": interpreted()}
    configs = CONFIGS_FLOAT32 if torch.float32 in (a.dtype, b.dtype) else CONFIGS
    config = SMALL if small else choose_tile(configs, rows, column_tiles)
    grid = (ceil_div(rows, config["BLOCK_M"]) * column_tiles,)
    gram_kernel[grid](a, b, a_val, b_val, parts, *sizes, *strides, **constants, **config)
    return parts.sum(0).sum(1)  # twice: a sum over both would copy, and this order is plain


def signature(dtype: str) -> dict[str, str]:
    """Return the types of the kernel's arguments for inputs of a dtype ("bf16", "fp16" or "fp32"), ahead of time."""
    types = dict.fromkeys(gram_kernel.arg_names, "i32")
    types.update(dict.fromkeys(("a_ptr", "b_ptr", "a_val_ptr", "b_val_ptr"), f"*{dtype}"), parts_ptr="*fp32")
    return types | dict.fromkeys(constexprs(CONFIGS[0]), "constexpr")


def constexprs(config: dict[str, int], input_precision: str = "ieee") -> dict[str, Any]:
    """Return the arguments known ahead of time, for contiguous inputs."""
    strides = dict.fromkeys(("a_k", "b_k", "a_val_k", "b_val_k"), 1)
    return {**strides, "PRECISION": input_precision, "WIDEN": False, **tile_constants(config)}


def attributes() -> dict[tuple[int], list[list[Any]]]:
    """Return which arguments are multiples of 16, as the launcher finds them for the sizes of common models."""
    pointers = ["a_ptr", "b_ptr", "a_val_ptr", "b_val_ptr", "parts_ptr"]
    even = [*pointers, "rows", "columns", "d_in", "d_out", "a_b", "a_t", "b_b", "b_t", "a_val_n", "b_val_n"]
    return divisible(gram_kernel, even)
