"""Weight gradient and scores of a linear map in one product.

The weight gradient of ``y = x W^T`` is a sum over samples, ``sum_i G_i`` with ``G_i = sum_t b_it a_it^T``. Whoever adds
it up sample by sample holds each ``G_i`` on the way, and its dot product with a probe Q is the score of sample i
(the ghost dot product of arXiv 2406.11011, section 4.1, summed in another order)::

    grad = sum_i G_i,    score_i = <G_i, Q>

No product is made that training does not need anyway, and ``G_i`` never leaves the processor: in the Triton kernel
(:mod:`inrun_bench.attribution.products.triton.wgrad`) it lives in registers, a tile at a time; its twin in plain torch,
below, forms a few samples' gradients together, as many as stay in the cache. What is added is reading Q.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from inrun_bench.attribution.products.backend import Backend, choose
from inrun_bench.attribution.products.shapes import InputPrecision, check_precision, check_sides

__all__ = ["InputPrecision", "wgrad_dot", "wgrad_dot_torch"]

CHUNK_BYTES = {"cpu": 2**20, "cuda": 2**28}
"""Of samples' weight gradients formed together: what stays in a processor's cache, or what keeps a GPU busy."""

FEW = 4  # samples' gradients that are formed sooner one by one: a sum over so few is a pass over memory


def wgrad_dot(
    a: Tensor,
    b: Tensor,
    probe: Tensor,
    *,
    bias_probe: Tensor | None = None,
    lengths: Tensor | None = None,
    input_precision: InputPrecision = "ieee",
    backend: Backend = "auto",
) -> tuple[Tensor, ...]:
    """Return the weight gradient of a batch, and the dot product of each sample's part of it with the probe.

    Parameters
    ----------
    a : Tensor [B, T, d_in]
        The layer's input. Any number of dimensions of positions, none included ([B, d_in]): they are flattened, without
        a copy where strides allow. float32, float16 or bfloat16 (and, in plain torch, float64); any strides.
    b : Tensor [B, T, d_out]
        Gradient of the layer's output, with the same positions. Where its dtype is not that of `a`, both are promoted.
    probe : Tensor [d_out, d_in] or [V, d_out, d_in]
        One direction, or several, of any floating dtype and any strides.
    bias_probe : Tensor [d_out] or [V, d_out], optional
        The bias's part of each direction; asks for the bias gradient too.
    lengths : Tensor, optional
        int [B]: how many of a sample's positions count; or bool [B, T]: which of them do. The others may hold anything,
        NaN included.
    input_precision : {"ieee", "tf32", "tf32x3"}
        How the kernel multiplies float32 numbers: exactly; or on tensor cores, rounded to 10 bits (``"tf32"``); or on
        tensor cores in three such products, nearly exact. The twin follows torch's own setting,
        ``torch.backends.cuda.matmul``.
    backend : {"auto", "triton", "torch"}
        See :func:`inrun_bench.attribution.products.backend.choose`. ``"auto"`` takes torch where T = 1, since a tensor
        core multiplies at least 16 positions of a sample at a time.

    Returns
    -------
    grad : Tensor [d_out, d_in]
        In float32 (float64 for float64 inputs), in the memory layout of the probe: for a weight that is stored
        transposed, as Hugging Face's ``Conv1D`` does, ``probe.t()`` in and ``grad.t()`` out cost no copy.
    bias_grad : Tensor [d_out]
        Present if `bias_probe` is.
    scores : Tensor [B] or [V, B]
        The bias's dot products included. All are bit-identical from run to run.

    Raises
    ------
    ValueError
        If shapes do not fit each other, or an argument is unknown.

    Examples
    --------
    >>> import torch
    >>> a, b = torch.randn(4, 10, 3), torch.randn(4, 10, 5)
    >>> grad, scores = wgrad_dot(a, b, torch.ones(5, 3))
    >>> grad.shape, scores.shape
    (torch.Size([5, 3]), torch.Size([4]))
    >>> torch.allclose(scores.sum(), grad.sum(), atol=1e-4)
    True
    """
    _check(a, b, probe, bias_probe, lengths, input_precision)
    kind = torch.promote_types(a.dtype, b.dtype)
    a, b = (x.to(kind).reshape(len(x), math.prod(x.shape[1:-1]), x.shape[-1]) for x in (a, b))
    if lengths is not None and lengths.dtype == torch.bool:
        lengths = lengths.reshape(a.shape[:2])
    probes = probe if probe.dim() == 3 else probe[None]
    bias_probes = bias_probe if bias_probe is None or bias_probe.dim() == 2 else bias_probe[None]
    empty = 0 in (*a.shape, *probes.shape)
    if empty or (backend == "auto" and a.shape[1] == 1):
        choose("wgrad_dot", "torch" if backend == "triton" else backend, a)
        chosen: str = "torch"
    else:
        read = [x for x in (a, b, probes, bias_probes, lengths) if x is not None]
        chosen = choose("wgrad_dot", backend, *read)
    if chosen == "triton":
        from inrun_bench.attribution.products.triton.wgrad_work import launch

        grad, bias_grad, scores = launch(a, b, probes, bias_probes, lengths, input_precision)
    else:
        grad, bias_grad, scores = wgrad_dot_torch(a, b, probes, bias_probes, lengths)
    if probe.dim() == 2:
        scores = scores[0]
    return (grad, scores) if bias_grad is None else (grad, bias_grad, scores)


def wgrad_dot_torch(
    a: Tensor, b: Tensor, probes: Tensor, bias_probes: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Do the same in plain torch: the kernel's twin, for [B, T, d_in], [B, T, d_out] and [V, d_out, d_in]."""
    kind = torch.promote_types(a.dtype, torch.float32)
    kept = _kept(lengths, a.shape[1])
    if kept is not None:
        a, b = (x.masked_fill(~kept[..., None], 0.0) for x in (a, b))
    directions = probes.to(kind)
    chunk = max(1, len(directions)) * CHUNK_BYTES.get(a.device.type, 2**20) // max(1, 4 * a.shape[2] * b.shape[2])
    if a.shape[1] == 1:
        grad, scores = _rank_one(a[:, 0], b[:, 0], directions)
    elif chunk <= FEW and a.device.type == "cpu" and min(len(a), len(directions)):
        grad, scores = _one_by_one(a, b, directions)
    else:
        grad, scores = _in_chunks(a, b, directions, max(1, chunk if chunk > FEW else 1))
    if bias_probes is None:
        return grad, None, scores
    biases = b.sum(1, dtype=kind)  # [B, d_out]
    return grad, biases.sum(0), scores + bias_probes.to(kind) @ biases.t()


