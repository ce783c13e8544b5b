"""The samples' losses are differentiated in the direction of the probe, after the step: nothing of it is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from inrun_bench.attribution.layer_terms import MicroBatch, Term
from inrun_bench.attribution.probes import Probe
from inrun_bench.attribution.scoring.as_received import as_received
from inrun_bench.attribution.scoring.late import late_probes
from inrun_bench.attribution.scoring.scores import Scores, TermSums
from inrun_bench.attribution.step import StepBegun, StepReceived, StepTaken

__all__ = ["JvpRoute"]


class JvpRoute:
    """Differentiates losses; what layers report is passed over.

    Parameters
    ----------
    probe : Probe
        In whose direction.
    parameters : mapping of str to Parameter
        The trained parameters by name.
    model : torch.nn.Module
        Whose weights are moved.
    losses : callable
        Returns the samples' losses, [rows].
    """

    late = by_element = True
    sees_layers = samples_slopes = False
    slope_errors = empty = None
    aimed = None

    def __init__(
        self, probe: Probe, parameters: Mapping[str, nn.Parameter], model: nn.Module, losses: Callable[[], Tensor]
    ) -> None:
        self.keys: set[str] = set()
        self.micro_batches: set[MicroBatch] = set()
        self._probe, self._parameters = probe, parameters
        self._closure = _Closure(model, losses)
        self._precision = 0.0  # of the coarsest of what layers compute in; losses may be cast to a finer kind

    def receive(self, term: Term) -> None:
        """Note what it is of."""
        self.keys |= term.keys
        self._precision = max(self._precision, torch.finfo(term.kind).eps)
        self.micro_batches.add(term.micro_batch)

    def before_step(self, begun: StepBegun, received: StepReceived) -> None:
        """Do nothing: losses are differentiated at the weights before the step, which are copied."""

    def scores_so_far(self, _begun: StepBegun, _received: Callable[[], StepReceived]) -> Tensor:
        """Refuse: losses are differentiated after the step."""
        raise RuntimeError(
            "with late='jvp' scores are known only after the step; make the engine with order='first' and another route"
        )

    def scores(self, begun: StepBegun, taken: StepTaken) -> Tensor:
        """Differentiate the losses."""
        probes = late_probes(begun, taken.received, self._probe, self._parameters, taken)
        rows, precision, size = [], self._precision, begun.samples.rows
        for probe in probes.accumulated:
            weights = {f"model.{name}": w for name, w in zip(probe, taken.before, strict=True)}
            along = {f"model.{name}": q for name, q in probe.items()}
            with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward mode
                losses, derivatives, *_ = torch.func.jvp(
                    lambda w: torch.func.functional_call(self._closure, w, ()), (weights,), (along,)
                )
            if losses.shape != (size,):
                raise ValueError(
                    f"losses must return one loss a sample of the step, {size} in all, "
                    f"got a tensor of shape {list(losses.shape)}"
                )
            precision = max(precision, torch.finfo(losses.dtype).eps)
            kept = begun.samples.kept
            derivatives = derivatives.detach().double()
            rows.append(derivatives if kept is None else derivatives * kept.to(derivatives.device))
        total = torch.stack(rows)
        terms = TermSums([set(self._parameters)], [precision], total.sum(1)[None], total.abs().sum(1)[None])
        return as_received(begun, taken.received, Scores(len(rows), begun.device), total, terms, probes.received)

    def finite(self) -> list[Tensor]:
        """Return nothing, as nothing is held."""
        return []


class _Closure(nn.Module):
    """A closure over a model as a module, so that ``functional_call`` can put other weights into the model."""

    def __init__(self, model: nn.Module, closure: Callable[[], Tensor]) -> None:
        super().__init__()
        self.model, self._closure = model, closure

    def forward(self) -> Tensor:
        """Call the closure."""
        return self._closure()
