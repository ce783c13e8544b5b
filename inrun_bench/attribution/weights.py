"""Weights as they were last seen: whether anything but the optimiser has changed them."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from inrun_bench.attribution.precision import norms, own_precision
from inrun_bench.attribution.transfer import Numbers, gathered

__all__ = ["Place", "SeenWeights", "differ", "traits"]

SMALL = 2**14
"""Numbers that are copied in less time than it takes to ask for their sum."""

Place: TypeAlias = list[tuple[int, int]]
"""What tells weights from what they were: address and version of each."""


class SeenWeights:
    """The weights of a model, and numbers that tell whether they are what they were.

    Parameters
    ----------
    trained : sequence of Parameter
        Those that optimisers move.
    parameters : collection of Parameter
        All of the model's.
    """

    def __init__(self, trained: Sequence[nn.Parameter], parameters: Collection[nn.Parameter]) -> None:
        self._trained, self._parameters = trained, parameters
        self._traits: tuple[Tensor, Tensor] | None = None
        self._noted_at: Place = []

    @property
    def present(self) -> list[Tensor]:
        """The trained ones as they are, in the parameters' own memory."""
        return [p.detach() for p in self._trained]

    @property
    def place(self) -> Place:
        """What tells all of them, frozen ones too, from what they were and will be."""
        return [(p.data_ptr(), p._version) for p in self._parameters]

    def note(self) -> None:
        """Note what the weights are."""
        self._traits, self._noted_at = traits(self.present), self.place

    def note_if_moved(self) -> None:
        """Note what they are if they are not those that were noted last, as far as versions tell."""
        if self._traits is None or self.place != self._noted_at:
            self.note()

    def expect_as_noted(self, checks: Numbers, number: int) -> None:
        """Have weights refused that have changed since, behind torch's version counters."""

        def refuse(changed: Any) -> None:
            if changed:
                raise RuntimeError(
                    f"step {number}: weights were changed through .data since the optimiser's last step, which torch "
                    "does not count, so that the validation loss and its gradient are not theirs; change them in place "
                    "under torch.no_grad()"
                )

        assert self._traits is not None
        now, _ = traits(self.present)
        checks.expect(differ(now, *self._traits).any(), refuse)


def traits(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return numbers that hardly any other tensors have, and what rounding may make of each, both float64 [parts, k].

    On a processor, k = 1, and small tensors are one part; on a GPU, k = 3, and each tensor is one.
    """
    flat = [x.reshape(-1) for x in tensors]
    return (_weighted_sums if all(x.device.type == "cpu" for x in flat) else _norms_and_largest)(flat)


def differ(now: Tensor, noted: Tensor, rounding: Tensor) -> Tensor:
    """Return bool [parts]: whose :func:`traits` are others than was noted, rounding apart."""
    if now.shape != noted.shape:
        return now.new_ones(1, dtype=torch.bool)
    alike = ((now - noted).abs() <= rounding) | (now.isnan() & noted.isnan())
    return ~alike.all(1)


def _norms_and_largest(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return norms of two parts of each tensor and its largest number: few launches, for a GPU."""
    filled = [x if x.numel() else x.new_zeros(1) for x in tensors]
    cuts = [max(len(x) // 3, 1) for x in filled]
    first = norms([x[:cut] for x, cut in zip(filled, cuts, strict=True)])
    rest = norms([x[cut:] for x, cut in zip(filled, cuts, strict=True)])
    numbers = torch.stack([first, rest, gathered(torch._foreach_max(filled)).to(first)], 1)
    return numbers.double(), _rounding(numbers.abs())


def _weighted_sums(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return sums in which every number has a factor of its own: one pass, for a processor."""
    parts = [x if x.dtype == torch.float64 else x.float() for x in tensors if len(x) > SMALL]
    small = [x.double() for x in tensors if len(x) <= SMALL]  # no change of one is lost in the rounding of others
    parts += [torch.cat(small).nan_to_num_(1, 2, 3)] if small else []  # else nothing is told beside them
    with own_precision(torch.device("cpu")):
        pairs = [_weighted_sum(x) for x in parts]
    return gathered([total for total, _ in pairs])[:, None], gathered([rounding for _, rounding in pairs])[:, None]


def _weighted_sum(w: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``a' W b``, for weights [n] folded to a square W, and fixed random a and b, and what rounding makes."""
    side = math.isqrt(len(w))
    factors = _factors(2 ** (3 * side).bit_length(), w.dtype)
    folded = torch.mv(w[: side * side].view(side, side), factors[:side])
    along = torch.cat([folded, w[side * side :]])
    return torch.dot(along, factors[: len(along)]).double(), _rounding(torch.linalg.vector_norm(along))


def _rounding(size: Tensor) -> Tensor:
    return 8 * torch.finfo(size.dtype).eps * size.double()


@functools.cache
def _factors(count: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(count, dtype=dtype, device="cpu", generator=torch.Generator("cpu").manual_seed(0))
