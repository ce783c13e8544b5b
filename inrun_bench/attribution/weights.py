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

__all__ = ["Place", "SeenWeights"]

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
        self._traits, self._noted_at = _traits(self.present), self.place

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
        noted, size = self._traits
        now, _ = _traits(self.present)
        alike = ((now - noted).abs() <= 8 * torch.finfo(now.dtype).eps * size) | (now.isnan() & noted.isnan())
        checks.expect(~alike.all(), refuse)


def _traits(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return numbers that hardly any other weights have, and how large what each is a sum of."""
    held = [w.reshape(-1) for w in weights if w.numel()]
    return (_weighted_sums if all(w.device.type == "cpu" for w in held) else _norms_and_largest)(held)


def _norms_and_largest(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return norms of two parts of each tensor and its largest number: few launches, for a GPU."""
    parts = norms([part for w in weights for part in w.tensor_split([max(len(w) // 3, 1)]) if part.numel()])
    largest = gathered(torch._foreach_max(list(weights)))
    return torch.cat([parts, largest]), torch.cat([parts, largest.abs()])


def _weighted_sums(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return sums in which every weight has a factor of its own: one pass, for a processor."""
    with own_precision(torch.device("cpu")):
        pairs = [_weighted_sum(w if w.dtype == torch.float64 else w.float()) for w in weights]
    return gathered([total for total, _ in pairs]), gathered([size for _, size in pairs])


def _weighted_sum(w: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``a' W b`` and the norm of ``W b``, for weights [n] folded to a square W, and fixed random a and b."""
    side = math.isqrt(len(w))
    factors = _factors(2 ** (3 * side).bit_length(), w.dtype)
    folded = torch.mv(w[: side * side].view(side, side), factors[:side])
    along = torch.cat([folded, w[side * side :]])
    return torch.dot(along, factors[: len(along)]), torch.linalg.vector_norm(along)


@functools.cache
def _factors(count: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(count, dtype=dtype, device="cpu", generator=torch.Generator("cpu").manual_seed(0))
