"""Triton kernel of ``adam_secant``: one launch and one pass over weights, gradients and moments of all parameters.

Bound by memory: four tensors are read once and two written, for some twenty operations an element. A launch takes a
host as long as millions of elements take a GPU, and models have many small parameters, so that one launch serves them
all: tensors are found by their addresses, in a table on the device, as are the numbers that are the same for a whole
parameter. A program takes up to CHUNK elements of one parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from inrun_bench.attribution.products.triton.tiles import tile_constants

__all__ = ["CONFIGS", "adam_kernel", "adam_secant_triton", "attributes", "constexprs", "signature"]

CONFIGS: list[dict[str, int]] = [{"BLOCK": 1024, "CHUNK": 8192, "num_warps": 4, "num_stages": 2}]

ALIGNED = 64  # elements at which the results of a parameter begin, in one memory for all

TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


@triton.jit
def _hypot(x, y):  # type: ignore[no-untyped-def]
    x, y = tl.abs(x), tl.abs(y)
    large = tl.maximum(x, y)
    share = tl.minimum(x, y) / tl.maximum(large, TINY)
    return large * tl.sqrt(1.0 + share * share)


@triton.jit  # type: ignore[untyped-decorator]
def _address(table_ptr, column, like_ptr, EVEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return a pointer of the type of another, known to be a multiple of 16 if that is so."""
    address = tl.load(table_ptr + column).to(like_ptr.dtype)
    if EVEN:
        address = tl.multiple_of(address, 16)
    return address


