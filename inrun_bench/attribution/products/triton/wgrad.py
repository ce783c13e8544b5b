"""The Triton kernel of :func:`inrun_bench.attribution.products.wgrad_dot.wgrad_dot`.

A program owns one tile [BLOCK_M, BLOCK_N] of the weight gradient [d_out, d_in] and a run of samples (a "split")::

    for each sample i of the split:
        part = sum over its positions, BLOCK_T at a time, of b^T a      # tensor cores, float32 accumulators
        parts[tile, i] = sum(part * probe tile)                         # while part is still in registers
        total += part
    grad[split, tile] = total

A second kernel sums ``parts`` over tiles and ``grad`` over splits, in a fixed order: no atomics, the same bits at each
run. Programs that follow each other work on neighbouring tiles (``group_m`` rows of them), so that the rows of a and b
that they share are found in the L2 cache. There are several splits where one would leave processors idle; where samples
are too few or too long to share them out evenly, they are cut into chunks of positions, whose scores are added up.

**One accumulator.** ``part`` and ``total`` need BLOCK_M x BLOCK_N registers each. With ``one_accumulator``, the
products run on in ``total``, and the score is what ``<total, Q>`` has grown by over the sample. The difference has the
rounding error of the running sum: the relative error of a score grows from about ``eps`` to
``eps |<total, Q>| / |score|``, eps = 6e-8. Measured in the tests: 2e-7 against 1e-7 with two, for scores of like size;
5e-3 for scores 1e-4 the size of those that came before. The first is far below what bfloat16 inputs have lost; the
second is not, and who needs such small scores by themselves takes two accumulators. One is chosen for half-precision
inputs alone, and for at most 64 samples a split (:mod:`~inrun_bench.attribution.products.triton.wgrad_work`). The
weight gradient itself is as exact either way.

**Biases.** The bias gradient sums b over samples and positions. The programs of one row of tiles share the work: each
takes every so manieth block of positions, which it reads once more (from the L2 cache), and adds what it has found to
its own part of the score. That keeps the main loop free of branches and all programs equally long.

**Descriptors.** Tensor descriptors let the copy engine (TMA) do the addressing, and fill with zeros what lies outside;
the kernel would otherwise spend up to half of its registers on pointers. They need a last stride of one and others that
are multiples of 16 bytes. What has them not, or has a mask over positions, is read through pointers, in smaller tiles.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# kernels are typed by Triton

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from inrun_bench.attribution.products.backend import interpreted

__all__ = ["CONFIGS", "INTERPRETED", "Config", "candidates", "constexprs", "finish_kernel", "signature", "wgrad_kernel"]


@dataclass(frozen=True)
class Config:
    """Sizes of a program's work.

    Attributes
    ----------
    block_m, block_n, block_t : int
        The tile's rows (of d_out) and columns (of d_in), and the positions of a step.
    num_warps, num_stages : int
        Of Triton: warps a program, and steps whose loads are under way at a time.
    one_accumulator : bool
        Whether scores are differences of a running sum (see above).
    flatten : bool
        Whether the loops over samples and positions are merged, so that loads run on across samples.
    descriptors : bool
        Whether tensor descriptors are read, and not pointers.
    single : bool
        For float32 inputs, not half precision.
    group_m : int
        Rows of tiles that are worked on together.
    """

    block_m: int
    block_n: int
    block_t: int
    num_warps: int
    num_stages: int
    one_accumulator: bool = False
    flatten: bool = False
    descriptors: bool = True
    single: bool = False
    group_m: int = 8


CONFIGS = (
    Config(128, 256, 64, num_warps=8, num_stages=3, one_accumulator=True),
    Config(128, 256, 64, num_warps=8, num_stages=4, one_accumulator=True),
    Config(256, 128, 64, num_warps=8, num_stages=3, one_accumulator=True),
    Config(128, 128, 64, num_warps=8, num_stages=3, one_accumulator=True),  # two programs a processor
    Config(128, 128, 64, num_warps=8, num_stages=4),
    Config(128, 128, 64, num_warps=8, num_stages=4, flatten=True),
    Config(64, 128, 64, num_warps=4, num_stages=4),
    Config(128, 64, 64, num_warps=4, num_stages=4),
    Config(64, 64, 64, num_warps=4, num_stages=4),
    Config(128, 64, 64, num_warps=8, num_stages=4, descriptors=False),
    Config(64, 64, 64, num_warps=4, num_stages=4, descriptors=False),
    Config(128, 128, 32, num_warps=8, num_stages=3, single=True),
    Config(64, 64, 32, num_warps=8, num_stages=3, single=True),
    Config(64, 64, 32, num_warps=8, num_stages=3, descriptors=False, single=True),
)
"""Candidates for Hopper. Compiled for it by Triton 3.9 (3.6), those of half precision with descriptors take 93 to 254
registers, 128 x 256 with one accumulator and a float32 probe 166 (158), and spill none (3.6: 8 to 16 bytes where a bias
and lengths come together); of the float32 ones, 128 x 128 spills up to 56 (112) bytes under ``"tf32x3"``, and pointers
16 bytes under ``"ieee"``, which has no tensor cores."""

INTERPRETED = Config(16, 32, 16, num_warps=1, num_stages=1, descriptors=False)
"""What the interpreter runs: small, so that small problems have several tiles."""


@triton.jit
def wgrad_kernel(
    a_ptr,  # [n_samples, n_positions, d_in]
    b_ptr,  # [n_samples, n_positions, d_out]
    q_ptr,  # [PROBES, d_out, d_in]
    bias_q_ptr,  # [PROBES, d_out] float32
    kept_ptr,  # LENGTHS = 1: [n_samples] int32; 2: [n_samples, n_positions] uint8
    grad_ptr,  # [splits, d_out, d_in] float32
    bias_ptr,  # [splits, column tiles, d_out] float32, contiguous
    parts_ptr,  # [PROBES, tiles, n_samples, chunks] float32, contiguous
    n_samples,
    n_positions,
    d_in,
    d_out,
    chunks,  # parts of a sample
    chunk_positions,  # a multiple of BLOCK_T
    chunks_per_split,
    stride_ab,
    stride_at,
    stride_an,
    stride_bb,
    stride_bt,
    stride_bm,
    stride_qv,
    stride_qm,
    stride_qn,
    stride_gs,
    stride_gm,
    stride_gn,
    PROBES: tl.constexpr,
    PADDED_PROBES: tl.constexpr,  # the next power of two
    HAS_BIAS: tl.constexpr,
    LENGTHS: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    GROUP_M: tl.constexpr,
    ONE_ACCUMULATOR: tl.constexpr,
    DESCRIPTORS: tl.constexpr,  # a_ptr, b_ptr and q_ptr are tensor descriptors; then LENGTHS < 2
    BY_COLUMN: tl.constexpr,  # q_ptr describes [PROBES, d_in, d_out]
    FLATTEN: tl.constexpr,
    WIDEN: tl.constexpr,  # the interpreter multiplies the bits of bfloat16 numbers, as if they were integers
):
    """Form one tile of the weight gradient over one run of samples, and its part of their scores."""
    rows, columns = tl.cdiv(d_out, BLOCK_M), tl.cdiv(d_in, BLOCK_N)
    tile, split = tl.program_id(0), tl.program_id(1)
    group = tile // (GROUP_M * columns)
    group_size = tl.minimum(rows - group * GROUP_M, GROUP_M)
    row = group * GROUP_M + (tile % (GROUP_M * columns)) % group_size
    column = (tile % (GROUP_M * columns)) // group_size

    m, n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    position = tl.arange(0, BLOCK_T)
    m_start, n_start = row * BLOCK_M, column * BLOCK_N
    m_inside, n_inside = m < d_out - m_start, n < d_in - n_start
    tile_inside = m_inside[:, None] & n_inside[None, :]
    # 64-bit starts, 32-bit offsets inside of a tile
    m_start, n_start = m_start.to(tl.int64), n_start.to(tl.int64)
    a_offsets = position[:, None] * stride_at + n[None, :] * stride_an
    b_offsets = position[:, None] * stride_bt + m[None, :] * stride_bm
    q_offsets = m[:, None] * stride_qm + n[None, :] * stride_qn

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    bias_total = tl.zeros((BLOCK_M,), tl.float32)
    probe_index = tl.arange(0, PADDED_PROBES)
    before = tl.zeros((PADDED_PROBES,), tl.float32)
    parts_ptrs = parts_ptr + (probe_index.to(tl.int64) * (rows * columns) + tile) * (n_samples * chunks)

    first = split * chunks_per_split
    for chunk in tl.range(first, tl.minimum(first + chunks_per_split, n_samples * chunks), flatten=FLATTEN):
        sample = chunk // chunks
        begin = chunk % chunks * chunk_positions
        if not DESCRIPTORS:
            a_sample = a_ptr + sample.to(tl.int64) * stride_ab + n_start * stride_an
            b_sample = b_ptr + sample.to(tl.int64) * stride_bb + m_start * stride_bm
        length = tl.minimum(begin + chunk_positions, n_positions)
        if LENGTHS == 1:
            length = tl.maximum(tl.minimum(tl.load(kept_ptr + sample), length), begin)
        if LENGTHS == 2:
            kept_sample = kept_ptr + sample.to(tl.int64) * n_positions

        part = total if ONE_ACCUMULATOR else tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        # a descriptor fills with zeros beyond n_positions, but not beyond a sample's length
        whole = length
        if DESCRIPTORS and LENGTHS == 1:
            whole = length // BLOCK_T * BLOCK_T
        for start in range(begin, whole, BLOCK_T):
            if DESCRIPTORS:
                a_tile = a_ptr.load([sample, start, column * BLOCK_N]).reshape(BLOCK_T, BLOCK_N)
                b_tile = b_ptr.load([sample, start, row * BLOCK_M]).reshape(BLOCK_T, BLOCK_M)
            else:
                kept = position < length - start
                if LENGTHS == 2:
                    kept = tl.load(kept_sample + start + position, mask=kept, other=0) != 0
                far = tl.cast(start, tl.int64)
                a_mask, b_mask = kept[:, None] & n_inside[None, :], kept[:, None] & m_inside[None, :]
                a_tile = tl.load(a_sample + far * stride_at + a_offsets, mask=a_mask, other=0.0)
                b_tile = tl.load(b_sample + far * stride_bt + b_offsets, mask=b_mask, other=0.0)
            part = _multiply(b_tile, a_tile, part, INPUT_PRECISION, WIDEN)
        if DESCRIPTORS and LENGTHS == 1:
            for start in range(whole, length, BLOCK_T):  # at most once
                kept = (position < length - start)[:, None]
                a_tile = a_ptr.load([sample, start, column * BLOCK_N]).reshape(BLOCK_T, BLOCK_N)
                b_tile = b_ptr.load([sample, start, row * BLOCK_M]).reshape(BLOCK_T, BLOCK_M)
                a_tile, b_tile = tl.where(kept, a_tile, 0.0), tl.where(kept, b_tile, 0.0)
                part = _multiply(b_tile, a_tile, part, INPUT_PRECISION, WIDEN)

        if HAS_BIAS:
            bias_part = bias_total if ONE_ACCUMULATOR else tl.zeros((BLOCK_M,), tl.float32)
            for start in range(begin + column * BLOCK_T, length, columns * BLOCK_T):
                if DESCRIPTORS:
                    b_tile = b_ptr.load([sample, start, row * BLOCK_M]).reshape(BLOCK_T, BLOCK_M)
                    if LENGTHS == 1:
                        b_tile = tl.where((position < length - start)[:, None], b_tile, 0.0)
                else:
                    kept = position < length - start
                    if LENGTHS == 2:
                        kept = tl.load(kept_sample + start + position, mask=kept, other=0) != 0
                    b_mask = kept[:, None] & m_inside[None, :]
                    far = tl.cast(start, tl.int64)
                    b_tile = tl.load(b_sample + far * stride_bt + b_offsets, mask=b_mask, other=0.0)
                bias_part += tl.sum(b_tile.to(tl.float32), 0)

        found = tl.zeros((PADDED_PROBES,), tl.float32)
        for v in tl.static_range(PROBES):
            if DESCRIPTORS and BY_COLUMN:
                probe = tl.trans(q_ptr.load([v, column * BLOCK_N, row * BLOCK_M]).reshape(BLOCK_N, BLOCK_M))
            elif DESCRIPTORS:
                probe = q_ptr.load([v, row * BLOCK_M, column * BLOCK_N]).reshape(BLOCK_M, BLOCK_N)
            else:
                q_tile = q_ptr + tl.cast(v, tl.int64) * stride_qv + m_start * stride_qm + n_start * stride_qn
                probe = tl.load(q_tile + q_offsets, mask=tile_inside, other=0.0)
            dot = tl.sum(part * probe.to(tl.float32))
            if HAS_BIAS:
                bias_probe = tl.load(bias_q_ptr + v * d_out + m_start + m, mask=m_inside, other=0.0)
                dot += tl.sum(bias_part * bias_probe)
            found = tl.where(probe_index == v, dot, found)
        tl.store(parts_ptrs + chunk, found - before, mask=probe_index < PROBES)

        if ONE_ACCUMULATOR:
            total = part
            before = found
        else:
            total += part
        if HAS_BIAS:
            if ONE_ACCUMULATOR:
                bias_total = bias_part
            else:
                bias_total += bias_part

    grad_tile = grad_ptr + split.to(tl.int64) * stride_gs + m_start * stride_gm + n_start * stride_gn
    tl.store(grad_tile + (m[:, None] * stride_gm + n[None, :] * stride_gn), total, mask=tile_inside)
    if HAS_BIAS:
        bias_row = bias_ptr + (split * columns + column).to(tl.int64) * d_out + m_start
        tl.store(bias_row + m, bias_total, mask=m_inside)


@triton.jit
def _multiply(b_tile, a_tile, part, INPUT_PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    if WIDEN:
        b_tile, a_tile = b_tile.to(tl.float32), a_tile.to(tl.float32)
    return tl.dot(tl.trans(b_tile), a_tile, part, input_precision=INPUT_PRECISION)


@triton.jit
def finish_kernel(
    grads_ptr,  # [splits, size]
    grad_ptr,  # [size]
    biases_ptr,  # [bias_rows, d_out]
    bias_ptr,  # [d_out]
    parts_ptr,  # [probes, tiles, n_samples, chunks]
    scores_ptr,  # [probes, n_samples]
    splits,
    size,
    bias_rows,
    d_out,
    tiles,
    n_samples,
    chunks,
    grad_programs,
    bias_programs,
    BLOCK: tl.constexpr,
):
    """Sum gradients over splits, biases over splits and columns, and scores over tiles and chunks."""
    program = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    if program < grad_programs:
        at = program.to(tl.int64) * BLOCK + lane
        total = tl.zeros((BLOCK,), tl.float32)
        for split in range(splits):
            total += tl.load(grads_ptr + tl.cast(split, tl.int64) * size + at, mask=at < size, other=0.0)
        tl.store(grad_ptr + at, total, mask=at < size)
    elif program < grad_programs + bias_programs:
        at = (program - grad_programs) * BLOCK + lane
        total = tl.zeros((BLOCK,), tl.float32)
        for row in range(bias_rows):
            total += tl.load(biases_ptr + tl.cast(row, tl.int64) * d_out + at, mask=at < d_out, other=0.0)
        tl.store(bias_ptr + at, total, mask=at < d_out)
    else:
        score = program - grad_programs - bias_programs
        probe, sample = score // n_samples, score % n_samples
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, tiles * chunks, BLOCK):
            at = start + lane
            tile = (probe * tiles + at // chunks).to(tl.int64)
            part = parts_ptr + (tile * n_samples + sample) * chunks + at % chunks
            total += tl.load(part, mask=at < tiles * chunks, other=0.0)
        tl.store(scores_ptr + score, tl.sum(total))


def candidates(single: bool, descriptors: bool = True) -> Iterator[Config]:
    """Yield the configurations for float32 (`single`) or half-precision inputs."""
    return (config for config in CONFIGS if config.single == single and config.descriptors == descriptors)


def signature(
    config: Config, dtype: torch.dtype, probe_dtype: torch.dtype = torch.float32, *, by_column: bool = False
) -> tuple[dict[str, str], dict[str, int], dict[tuple[int], list[list[Any]]]]:
    """Return what an ahead-of-time compiler must know of the arguments: contiguous and aligned, as in training.

    Returns
    -------
    types : dict
        By name; constants are marked ``"constexpr"``.
    ones : dict
        The strides that are one, by name: constants, with those of :func:`constexprs`.
    attributes : dict
        By position: pointers and sizes that are multiples of 16.

    Examples
    --------
    ::

        types, ones, attributes = wgrad.signature(config, torch.bfloat16)
        source = ASTSource(wgrad.wgrad_kernel, types, {**ones, **wgrad.constexprs(config)}, attributes)
        options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    """
    short = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
    data, probe = short[dtype], short[probe_dtype]
    probe_block = (config.block_n, config.block_m) if by_column else (config.block_m, config.block_n)
    if config.descriptors:
        read = {
            "a_ptr": f"tensordesc<{data}[1, {config.block_t}, {config.block_n}]>",
            "b_ptr": f"tensordesc<{data}[1, {config.block_t}, {config.block_m}]>",
            "q_ptr": f"tensordesc<{probe}[1, {probe_block[0]}, {probe_block[1]}]>",
        }
    else:
        read = {"a_ptr": f"*{data}", "b_ptr": f"*{data}", "q_ptr": f"*{probe}"}
    last = "m" if by_column else "n"
    ones = {"stride_an": 1, "stride_bm": 1, f"stride_q{last}": 1, f"stride_g{last}": 1}
    types = {}
    for name in wgrad_kernel.arg_names:
        if name in ones or name.isupper():
            types[name] = "constexpr"
        elif name in read:
            types[name] = read[name]
        elif name.endswith("_ptr"):
            types[name] = "*i32" if name == "kept_ptr" else "*fp32"
        else:
            types[name] = "i32"
    odd = {"constexpr", *(kind for kind in types.values() if kind.startswith("tensordesc"))}
    aligned = [
        position
        for position, (name, kind) in enumerate(types.items())
        if kind not in odd and name not in ("n_samples", "chunks", "chunks_per_split")
    ]
    return types, ones, {(position,): [["tt.divisibility", 16]] for position in aligned}


def constexprs(
    config: Config,
    *,
    probes: int = 1,
    bias: bool = False,
    lengths: int = 0,
    input_precision: str = "ieee",
    by_column: bool = False,
) -> dict[str, Any]:
    """Return the kernel's constants for `config`; `lengths` is 0 for none, 1 for one a sample, 2 for a mask."""
    return {
        "PROBES": probes,
        "PADDED_PROBES": triton.next_power_of_2(probes),
        "HAS_BIAS": bias,
        "LENGTHS": lengths,
        "INPUT_PRECISION": input_precision,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_T": config.block_t,
        "GROUP_M": config.group_m,
        "ONE_ACCUMULATOR": config.one_accumulator,
        "DESCRIPTORS": config.descriptors,
        "BY_COLUMN": by_column,
        "FLATTEN": config.flatten,
        "WIDEN": interpreted(),
    }