def _rank_one(a: Tensor, b: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Serve [B, d_in] and [B, d_out]: one product serves all samples, and G_i = b_i a_i^T is not worth forming."""
    kind = directions.dtype
    grad = _empty(directions, a, b).zero_()
    grad += _product(b.t()[None], a[None], kind)[0]
    return grad, ((b.to(kind) @ directions) * a).sum(-1)


def _one_by_one(a: Tensor, b: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Form each sample's gradient in one place, which stays in the cache."""
    one = directions[0]
    if one.t().is_contiguous() and not one.is_contiguous():  # a weight that is stored transposed
        grad, scores = _one_by_one(b, a, directions.transpose(1, 2))
        return grad.t(), scores
    grad, flat = _empty(directions, a, b), directions.flatten(1)
    own, found = grad, []
    for left, right in zip(b, a, strict=True):
        torch.mm(left.t().to(one.dtype), right.to(one.dtype), out=own)
        along = own.reshape(-1)
        found.append(torch.dot(flat[0], along)[None] if len(flat) == 1 else torch.mv(flat, along))
        if own is grad:
            own = torch.empty_like(grad)
        else:
            grad += own
    return grad, torch.stack(found, 1)


def _in_chunks(a: Tensor, b: Tensor, directions: Tensor, together: int) -> tuple[Tensor, Tensor]:
    """Form a number of samples' gradients together."""
    grad, flat = _empty(directions, a, b).zero_(), directions.flatten(1)
    scores = grad.new_empty(len(directions), len(a))
    for start in range(0, len(a), together):
        samples = slice(start, start + together)
        gradients = _product(b[samples].transpose(1, 2), a[samples], directions.dtype)  # [samples, d_out, d_in]
        scores[:, samples] = flat @ gradients.flatten(1).t()
        grad += gradients.sum(0)
    return grad, scores


def _empty(directions: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return memory for a gradient, laid out as probes are."""
    if len(directions):
        return torch.empty_like(directions[0])
    return directions.new_empty(b.shape[-1], a.shape[-1])


def _product(x: Tensor, y: Tensor, kind: torch.dtype) -> Tensor:
    """Multiply matrices of any precision, accumulate and return in `kind`."""
    if x.is_cuda and x.dtype != kind:
        return torch.bmm(x, y, out_dtype=kind)  # tensor cores for half precision; not on the CPU
    return torch.bmm(x.to(kind), y.to(kind))


def _kept(lengths: Tensor | None, n_positions: int) -> Tensor | None:
    if lengths is None or lengths.dtype == torch.bool:
        return lengths
    return torch.arange(n_positions, device=lengths.device) < lengths[:, None]  # [B, T]


def _check(
    a: Tensor, b: Tensor, probe: Tensor, bias_probe: Tensor | None, lengths: Tensor | None, input_precision: str
) -> None:
    for name, x in {"a": a, "b": b, "probe": probe, "bias_probe": bias_probe}.items():
        if x is not None and not x.is_floating_point():
            raise ValueError(f"{name} must be of a floating dtype, got {x.dtype}")
    check_sides(a, b)
    sides = (b.shape[-1], a.shape[-1])
    if probe.dim() not in (2, 3) or probe.shape[-2:] != sides:
        raise ValueError(f"probe must be [d_out, d_in] = {list(sides)}, or several, got shape {tuple(probe.shape)}")
    if bias_probe is not None and bias_probe.shape != probe.shape[:-1]:
        raise ValueError(
            f"bias_probe must be {list(probe.shape[:-1])}, as probe has shape {tuple(probe.shape)}, "
            f"got shape {tuple(bias_probe.shape)}"
        )
    if lengths is not None:
        _check_lengths(lengths, a.shape[:-1])
    check_precision(input_precision)


def _check_lengths(lengths: Tensor, positions: torch.Size) -> None:
    if lengths.is_floating_point() or lengths.is_complex():
        raise ValueError(f"lengths must be integers or booleans, got {lengths.dtype}")
    mask = lengths.dtype == torch.bool
    allowed = [positions] if mask else [positions[:1]]
    if mask and len(positions) > 2:
        allowed.append(torch.Size((positions[0], positions[1:].numel())))
    if lengths.shape not in allowed:
        shapes = " or ".join(str(list(shape)) for shape in allowed)
        raise ValueError(f"lengths of dtype {lengths.dtype} must be {shapes}, got shape {tuple(lengths.shape)}")
