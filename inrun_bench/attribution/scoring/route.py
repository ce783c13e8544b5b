"""When the probe comes after the backward pass: three ways to score all the same.

==========  ===========================================  ==============================================================
way         memory beyond training                       time beyond training, validation apart
==========  ===========================================  ==============================================================
``keep``    layers' inputs and output gradients of the   the ghost rules: one product of the size of the forward pass
            batch, until the probe is known
``split``   the same in half the precision               the known term D v(w) is scored in the backward pass, and only
                                                         the rest, smaller by the step's curvature, with rounded
                                                         tensors; one more validation gradient, ghost rules twice
``jvp``     one forward pass with tangents               two forward passes; needs the `losses` of a step, which must
                                                         not draw random numbers
==========  ===========================================  ==============================================================

``keep`` and ``jvp`` are exact. ``split`` rounds the rest of a score by 2^-8 of itself (float32 kept as bfloat16; 2^-24
for float64 kept as float32); it needs an update whose slope is known (SGD). ``auto`` keeps while the bytes of the last
step fit the budget, then takes ``jvp`` where `losses` are given, else ``split``, else keeps and warns.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from inrun_bench.attribution.layer_terms import Term

__all__ = ["Late", "LateChoice", "Way"]

Way: TypeAlias = Literal["keep", "split", "jvp"]
LateChoice: TypeAlias = Literal["auto", "keep", "split", "jvp"]

ROUNDED = {torch.float64: torch.float32, torch.float32: torch.bfloat16}
SHARE_OF_FREE = 0.25

logger = logging.getLogger(__name__)


class Late:
    """Chooses a way for each step and counts what it keeps."""

    def __init__(self, wanted: LateChoice, budget: int | None) -> None:
        if budget is not None and budget < 0:
            raise ValueError(f"memory_budget must not be negative, got {budget}")
        self.wanted = wanted
        self._budget = budget
        self._way: Way | None = None
        self._step_bytes = 0  # what keeping took in the last step that kept, at full precision
        self._counted = 0  # in the present one
        self._warned = False

    @property
    def choices(self) -> dict[str, Any]:
        """The way of the last step, and the bytes that keeping takes."""
        return {"late": self._way, "kept_bytes": self.kept_bytes}

    @property
    def kept_bytes(self) -> int:
        """What keeping takes, by the last step that kept."""
        return self._counted or self._step_bytes

    @kept_bytes.setter
    def kept_bytes(self, known: int) -> None:
        self._step_bytes, self._counted = known, 0

    def choose(self, has_losses: bool, linear: bool, parameters: Sequence[Tensor]) -> Way:
        """Return the way for the coming step."""
        self.kept_bytes = self.kept_bytes  # of the step before
        if self._budget is None and self.wanted == "auto":
            self._budget = int(SHARE_OF_FREE * _free_bytes(parameters[0].device))
        way = self._choose(has_losses, linear)
        if way != self._way:
            logger.info("late probes: %s (%d bytes kept a step, budget %s)", way, self._step_bytes, self._budget)
        self._way = way
        return way

    def keep(self, kept: list[Term], term: Term, *, rounded: bool) -> None:
        """Add a term to what is kept."""
        self._counted += sum(t.numel() * t.element_size() for t in term.tensors)
        dtype = ROUNDED.get(term.b.dtype) if rounded else None
        kept.append(term if dtype is None else term.rounded(dtype))

    def _choose(self, has_losses: bool, linear: bool) -> Way:
        if self.wanted == "jvp" and not has_losses:
            raise ValueError("late='jvp' needs the samples' losses: pass losses= to step()")
        if self.wanted == "split" and not linear:
            raise ValueError(
                "late='split' needs an optimiser whose slope is known before the backward pass (SGD); "
                "choose 'keep' or 'jvp'"
            )
        if self.wanted != "auto":
            return self.wanted
        assert self._budget is not None
        if self._step_bytes <= self._budget:
            return "keep"
        if has_losses:
            return "jvp"
        if linear:
            return "split"
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"a step's late probe keeps {self._step_bytes} bytes, more than the budget of {self._budget}; "
                "pass losses= to step() for a way that keeps none",
                RuntimeWarning,
                stacklevel=2,
            )
        return "keep"


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not told on this system
        return 2**32
