"""Which route a step's scores take: one where the probe is known before the backward pass, three where it comes late.

==========  ===========================================  ==============================================================
route       memory beyond training                       time beyond training, validation apart
==========  ===========================================  ==============================================================
``early``   none                                         none: layers' own backward passes bring scores, or ghost
                                                         rules do, a product of the size of the forward pass
``keep``    layers' inputs and output gradients of the   the ghost rules: one product of the size of the forward pass
            batch, until the probe is known
``split``   the same in half the precision               the known term D v(w) is scored in the backward pass, and only
                                                         the rest, smaller by the step's curvature, with rounded
                                                         tensors; one more validation gradient, ghost rules twice
``jvp``     one forward pass with tangents               two forward passes; needs the `losses` of a step, which must
                                                         not draw random numbers
==========  ===========================================  ==============================================================

All but ``split`` are exact. It rounds the rest of a score by 2^-8 of itself (float32 kept as bfloat16; 2^-24
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

__all__ = ["LateChoice", "LateRoute", "RouteChooser"]

LateRoute: TypeAlias = Literal["keep", "split", "jvp"]
LateChoice: TypeAlias = Literal["auto", "keep", "split", "jvp"]

SHARE_OF_FREE = 0.25

logger = logging.getLogger(__name__)


class RouteChooser:
    """Chooses the route of each step whose probe comes late, and counts what keeping terms takes.

    Parameters
    ----------
    wanted : {"auto", "keep", "split", "jvp"}
        The user's choice.
    budget : int, optional
        Bytes that may be kept.
    """

    def __init__(self, wanted: LateChoice, budget: int | None) -> None:
        if budget is not None and budget < 0:
            raise ValueError(f"memory_budget must not be negative, got {budget}")
        self.wanted = wanted
        self._budget = budget
        self._chosen: LateRoute | None = None
        self._step_bytes = 0  # what keeping took in the last step that kept, at full precision
        self._counted = 0  # in the present one
        self._warned = False

    @property
    def choices(self) -> dict[str, Any]:
        """The route of the last step with a late probe, and the bytes that keeping takes."""
        return {"late": self._chosen, "kept_bytes": self.kept_bytes}

    @property
    def kept_bytes(self) -> int:
        """What keeping takes, by the last step that kept."""
        return self._counted or self._step_bytes

    @kept_bytes.setter
    def kept_bytes(self, known: int) -> None:
        self._step_bytes, self._counted = known, 0

    def choose(self, has_losses: bool, linear: bool, parameters: Sequence[Tensor]) -> LateRoute:
        """Return the route of the coming step.

        Parameters
        ----------
        has_losses : bool
            Whether the samples' losses are given.
        linear : bool
            Whether the update's slope is known.
        parameters : sequence of Tensor
            What is trained.
        """
        self.kept_bytes = self.kept_bytes  # of the step before
        if self._budget is None and self.wanted == "auto":
            self._budget = int(SHARE_OF_FREE * _free_bytes(parameters[0].device))
        chosen = self._choose(has_losses, linear)
        if chosen != self._chosen:
            logger.info("late probes: %s (%d bytes kept a step, budget %s)", chosen, self._step_bytes, self._budget)
        self._chosen = chosen
        return chosen

    def allowed(self, parameters: Sequence[Tensor]) -> int:
        """Return the bytes that may be kept."""
        if self._budget is None:
            self._budget = int(SHARE_OF_FREE * _free_bytes(parameters[0].device))
        return self._budget

    def count(self, term: Term) -> None:
        """Note a term that is kept."""
        self._counted += sum(t.numel() * t.element_size() for t in term.tensors)

    def _choose(self, has_losses: bool, linear: bool) -> LateRoute:
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
                "pass losses= to step() for a route that keeps none",
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
