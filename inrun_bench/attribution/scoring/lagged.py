r"""Lagged slopes: what Adam will make of a gradient, foreseen from the steps before, and how far that is off.

A first-order probe is :math:`q = D\,v`, and under an adaptive optimiser the slope D is known only when the gradient is.
But it moves slowly. With the slope that the optimiser's state lets expect, :math:`q' = D' v`, samples are scored in the
backward pass as under SGD, and nothing is kept. When the optimiser is about to step, D is known, and with it

.. math::
    c = \frac{\langle W q, W q' \rangle}{\langle W q', W q' \rangle}, \qquad
    e = \frac{\lVert W (q - c\,q') \rVert}{\lVert W q \rVert},

by some elements of each parameter, at even distances. Scores are multiplied with c. The *certificate* e is the error of
q, weighted by the size of gradients, element by element: how far scores are off relative to their size, as far as the
gradients of samples are spread over the weights like that. :math:`W^2` is the mean of the square of the usual gradient,
which is that of 1 / D', and, with a smaller share, of the present one, by which what is new shows. It is an estimate
and no bound: on a perceptron and a small GPT, in batches of 16 and 20, true errors were 0.2 to 1.2 times as large in
nine of ten steps; in batches of one sample, whose score may be small where terms cancel, they may be many times as
large. Where a parameter moves for the first time, the certificate is 1 at least.

Slopes are lagged in steps whose last known certificate, that of the step before the last one, leaves a margin to the
tolerance; in all others terms are kept, and scores are exact. So it is in the first steps, and where a certificate has
grown. A lagged step whose own certificate turns out to be above the tolerance is booked with it, counted and warned of.

What the step does with an empty coalition is taken to first order as well, :math:`\langle v, u(0) \rangle`, which
spares one evaluation of the validation loss.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inrun_bench.attribution.directions import Direction, Stacked
from inrun_bench.attribution.optimizers import Optimizers
from inrun_bench.attribution.scoring.early import EarlyRoute, KnownProbes
from inrun_bench.attribution.scoring.first_order import dots_of_each, first_order_empty, validation_gradients
from inrun_bench.attribution.step import StepBegun, StepReceived
from inrun_bench.attribution.transfer import gathered
from inrun_bench.attribution.updates.expected import ExpectedSlope, sampled

__all__ = ["LaggedRoute", "SlopeLag"]

MARGIN = 0.8
"""Of the tolerance: what the last known certificate may be, that slopes are lagged."""

BY_GRADIENT = 0.2
"""The share of the present gradient in the weights of a certificate."""

MANY_SETS = 4
"""Validation sets, for many more of which a certificate looks at fewer elements."""

KNOWN_BY = 2
"""Steps after which a certificate has been looked at, on any device, so that what is decided by it is the same."""


@dataclass(frozen=True)
class Foreseen:
    """What a certificate needs of a step whose gradient is not known: elements of each parameter, by validation set.

    Attributes
    ----------
    gradients : list of Tensor [validation sets, elements]
        v, by parameter.
    slopes : list of Tensor [elements]
        What is expected of the slope.
    """

    gradients: list[Tensor]
    slopes: list[Tensor]

    @classmethod
    def of(cls, gradients: Sequence[Tensor], expected: Sequence[ExpectedSlope]) -> Foreseen:
        """Take elements of gradients [validation sets, *parameter]."""
        slopes = [slope.sample(v[0]) for v, slope in zip(gradients, expected, strict=True)]
        return cls([torch.stack([sampled(own) for own in v]) for v in gradients], slopes)


class SlopeLag:
    """Which steps of a run may be scored with lagged slopes, and how far these are off.

    Parameters
    ----------
    tolerance : float
        Of the certificate; 0 for exact slopes in all steps.

    Attributes
    ----------
    counts : Counter
        Of steps: ``exact``, ``lagged``, and ``beyond``, those of the lagged ones whose certificate was above the
        tolerance.
    last : list of float or Tensor, or None
        Slopes of the last step that were read in full, for optimisers of any kind.
    """

    def __init__(self, tolerance: float) -> None:
        if not 0.0 <= tolerance < 1.0:
            raise ValueError(f"tolerance must be at least 0 and less than 1, got {tolerance}")
        self.counts: Counter[str] = Counter(exact=0, lagged=0, beyond=0)
        self.last: list[float | Tensor] | None = None
        self._tolerance = tolerance
        self._certificates: dict[int, float] = {}  # of the last steps

    @property
    def wanted(self) -> bool:
        """Whether any slope may be lagged."""
        return self._tolerance > 0.0

    def trusts(self, number: int) -> bool:
        """Return whether slopes may be lagged in a step."""
        return self._certificates.get(number - KNOWN_BY, math.inf) <= MARGIN * self._tolerance

    def certify(
        self,
        begun: StepBegun,
        received: StepReceived,
        foreseen: Foreseen,
        slopes: Sequence[Tensor | None],
        *,
        lagged: bool,
    ) -> tuple[Tensor, Tensor]:
        """Hold the slopes that were expected against those that are.

        Parameters
        ----------
        begun, received : StepBegun, StepReceived
            The step.
        foreseen : Foreseen
            What was expected.
        slopes : sequence of Tensor or None
            D of the same elements, by parameter; None for one that is not moved.
        lagged : bool
            Whether the step is scored with what was expected.

        Returns
        -------
        factor, certificate : float64 Tensor [validation sets]
            c and e.
        """
        whole = received.gradients
        elements = [
            _Elements(sampled(g), v, slope, lagged, g.numel() / max(1, len(lagged)))
            for g, v, slope, lagged in zip(whole, foreseen.gradients, slopes, foreseen.slopes, strict=True)
            if g is not None and slope is not None
        ]
        factor, certificate = (x.to(begun.device) for x in _certificate(elements, len(begun.losses)))
        begun.checks.expect(certificate, partial(self._note, begun.number, lagged))
        return factor, certificate

    def remember(self, begun: StepBegun, received: StepReceived, gradients: Sequence[Tensor]) -> Tensor:
        """Remember the slopes of a step that was read in full, and return <v, u(0)>, float64 [validation sets].

        Parameters
        ----------
        begun, received : StepBegun, StepReceived
            The step.
        gradients : sequence of Tensor [validation sets, *parameter]
            v, by parameter.
        """
        if received.void is None:  # else nobody here knows yet whether the step will be taken
            earlier = self.last or [0.0] * len(received.gradients)
            slopes = zip(received.update.slope, received.gradients, earlier, strict=True)
            self.last = [before if g is None else slope for slope, g, before in slopes]
        return first_order_empty(begun, received, gradients)

    def check(
        self,
        begun: StepBegun,
        received: StepReceived,
        gradients: Sequence[Tensor],
        expected: Sequence[ExpectedSlope] | None,
    ) -> None:
        """Hold the slopes of an exact step against those that were expected, if any were."""
        if expected is None:
            self.counts["exact"] += 1
        else:
            foreseen = Foreseen.of(gradients, expected)
            self.certify(begun, received, foreseen, slopes_of_some(received), lagged=False)

    def forget(self) -> None:
        """Forget what is known of slopes: parameters are others now."""
        self.last = None
        self._certificates = {}

    def state_dict(self) -> dict[str, Any]:
        """Return what decisions rest on; all steps must have been looked at."""
        return {"counts": dict(self.counts), "certificates": dict(self._certificates), "last": self.last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.counts = Counter(state["counts"])
        self._certificates = dict(state["certificates"])
        self.last = state["last"]

    def _note(self, number: int, lagged: bool, certificates: NDArray[np.float64]) -> None:
        worst = float(certificates.max())
        worst = math.inf if math.isnan(worst) else worst
        self._certificates = {n: e for n, e in self._certificates.items() if n > number - KNOWN_BY} | {number: worst}
        self.counts["lagged" if lagged else "exact"] += 1
        if lagged and worst > self._tolerance:
            self.counts["beyond"] += 1
            warnings.warn(
                f"step {number}: slopes of the optimiser moved more than expected, and scores with the lagged ones are "
                f"off by about {worst:.2g} of their size, beyond tolerance={self._tolerance:g}; the ledger says by how "
                "much each step's are (slope_errors)",
                RuntimeWarning,
                stacklevel=2,
            )


class LaggedRoute(EarlyRoute):
    """Scores terms as they come, with the slopes that are expected.

    Parameters
    ----------
    lag : SlopeLag
        Told how far they were off.
    begun : StepBegun
        The step.
    parameters : mapping of str to Parameter
        The trained parameters by name.
    expected : sequence of ExpectedSlope
        By parameter.
    optimizers : Optimizers
        Whose slopes they are.
    """

    def __init__(
        self,
        lag: SlopeLag,
        begun: StepBegun,
        parameters: Mapping[str, Tensor],
        expected: Sequence[ExpectedSlope],
        optimizers: Optimizers,
    ) -> None:
        self._lag, self._parameters, self._optimizers = lag, parameters, optimizers
        self.samples_slopes = optimizers.in_closed_form
        self._expected = expected
        self._gradients: list[Tensor] = []
        self._moves: list[Tensor] = []
        self._rates = optimizers.rates(parameters) if self.samples_slopes else []
        scales = {slope.scale for slope in expected if isinstance(slope.scale, float)}
        common = len(scales) == 1 and all(isinstance(slope.scale, float) for slope in expected)
        scaling = {
            name: partial(_scaled_to, slope, p.dtype, common)
            for (name, p), slope in zip(parameters.items(), expected, strict=True)
        }
        directions: Sequence[Direction] = [{} for _ in begun.losses] if begun.queries is None else Stacked({})
        super().__init__(KnownProbes(directions, scales.pop() if common else 1.0, [], scaling), begun)
        if begun.joint is None:  # else its rows bring the gradients
            self._foresee(begun)
            for name, of_sets in zip(parameters, self._gradients, strict=True):
                self.aim_at(name, of_sets)
            self._gradients = [] if self.samples_slopes else self._gradients

    def _foresee(self, begun: StepBegun) -> None:
        """Note what must be known of v when the slopes are."""
        gradients = validation_gradients(begun)
        self._foreseen = Foreseen.of(gradients, self._expected)
        if self.samples_slopes:
            self._moves = [_moves(*pair) for pair in zip(gradients, self._expected, strict=True)]
        self._gradients = gradients

    def before_step(self, begun: StepBegun, received: StepReceived) -> None:
        """Add terms up, and bring them as near to those with the slopes that are as one factor can."""
        if begun.joint is not None:
            self._foresee(begun)
        super().before_step(begun, received)
        if self.samples_slopes:
            slopes = self._optimizers.sampled_slopes(self._parameters, received.gradients)
            rates = zip(received.gradients, self._optimizers.rates(self._parameters), self._rates, strict=True)
            ratios: list[Any] = [  # of learning rates, which all of a move is a multiple of
                0.0 if g is None else 1.0 if now is then or now == then else now / then for g, now, then in rates
            ]
            own: list[Tensor] = [moves * ratio for ratio, moves in zip(ratios, self._moves, strict=True)]
            self.empty = gathered(own).sum(0).to(begun.device)
        else:
            slopes = slopes_of_some(received)
            self.empty = self._lag.remember(begun, received, self._gradients)
        factor, self.slope_errors = self._lag.certify(begun, received, self._foreseen, slopes, lagged=True)
        assert self._total is not None
        self._total = self._total * factor.to(self._total.device)[:, None]

    def _factor(self, _begun: StepBegun, _received: StepReceived) -> float:
        """Return the common factor; learning rates that were changed inside of the step are in the certificate's."""
        return self._probes.factor


