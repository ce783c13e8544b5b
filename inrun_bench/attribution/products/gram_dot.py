"""Scores from inner products of positions: ``gram_dot``, its choice and its twin in torch.

The validation gradient of a linear map is itself a sum over positions, ``V = sum_n b_n a_n^T``, so that its dot product
with the gradient of sample i needs neither matrix::

    score_i = <sum_t b_it a_it^T, V> = sum_t sum_n (a_it . a_n) (b_it . b_n)

That takes ``2 B T N (d_in + d_out)`` operations, N being the validation samples' positions: the least work of all rules
for few of them. In plain torch both tables of inner products, [B T, N], are stored; the kernel of
:mod:`inrun_bench.attribution.products.triton.gram` holds a tile of both in registers, multiplies them there and keeps
the sums of its rows. This is the "ghost dot product" of arXiv 2406.11011, section 4.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inrun_bench.attribution.products.backend import Backend, choose
from inrun_bench.attribution.products.shapes import InputPrecision, by_position, check_precision, check_sides

__all__ = ["gram_dot", "gram_dot_torch"]


def gram_dot(
    a: Tensor,
    b: Tensor,
    a_val: Tensor,
    b_val: Tensor,
    *,
    input_precision: InputPrecision = "ieee",
    backend: Backend = "auto",
) -> Tensor:
    """Return the dot product of each sample's weight gradient with the validation samples'.

    Parameters
    ----------
    a : Tensor [B, T, d_in] or [B, d_in]
        Inputs of the linear map; any strides.
    b : Tensor [B, T, d_out] or [B, d_out]
        Gradients of its outputs.
    a_val, b_val : Tensor [N, d_in], [N, d_out]
        The same of the validation samples' positions. One of another dtype than a or b is promoted, and so is that.
    input_precision : {"ieee", "tf32", "tf32x3"}
        How the kernel multiplies float32 numbers; the twin follows torch's own setting.
    backend : {"auto", "triton", "torch"}
        See :func:`inrun_bench.attribution.products.backend.choose`.

    Returns
    -------
    Tensor [B]
        float32; float64 where a and b are (in torch alone). The same bits from run to run.

    Raises
    ------
    ValueError
        If shapes do not fit, or `input_precision` is unknown.

    Examples
    --------
    >>> a, b = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0], [-1.0]])
    >>> gram_dot(a, b, torch.tensor([[10.0, 1.0]]), torch.tensor([[1.0]]))
    tensor([ 12., -34.])
    """
    _check(a, b, a_val, b_val, input_precision)
    a, b = by_position(a), by_position(b)
    (a, a_val), (b, b_val) = _alike(a, a_val), _alike(b, b_val)
    empty = not (a.numel() and b.numel() and len(a_val))
    if choose("gram_dot", backend, a, b, a_val, b_val) == "torch" or empty:
        return gram_dot_torch(a, b, a_val, b_val)
    from inrun_bench.attribution.products.triton.gram import gram_dot_triton

    return gram_dot_triton(a, b, a_val, b_val, input_precision)


def gram_dot_torch(a: Tensor, b: Tensor, a_val: Tensor, b_val: Tensor) -> Tensor:
    """Return the scores [B] from both tables of inner products, [B, T, N]."""
    exact = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    of_inputs, of_gradients = (_products(a, a_val).to(exact), _products(b, b_val).to(exact))
    return (of_inputs * of_gradients).flatten(1).sum(1)


def _products(x: Tensor, x_val: Tensor) -> Tensor:
    if x.dtype == torch.float16:  # whose range inner products of gradients leave
        x, x_val = x.float(), x_val.float()
    return x @ x_val.t()


def _alike(x: Tensor, x_val: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, x_val.dtype)
    return x.to(dtype), x_val.to(dtype)


def _check(a: Tensor, b: Tensor, a_val: Tensor, b_val: Tensor, input_precision: str) -> None:
    check_sides(a, b)
    if a_val.dim() != 2 or a_val.shape[1] != a.shape[-1]:
        raise ValueError(f"a_val must be {['N', a.shape[-1]]}, as wide as a, got {list(a_val.shape)}")
    if b_val.shape != (len(a_val), b.shape[-1]):
        raise ValueError(f"b_val must be {[len(a_val), b.shape[-1]]}, got {list(b_val.shape)}")
    check_precision(input_precision)