@triton.jit  # type: ignore[untyped-decorator]
def adam_kernel(  # type: ignore[no-untyped-def]
    w_like,
    g_like,
    average_like,
    square_like,
    empty_like,
    table_ptr,
    share_ptr,
    numbers_ptr,
    slope_ptr,
    eps,
    COLUMNS: tl.constexpr,
    COUPLED: tl.constexpr,
    DECOUPLED: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write D and u(0) of CHUNK elements of a parameter."""
    share_ptr += 2 * tl.program_id(0)
    parameter = tl.load(share_ptr).to(tl.int64)
    start = tl.load(share_ptr + 1).to(tl.int64)
    table_ptr += parameter * 6
    size = tl.load(table_ptr + 4)
    into = tl.load(table_ptr + 5)  # where its results begin
    start = tl.multiple_of(start, 16)
    into = tl.multiple_of(into, 16)
    if EVEN:
        size = tl.multiple_of(size, 16)
    numbers_ptr += parameter * COLUMNS
    k = tl.load(numbers_ptr).to(tl.float32)
    gain = tl.load(numbers_ptr + 1).to(tl.float32)
    carried = tl.load(numbers_ptr + 2).to(tl.float32)
    kept = tl.load(numbers_ptr + 3).to(tl.float32)
    decay = tl.load(numbers_ptr + 4).to(tl.float32)
    g_ptr = _address(table_ptr, 1, g_like, EVEN)
    for at in range(0, CHUNK, BLOCK):
        element = start + at + tl.arange(0, BLOCK)
        mask = element < size
        g = tl.load(g_ptr + element, mask=mask, other=0.0).to(tl.float32)
        h = g
        both = g
        past = tl.zeros((BLOCK,), dtype=tl.float32)
        rest = tl.zeros((BLOCK,), dtype=tl.float32)
        if average_like is not None:
            average_ptr = _address(table_ptr, 2, average_like, EVEN)
            rest = tl.load(average_ptr + element, mask=mask, other=0.0).to(tl.float32) * carried
        if square_like is not None:
            square_ptr = _address(table_ptr, 3, square_like, EVEN)
            past = tl.sqrt(tl.load(square_ptr + element, mask=mask, other=0.0).to(tl.float32) * kept)
        root_0 = past
        if COUPLED or DECOUPLED:
            w_ptr = _address(table_ptr, 0, w_like, EVEN)
            decayed = tl.load(w_ptr + element, mask=mask, other=0.0).to(tl.float32) * decay
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
        tl.store(slope_ptr + into + element, slope, mask=mask)
        tl.store(empty_like + into + element, rest, mask=mask)


def adam_secant_triton(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    moments: Sequence[tuple[Tensor, Tensor] | None],
    numbers: Tensor | Sequence[Sequence[float]],
    eps: float,
    decay: str,
) -> list[tuple[Tensor, Tensor]]:
    """Return D and u(0) of each parameter; one launch for all whose tensors are of the same dtypes."""
    device = weights[0].device
    if not isinstance(numbers, Tensor):
        numbers = torch.tensor([[float(x) for x in row] for row in numbers], dtype=torch.float64, device=device)
    kinds: dict[Any, list[int]] = {}
    for slot, (w, g, of_w) in enumerate(zip(weights, gradients, moments, strict=True)):
        kinds.setdefault((w.dtype, g.dtype, *(x.dtype for x in of_w or ())), []).append(slot)
    results: dict[int, tuple[Tensor, Tensor]] = {}
    for slots in kinds.values():
        own = numbers if len(slots) == len(weights) else torch.stack([numbers[slot] for slot in slots])
        columns = [[weights[slot].contiguous() for slot in slots], [gradients[slot].contiguous() for slot in slots]]
        pairs = [pair for slot in slots if (pair := moments[slot]) is not None]
        columns += [[x.contiguous() for x in column] for column in zip(*pairs, strict=True)]
        results |= dict(zip(slots, _launched(columns, own, eps, decay), strict=True))
    return [results[slot] for slot in range(len(weights))]


def _launched(
    columns: Sequence[Sequence[Tensor]], numbers: Tensor, eps: float, decay: str
) -> list[tuple[Tensor, Tensor]]:
    """Return the results for columns of contiguous weights, gradients and, where there are any, moments."""
    weights, config = columns[0], CONFIGS[0]
    sizes = tuple(w.numel() for w in weights)
    padded = [-(-size // ALIGNED) * ALIGNED for size in sizes]
    device = weights[0].device
    slope = torch.empty(sum(padded), dtype=torch.float32, device=device)
    empty = torch.empty(sum(padded), dtype=weights[0].dtype, device=device)
    addresses = np.zeros((len(weights), 6), dtype=np.int64)
    for number, column in enumerate(columns):
        addresses[:, number] = [x.data_ptr() for x in column]
    addresses[:, 4] = sizes
    addresses[1:, 5] = np.cumsum(padded)[:-1]
    even = not (addresses[:, :5] % 16).any()  # then a thread reads several elements at a time
    table = torch.from_numpy(addresses)
    if device.type == "cuda":
        table = table.pin_memory().to(device, non_blocking=True)
    share = _shares(sizes, config["CHUNK"], device)
    if len(share):
        likes = [*(column[0] for column in columns), *[None] * (4 - len(columns))]
        adam_kernel[(len(share),)](
            *likes,
            empty,
            table,
            share,
            numbers,
            slope,
            eps,
            COLUMNS=numbers.shape[1],
            COUPLED=decay == "coupled",
            DECOUPLED=decay == "decoupled",
            EVEN=even,
            **config,
        )
    parts = zip(slope.split(padded), empty.split(padded), weights, strict=True)
    return [(s[: w.numel()].view(w.shape), e[: w.numel()].view(w.shape)) for s, e, w in parts]


@lru_cache(maxsize=16)
def _shares(sizes: tuple[int, ...], chunk: int, device: torch.device) -> Tensor:
    """Return the parameter and the first element of each program, int32 [programs, 2]."""
    counts = [-(-size // chunk) for size in sizes]
    rows = np.empty((sum(counts), 2), dtype=np.int64)
    rows[:, 0] = np.repeat(np.arange(len(sizes)), counts)
    rows[:, 1] = np.concatenate([np.arange(count) for count in counts]) * chunk if counts else 0
    return torch.from_numpy(rows).to(device)


def signature(dtype: str) -> dict[str, str]:
    """Return the types of the kernel's arguments for weights of a dtype ("bf16", "fp16" or "fp32"), ahead of time."""
    types = dict.fromkeys(adam_kernel.arg_names, f"*{dtype}")
    types.update(table_ptr="*i64", share_ptr="*i64", numbers_ptr="*fp64", slope_ptr="*fp32", eps="fp32")
    return types | dict.fromkeys(constexprs(CONFIGS[0]), "constexpr")


def constexprs(config: dict[str, int]) -> dict[str, Any]:
    """Return the arguments known ahead of time, for AdamW."""
    return {"COLUMNS": 5, "COUPLED": False, "DECOUPLED": True, "EVEN": True, **tile_constants(config)}


def attributes() -> dict[tuple[int], list[list[Any]]]:
    """Return which arguments are multiples of 16: the launcher's tables, and all else is found in them."""
    names = ["empty_like", "table_ptr", "share_ptr", "numbers_ptr", "slope_ptr"]
    return {(adam_kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in names}
