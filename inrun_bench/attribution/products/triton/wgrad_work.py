"""How a weight gradient with scores is shared out over a GPU, and launched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from inrun_bench.attribution.products.backend import interpreted
from inrun_bench.attribution.products.triton.wgrad import (
    INTERPRETED,
    Config,
    candidates,
    constexprs,
    finish_kernel,
    wgrad_kernel,
)

__all__ = ["Work", "choose_work", "launch", "tune"]

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
    n_samples, n_positions, d_in = a.shape
    n_probes, d_out = probes.shape[:2]
    by_column = _by_column(probes)
    described = probes.transpose(1, 2) if by_column else probes
    if work is None:
        descriptors = _describable(a, b, described, lengths)
        config = INTERPRETED if interpreted() else TUNED.get(_problem(a, b, probes, bias_probes, lengths))
        if config is not None and config.descriptors and not descriptors:
            config = None
        work = choose_work(
            n_samples, n_positions, d_in, d_out, a.dtype == torch.float32, descriptors, _processors(a.device), config
        )
    config, splits, chunks = work.config, work.splits, work.chunks
    rows, columns = triton.cdiv(d_out, config.block_m), triton.cdiv(d_in, config.block_n)
    tiles = rows * columns

    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=torch.float32, device=a.device)

    grads = empty(splits, *((d_in, d_out) if by_column else (d_out, d_in)))
    strides = (grads.stride(0), grads.stride(2), grads.stride(1)) if by_column else grads.stride()
    biases = None if bias_probes is None else empty(splits, columns, d_out)
    parts = empty(n_probes, tiles, n_samples, chunks)
    kept = None if lengths is None else lengths.to(torch.uint8 if lengths.dim() == 2 else torch.int32).contiguous()
    read: tuple[Any, ...] = (a, b, probes)
    if config.descriptors:
        probe_block = (config.block_n, config.block_m) if by_column else (config.block_m, config.block_n)
        read = (
            _descriptor(a, config.block_t, config.block_n),
            _descriptor(b, config.block_t, config.block_m),
            _descriptor(described, *probe_block),
        )
    wgrad_kernel[(tiles, splits)](
        *read,
        parts if bias_probes is None else bias_probes.float().contiguous(),
        parts if kept is None else kept,
        grads,
        parts if biases is None else biases,
        parts,
        n_samples,
        n_positions,
        d_in,
        d_out,
        chunks,
        work.chunk_positions,
        triton.cdiv(n_samples * chunks, splits),
        *a.stride(),
        *b.stride(),
        *probes.stride(),
        *strides,
        **constexprs(
            config,
            probes=n_probes,
            bias=biases is not None,
            lengths=0 if lengths is None else lengths.dim(),
            input_precision=input_precision,
            by_column=by_column,
        ),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    scores = empty(n_probes, n_samples)
    bias_grad = None if biases is None else empty(d_out)
    grad = grads[0] if splits == 1 else torch.empty_like(grads[0])
    block = 1024
    grad_programs = 0 if splits == 1 else triton.cdiv(grad.numel(), block)
    bias_programs = 0 if bias_grad is None else triton.cdiv(d_out, block)
    finish_kernel[(grad_programs + bias_programs + n_probes * n_samples,)](
        grads,
        grad,
        parts if biases is None else biases,
        parts if bias_grad is None else bias_grad,
        parts,
        scores,
        splits,
        grad.numel(),
        splits * columns,
        d_out,
        tiles,
        n_samples,
        chunks,
        grad_programs,
        bias_programs,
        BLOCK=block,
    )
    return grad.t() if by_column else grad, bias_grad, scores


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
        tiles = triton.cdiv(d_out, candidate.block_m) * triton.cdiv(d_in, candidate.block_n)
        step = candidate.block_m * candidate.block_n + 48 * (candidate.block_m + candidate.block_n)
        for chunks in (1, 2, 4, 8, 16):
            steps = triton.cdiv(triton.cdiv(n_positions, chunks), candidate.block_t)
            if chunks > 1 and steps < 4:
                break
            for splits in range(1, min(n_samples * chunks, 64) + 1):
                run = triton.cdiv(n_samples * chunks, splits)
                if candidate.one_accumulator and config is None and (run > 64 * chunks or single):
                    continue
                waves = triton.cdiv(tiles * splits, processors)
                again = 6 + 5 * tiles * splits / processors if splits > 1 else 0
                time = (waves * (run * (steps + 3) + 5) + again) * step
                if time < least:
                    needed = triton.cdiv(n_samples * chunks, run)
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
