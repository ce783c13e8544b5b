"""Dot products by sample, the last line of every rule."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["sample_dot"]


def sample_dot(x: Tensor, y: Tensor) -> Tensor:
    """Return the dot product of each sample's x and y.

    Parameters
    ----------
    x : Tensor [B, ...]
        Any floating dtype; it need not be y's, since autocast leaves some layers in single precision.
    y : Tensor
        Shaped like x, or broadcast against it.

    Returns
    -------
    Tensor [B]
        Half precision is multiplied and summed in single: a float16 sum overflows, a bfloat16 sum keeps two digits.
    """
    # a product and a sum, not a matrix product: as fast for few, long rows, and autocast leaves their dtype alone
    product = (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x) * y
    return product.unsqueeze(-1).flatten(1).sum(1)  # unsqueezed, since an x [B] has nothing to flatten
