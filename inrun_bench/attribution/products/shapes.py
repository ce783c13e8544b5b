"""What the kernels of linear maps ask of their arguments."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from torch import Tensor

__all__ = ["InputPrecision", "by_position", "check_precision", "check_sides"]

InputPrecision: TypeAlias = Literal["ieee", "tf32", "tf32x3"]
"""How float32 numbers are multiplied: exactly, after rounding to 10 bits, or in three such products."""

PRECISIONS = get_args(InputPrecision)


def check_sides(a: Tensor, b: Tensor) -> None:
    """Raise ValueError unless a [B, ..., d_in] and b [B, ..., d_out] can be of one call of a linear map."""
    if a.dim() < 2:
        raise ValueError(f"a must be [B, T, d_in] or [B, d_in], got {list(a.shape)}")
    if b.dim() < 2 or b.shape[:-1] != a.shape[:-1]:
        allowed = ", ".join(map(str, (*a.shape[:-1], "d_out")))
        raise ValueError(f"b must be [{allowed}], for a has shape {list(a.shape)}, got {list(b.shape)}")


def check_precision(input_precision: str) -> None:
    """Raise ValueError unless `input_precision` is a known one."""
    if input_precision not in PRECISIONS:
        allowed = ", ".join(PRECISIONS)
        raise ValueError(f"input_precision must be one of {allowed}, got {input_precision!r}")


def by_position(x: Tensor) -> Tensor:
    """Return x [B, ..., d] as [B, T, d]; one position of zeros a sample where there is none."""
    rows, width = x.shape[0], x.shape[-1]
    return x.reshape(rows, -1, width) if x.numel() else x.new_zeros(rows, 1, width)
