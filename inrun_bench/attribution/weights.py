"""Weights as they were last seen: whether anything but the optimiser has changed them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from inrun_bench.attribution.precision import norms
from inrun_bench.attribution.transfer import Numbers, gathered

__all__ = ["Place", "SeenWeights"]

Place: TypeAlias = list[tuple[int, int]]
"""What tells weights from what they were: address and version of each."""


class SeenWeights:
    """The weights of a model, and how large they were.

    Parameters
    ----------
    trained : sequence of Parameter
        Those that optimisers move.
    parameters : collection of Parameter
        All of the model's.
    """

    def __init__(self, trained: Sequence[nn.Parameter], parameters: Collection[nn.Parameter]) -> None:
        self._trained, self._parameters = trained, parameters
        self._sizes: Tensor | None = None
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
        """Note how large the weights are."""
        self._sizes, self._noted_at = _sizes(self.present), self.place

    def note_if_moved(self) -> None:
        """Note how large they are if they are not those that were noted last, as far as versions tell."""
        if self._sizes is None or self.place != self._noted_at:
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

        assert self._sizes is not None
        now = _sizes(self.present)
        rounding = 8 * torch.finfo(now.dtype).eps
        checks.expect(~torch.isclose(now, self._sizes, rtol=rounding, atol=0.0, equal_nan=True).all(), refuse)


def _sizes(weights: Sequence[Tensor]) -> Tensor:
    """Return how large each tensor is: its norm, or on a processor its square, in a quarter of the time."""
    if all(w.device.type == "cpu" and w.dtype in (torch.float32, torch.float64) for w in weights):
        return gathered([torch.dot(w.flatten(), w.flatten()) for w in weights])
    return norms(weights)
