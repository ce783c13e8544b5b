"""Triton kernel of ``embedding_dot``: gather rows of the probe, dot them with b's, in one pass over b.

All samples' positions are the rows, B T. A program takes a few of them over their whole width and writes one number a
row, ``parts [B, T]``, which are summed by sample in fixed order. Rows of padding read neither b nor the probe.

Bound by memory: b is read once, and one row of the probe for each of its rows. The config follows from the width alone,
and nothing is tuned.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from inrun_bench.attribution.products.triton.tiles import ceil_div, divisible, tile_constants

__all__ = ["CONFIGS", "attributes", "constexprs", "embedding_dot_triton", "embedding_kernel", "signature"]

CONFIGS: list[dict[str, int]] = [
    {"BLOCK_ROWS": 32, "BLOCK_D": 64, "num_warps": 4, "num_stages": 3},
    {"BLOCK_ROWS": 8, "BLOCK_D": 256, "num_warps": 4, "num_stages": 3},
    {"BLOCK_ROWS": 4, "BLOCK_D": 512, "num_warps": 4, "num_stages": 3},
    {"BLOCK_ROWS": 2, "BLOCK_D": 1024, "num_warps": 4, "num_stages": 3},
]
"""By width: the first whose BLOCK_D holds a row of b, or the last, which takes a wider one in pieces."""


@triton.jit  # type: ignore[untyped-decorator]
def embedding_kernel(  # type: ignore[no-untyped-def]
    ids_ptr,
    b_ptr,
    probe_ptr,
    parts_ptr,
    rows,
    positions,
    width,
    table,  # rows of the probe
    padding,  # -1 for none
    ids_b,
    ids_t,
    b_b,
    b_t,
    b_d,
    q_r,
    q_d,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write <Q[id], b> of this program's rows."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    sample = (row // positions).to(tl.int64)
    position = (row % positions).to(tl.int64)
    valid = row < rows
    index = tl.load(ids_ptr + sample * ids_b + position * ids_t, mask=valid, other=0).to(tl.int64)
    inside = (index >= 0) & (index < table)
    used = (valid & inside & (index != padding))[:, None]
    d = tl.arange(0, BLOCK_D)
    b_ptrs = b_ptr + (sample * b_b + position * b_t)[:, None] + d.to(tl.int64)[None, :] * b_d
    q_ptrs = probe_ptr + (index * q_r)[:, None] + d.to(tl.int64)[None, :] * q_d
    acc = tl.zeros((BLOCK_ROWS, BLOCK_D), dtype=tl.float32)
    for at in range(0, width, BLOCK_D):
        mask = used & (d[None, :] < width - at)
        b = tl.load(b_ptrs, mask=mask, other=0.0).to(tl.float32)
        acc += b * tl.load(q_ptrs, mask=mask, other=0.0).to(tl.float32)
        b_ptrs += BLOCK_D * b_d
        q_ptrs += BLOCK_D * q_d
    tl.store(parts_ptr + row, tl.where(inside, tl.sum(acc, 1), float("nan")), mask=valid)


def embedding_dot_triton(ids: Tensor, b: Tensor, probe: Tensor, padding_idx: int | None) -> Tensor:
    """Return the scores [B] of ids [B, T], b [B, T, d] and probe [rows, d]."""
    samples, positions, width = b.shape
    rows = samples * positions
    parts = torch.empty(samples, positions, dtype=torch.float32, device=b.device)
    config = next((config for config in CONFIGS if width <= config["BLOCK_D"]), CONFIGS[-1])
    sizes = (rows, positions, width, len(probe), -1 if padding_idx is None else padding_idx)
    grid = (ceil_div(rows, config["BLOCK_ROWS"]),)
    embedding_kernel[grid](ids, b, probe, parts, *sizes, *ids.stride(), *b.stride(), *probe.stride(), **config)
    return parts.sum(1)


def signature(dtype: str) -> dict[str, str]:
    """Return the types of the kernel's arguments for a b of a dtype ("bf16", "fp16" or "fp32"), ahead of time."""
    types = dict.fromkeys(embedding_kernel.arg_names, "i32")
    types.update(ids_ptr="*i64", b_ptr=f"*{dtype}", probe_ptr="*fp32", parts_ptr="*fp32")
    return types | dict.fromkeys(constexprs(CONFIGS[0]), "constexpr")


def constexprs(config: dict[str, int]) -> dict[str, Any]:
    """Return the arguments known ahead of time, for contiguous inputs."""
    return {"ids_t": 1, "b_d": 1, "q_d": 1, **tile_constants(config)}


def attributes() -> dict[tuple[int], list[list[Any]]]:
    """Return which arguments are multiples of 16, as the launcher finds them for the sizes of common models."""
    even = ["ids_ptr", "b_ptr", "probe_ptr", "parts_ptr", "rows", "width", "b_b", "b_t", "q_r"]
    return divisible(embedding_kernel, even)
