"""Directions: a probe by parameter, as tensors or in factors, as the validation pass brings them (the "gram" rule).

The validation gradient of a linear map is ``V = sum_n r_n l_n^T``, n over the validation samples' positions, l and r
what went in and what gradient came back (for a weight [d_out, d_in]; their roles are swapped where it is transposed).
Its dot product with the gradient of sample i needs neither matrix::

    <sum_t b_it a_it^T, V> = sum_t sum_n (a_it . l_n) (b_it . r_n)

For few positions that is less work than a product with V, and V itself is never formed: the validation pass is spared
its own weight-gradient product. This is the "ghost dot product" of arXiv 2406.11011, section 4.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, overload

import torch
from torch import Tensor

from inrun_bench.attribution.precision import own_precision
from inrun_bench.attribution.products.backend import Backend
from inrun_bench.attribution.products.gram_dot import gram_dot

__all__ = ["Direction", "Factors", "Stacked", "multiplied_out", "stacked"]


@dataclass(frozen=True)
class Factors:
    """A probe, ``scale * rows^T columns``, of a weight [d_rows, d_columns].

    Attributes
    ----------
    inputs, gradients : Tensor [N, d_in], [N, d_out]
        Of the validation samples' positions.
    transposed : bool
        Whether the weight is [d_in, d_out], and not [d_out, d_in].
    scale : float
        What the product is multiplied with.
    """

    inputs: Tensor
    gradients: Tensor
    transposed: bool = False
    scale: float = 1.0

    def __mul__(self, factor: float) -> Factors:
        return Factors(self.inputs, self.gradients, self.transposed, self.scale * factor)

    def joined(self, other: Factors) -> Factors:
        """Return the sum with the factors of another call of the layer."""
        inputs = torch.cat((self.inputs, other.inputs))
        return Factors(inputs, torch.cat((self.gradients, other.gradients)), self.transposed, self.scale)

    def dense(self) -> Tensor:
        """Return the probe, multiplied out."""
        with own_precision(self.inputs.device):
            product = self.gradients.t() @ self.inputs.to(self.gradients.dtype)  # autocast leaves some in single
        return (product.t() if self.transposed else product) * self.scale

    def magnitude(self) -> Tensor:
        """Return a bound on the probe's norm, which may be smaller by cancellation, while its rounding is not."""
        size: Tensor = self.inputs.norm().double() * self.gradients.norm().double() * abs(self.scale)
        return size

    def score(self, a: Tensor, b: Tensor, backend: Backend) -> Tensor:
        """Return the dot products, [B], of a linear map's input [B, ..., d_in] and output gradient [B, ..., d_out]."""
        return gram_dot(a, b, self.inputs, self.gradients, backend=backend) * self.scale


class Stacked(Sequence[Mapping[str, Tensor]]):
    """Several probes that are held together.

    Parameters
    ----------
    tensors : mapping of str to Tensor [V, *parameter]
        By parameter.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    @overload
    def __getitem__(self, number: int) -> Mapping[str, Tensor]: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[Mapping[str, Tensor]]: ...

    def __getitem__(self, number: int | slice) -> Any:
        if isinstance(number, slice):
            return Stacked({name: x[number] for name, x in self.tensors.items()})
        if not -len(self) <= number < len(self):
            raise IndexError(f"there are {len(self)} probes, got {number}")
        return {name: x[number] for name, x in self.tensors.items()}


Direction: TypeAlias = Mapping[str, Tensor | Factors]
"""A probe: of each trained parameter's name, the direction q."""


def stacked(probes: Sequence[Direction], name: str) -> Tensor:
    """Return what probes are of one parameter, [V, *parameter]."""
    if isinstance(probes, Stacked):
        return probes.tensors[name]
    tensors = [multiplied_out(probe[name]) for probe in probes]
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)


def multiplied_out(direction: Tensor | Factors) -> Tensor:
    """Return a probe of one weight as a tensor, shaped like the weight."""
    return direction.dense() if isinstance(direction, Factors) else direction