def _scaled_to(slope: ExpectedSlope, kind: torch.dtype, common: bool, v: Tensor) -> Tensor:
    return slope.times(v, scaled=not common).to(kind)


def slopes_of_some(received: StepReceived) -> list[Tensor | None]:
    """Return the slopes of some elements of each parameter of a step that was read in full; None where it has none."""
    pairs = zip(received.update.slope, received.gradients, strict=True)
    return [None if g is None else ExpectedSlope(slope).sample(g) for slope, g in pairs]


def _moves(v: Tensor, slope: ExpectedSlope) -> Tensor:
    """Return what is expected of a parameter's part in <v, u(0)>, float64 [validation sets]."""
    total = v.new_zeros(len(v), dtype=torch.float64)
    for factor, x, divisor in slope.moves:
        total = total + factor * dots_of_each(v if divisor is None else v / divisor, x)
    return total


@dataclass(frozen=True)
class _Elements:
    """Some elements of one parameter: gradient, v [validation sets, elements], slopes, and how many each stands for."""

    gradient: Tensor
    validation: Tensor
    slope: Tensor
    expected: Tensor
    size: float


def _certificate(parts: Sequence[_Elements], n_sets: int) -> tuple[Tensor, Tensor]:
    """Return c and e of each validation set, float64 [validation sets]."""
    if not parts:
        return torch.ones(n_sets, dtype=torch.float64), torch.zeros(n_sets, dtype=torch.float64)
    apart = n_sets // MANY_SETS | 1  # of many sets, fewer elements are looked at
    g, slope, lagged = (
        _joined([x[::apart] for x in column])
        for column in zip(*((part.gradient, part.slope, part.expected) for part in parts), strict=True)
    )
    sizes = _joined([torch.full_like(part.gradient[::apart], part.size * apart) for part in parts])
    device = parts[0].gradient.device
    v = torch.cat([part.validation[:, ::apart].to(device, torch.float64) for part in parts], 1)
    usual = torch.where((g != 0) & (lagged != 0), 1 / lagged, 0.0).square_().mul_(sizes)
    present = g.square().mul_(sizes)
    shares = BY_GRADIENT / _positive(present.sum()), (1 - BY_GRADIENT) / _positive(usual.sum())
    weight = (present * shares[0]).add_(usual * shares[1])
    squares = v.square() @ torch.stack(
        [weight * one * two for one, two in ((slope, slope), (slope, lagged), (lagged, lagged))], 1
    )
    own, both, other = squares.unbind(1)
    factor = torch.where(other > 0, both / other, 1.0)
    error = ((own - factor * both).clamp_min(0) / own).sqrt()
    error = torch.where((own == 0) & (other == 0), torch.zeros_like(error), error)
    unforeseen = ((lagged == 0) & (slope != 0) & (g != 0) & (v != 0)).any(1)  # a parameter that has not moved before
    return factor, torch.where(unforeseen, error.clamp_min(1.0), error)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Return elements of parameters end to end, float64, on the first one's device."""
    return torch.cat([x.to(parts[0].device, torch.float64) for x in parts])


def _positive(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.ones_like(x))
