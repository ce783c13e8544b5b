"""How a weight gradient with scores is shared out over a GPU, and launched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from inrun_bench.attribution.products.backend import interpreted
from inrun_bench.attribution.products.triton.tiles import ceil_div
from inrun_bench.attribution.products.triton.wgrad import (
    INTERPRETED,
    Config,
    candidates,
    constexprs,
    finish_kernel,
    wgrad_kernel,
)

__all__ = ["Work", "choose_work", "launch", "tune"]

FINISH_BLOCK = 1024

TUNED: dict[tuple[Any, ...], Config] = {}
"""What :func:`tune` found, by problem."""


@dataclass(frozen=True)
class Work:
    """How a problem is shared out: `splits` runs of samples, each cut into `chunks` of `chunk_positions`."""

    config: Config
    splits: int
    chunks: int
    chunk_positions: int


def launch(
    a: Tensor,
    b: Tensor,
    probes: Tensor,
    bias_probes: Tensor | None,
    lengths: Tensor | None,
    input_precision: str,
    work: Work | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Run the kernels.

    Parameters
    ----------
    a, b : Tensor [B, T, d_in], [B, T, d_out]
        Of one dtype and any strides; no size is zero.
    probes : Tensor [V, d_out, d_in]
        Of any strides. The gradient takes their layout, so that a transposed weight gets a transposed gradient.
    bias_probes : Tensor [V, d_out], optional
    lengths : Tensor, optional
        int [B] or bool [B, T].
    input_precision : {"ieee", "tf32", "tf32x3"}
        How float32 inputs are multiplied.
    work : Work, optional
        In place of what :func:`choose_work` says.

    Returns
    -------
    grad : Tensor [d_out, d_in], float32
    bias_grad : Tensor [d_out], float32, or None
    scores : Tensor [V, B], float32
    """
    by_column = _by_column(probes)
    described = probes.transpose(1, 2) if by_column else probes
    config: Config | None = INTERPRETED if interpreted() else None
    if TUNED and config is None:
        config = TUNED.get(_problem(a, b, probes, bias_probes, lengths))
    plan = _plan(
        (*a.shape, *probes.shape[:2]),
        a.dtype == torch.float32,
        _describable(a, b, described, lengths),
        bias_probes is not None,
        0 if lengths is None else lengths.dim(),
        input_precision,
        by_column,
        a.device,
        config,
        work,
    )

    def empty(shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=a.device)

    grads, parts, scores = map(empty, (plan.grads, plan.parts, plan.scores))
    strides = (grads.stride(0), grads.stride(2), grads.stride(1)) if by_column else grads.stride()
    biases = bias_grad = parts
    if bias_probes is not None:
        biases, bias_grad = map(empty, (plan.biases, plan.bias))
        bias_probes = bias_probes.float().contiguous()
    kept = None if lengths is None else lengths.to(torch.uint8 if lengths.dim() == 2 else torch.int32).contiguous()
    read: tuple[Any, ...] = (a, b, probes)
    if plan.work.config.descriptors:
        read = tuple(_descriptor(x, *block) for x, block in zip((a, b, described), plan.blocks, strict=True))
    wgrad_kernel[plan.grid](
        *read,
        parts if bias_probes is None else bias_probes,
        parts if kept is None else kept,
        grads,
        biases,
        parts,
        *plan.sizes,
        *a.stride(),
        *b.stride(),
        *probes.stride(),
        *strides,
        **plan.constants,
    )
    grad = grads[0]
    if plan.work.splits > 1:
        grad = torch.empty_like(grad)
    finish_kernel[plan.finish_grid](
        grads, grad, biases, bias_grad, parts, scores, *plan.finish_sizes, BLOCK=FINISH_BLOCK
    )
    return grad.t() if by_column else grad, None if bias_probes is None else bias_grad, scores


@dataclass(frozen=True)
class _Plan:
    """All that the kernels' launch needs and that follows from sizes alone, since working it out takes a host longer.

    Attributes
    ----------
    work : Work
    grads, parts, scores, biases, bias : tuple of int
        Shapes of what is written.
    blocks : tuple of (int, int)
        Of inputs, output gradients and probes, that descriptors describe.
    grid, finish_grid, sizes, finish_sizes, constants
        Of the two kernels.
    """

    work: Work
    grads: tuple[int, ...]
    parts: tuple[int, ...]
    scores: tuple[int, ...]
    biases: tuple[int, ...]
    bias: tuple[int, ...]
    blocks: tuple[tuple[int, int], ...]
    grid: tuple[int, int]
    finish_grid: tuple[int]
    sizes: tuple[int, ...]
    finish_sizes: tuple[int, ...]
    constants: dict[str, Any]


@lru_cache(maxsize=4096)
def _plan(
    problem: tuple[int, ...],
    single: bool,
    descriptors: bool,
    bias: bool,
    lengths: int,
    input_precision: str,
    by_column: bool,
    device: torch.device,
    config: Config | None,
    work: Work | None,
) -> _Plan:
    n_samples, n_positions, d_in, n_probes, d_out = problem
    if work is None:
        if config is not None and config.descriptors and not descriptors:
            config = None
        work = choose_work(n_samples, n_positions, d_in, d_out, single, descriptors, _processors(device), config)
    config, splits, chunks = work.config, work.splits, work.chunks
    columns = ceil_div(d_in, config.block_n)
    tiles = ceil_div(d_out, config.block_m) * columns
    probe_block = (config.block_n, config.block_m) if by_column else (config.block_m, config.block_n)
    grad_programs = 0 if splits == 1 else ceil_div(d_in * d_out, FINISH_BLOCK)
    bias_programs = ceil_div(d_out, FINISH_BLOCK) if bias else 0
    run = ceil_div(n_samples * chunks, splits)
    constants = constexprs(
        config, probes=n_probes, bias=bias, lengths=lengths, input_precision=input_precision, by_column=by_column
    )
    finish = (splits, d_in * d_out, splits * columns, d_out, tiles, n_samples, chunks, grad_programs, bias_programs)
    return _Plan(
        work=work,
        grads=(splits, *((d_in, d_out) if by_column else (d_out, d_in))),
        parts=(n_probes, tiles, n_samples, chunks),
        scores=(n_probes, n_samples),
        biases=(splits, columns, d_out),
        bias=(d_out,),
        blocks=((config.block_t, config.block_n), (config.block_t, config.block_m), probe_block),
        grid=(tiles, splits),
        finish_grid=(grad_programs + bias_programs + n_probes * n_samples,),
        sizes=(n_samples, n_positions, d_in, d_out, chunks, work.chunk_positions, run),
        finish_sizes=finish,
        constants=constants | {"num_warps": config.num_warps, "num_stages": config.num_stages},
    )


@cache
def choose_work(
    n_samples: int,
    n_positions: int,
    d_in: int,
    d_out: int,
    single: bool,
    descriptors: bool,
    processors: int,
    config: Config | None = None,
) -> Work:
    """Return the candidate, splits and chunks whose busiest processor is done first; from sizes, never from timing.

    The unit of time is a step of a program: its products, and its loads as far as they are not hidden. At a sample's
    end a program drains its loads and takes the score (3 steps); at its own end it writes its tile (5), which is read
    again if there are several splits (5, and 6 for a kernel's start). Estimates for an H100, not measured.
    """
    best, least = None, math.inf
    for candidate in candidates(single, descriptors) if config is None else [config]:
        tiles = ceil_div(d_out, candidate.block_m) * ceil_div(d_in, candidate.block_n)
        step = candidate.block_m * candidate.block_n + 48 * (candidate.block_m + candidate.block_n)
        for chunks in (1, 2, 4, 8, 16):
            steps = ceil_div(ceil_div(n_positions, chunks), candidate.block_t)
            if chunks > 1 and steps < 4:
                break
            for splits in range(1, min(n_samples * chunks, 64) + 1):
                run = ceil_div(n_samples * chunks, splits)
                if candidate.one_accumulator and config is None and (run > 64 * chunks or single):
                    continue
                waves = ceil_div(tiles * splits, processors)
                again = 6 + 5 * tiles * splits / processors if splits > 1 else 0
                time = (waves * (run * (steps + 3) + 5) + again) * step
                if time < least:
                    needed = ceil_div(n_samples * chunks, run)
                    best, least = Work(candidate, needed, chunks, steps * candidate.block_t), time
    assert best is not None
    return best


def tune(
    a: Tensor,
    b: Tensor,
    probes: Tensor,
    bias_probes: Tensor | None = None,
    lengths: Tensor | None = None,
    input_precision: str = "ieee",
) -> Config:
    """Time all candidates on the GPU, and take the fastest for such a problem from now on.

    Not done unasked: two runs that time differently would add in different orders, and differ in their last bits.
    """
    single, d_out = a.dtype == torch.float32, b.shape[-1]
    descriptors = _describable(a, b, probes.transpose(1, 2) if _by_column(probes) else probes, lengths)
    times: dict[Config, float] = {}
    for config in candidates(single, descriptors):
        work = choose_work(*a.shape, d_out, single, descriptors, _processors(a.device), config)
        try:
            times[config] = triton.testing.do_bench(
                lambda work=work: launch(a, b, probes, bias_probes, lengths, input_precision, work)
            )
        except triton.OutOfResources:
            continue
    fastest = min(times, key=times.__getitem__)
    TUNED[_problem(a, b, probes, bias_probes, lengths)] = fastest
    return fastest


def _by_column(probes: Tensor) -> bool:
    return probes.stride(2) != 1 and probes.stride(1) == 1


def _describable(a: Tensor, b: Tensor, probes: Tensor, lengths: Tensor | None) -> bool:
    """Return whether tensor descriptors can describe what is read."""
    if lengths is not None and lengths.dim() == 2:
        return False
    for x in (a, b, probes):
        strides = [stride for stride, length in zip(x.stride()[:-1], x.shape[:-1], strict=True) if length > 1]
        if x.stride(-1) != 1 or x.data_ptr() % 16 or any(s <= 0 or s * x.element_size() % 16 for s in strides):
            return False
    return True


def _descriptor(x: Tensor, rows: int, columns: int) -> Any:
    # a dimension of one element may have any stride, which the descriptor would refuse
    step = -(-x.shape[-1] // 16) * 16
    strides = [stride if length > 1 else step for stride, length in zip(x.stride(), x.shape, strict=True)]
    return TensorDescriptor(x, list(x.shape), [*strides[:-1], 1], [1, rows, columns])


def _problem(
    a: Tensor, b: Tensor, probes: Tensor, bias_probes: Tensor | None, lengths: Tensor | None
) -> tuple[Any, ...]:
    kept = 0 if lengths is None else lengths.dim()
    return (*a.shape, b.shape[-1], len(probes), a.dtype, a.device, bias_probes is None, kept)


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
