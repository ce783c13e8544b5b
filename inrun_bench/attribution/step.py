"""One step of training: what a loop may say of it while it is open, and records of how far it has come."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from inrun_bench.attribution.batch_samples import BatchSamples, Index, Weights
from inrun_bench.attribution.capture.capture import Capture
from inrun_bench.attribution.directions import Stacked
from inrun_bench.attribution.gradient_scaling import Received
from inrun_bench.attribution.layer_terms import Aimed, Joint, MicroBatch, Term
from inrun_bench.attribution.optimizers import AsRead
from inrun_bench.attribution.selection import BatchLosses
from inrun_bench.attribution.transfer import Numbers, gathered, to_host
from inrun_bench.attribution.updates import Update
from inrun_bench.attribution.validation import Loss
from inrun_bench.attribution.weights import Place

__all__ = ["OpenStep", "Route", "StepBegun", "StepReceived", "StepTaken"]


class JointRows(Joint, Protocol):
    """Training and validation rows of one backward pass (:class:`inrun_bench.attribution.scoring.joint.JointPass`)."""

    @property
    def scale(self) -> Tensor:
        """What a loss scale has multiplied gradients with, float64 scalar."""

    def loss(self, training: Tensor, validation: Tensor) -> Tensor:
        """Return what is to be differentiated."""


class Queries(Protocol):
    """The losses of many queries; see :class:`inrun_bench.attribution.queries.QueryLosses`."""

    def gradients(self) -> Stacked:
        """Return the gradient of each query's loss, [Q, *parameter] by parameter."""

    def let_go(self) -> None:
        """Let go of the gradients."""


@dataclass(frozen=True)
class StepBegun:
    """A step whose forward passes are to come.

    Attributes
    ----------
    number : int
        Counted from 0.
    waited_for : bool
        Whether its numbers are looked at as soon as they are there.
    device : torch.device
        Where scores are summed.
    losses : mapping of str to Loss
        By validation set.
    weights : list of Tensor
        The present ones, which the optimiser will change.
    place : Place
        What tells them from others.
    samples : BatchSamples
        Of the batch, as far as they are announced.
    checks : Numbers
        What may show that the step is not what it was taken for.
    scored : frozenset of str, or None
        Parameters that make scores; all where None.
    joint : JointRows, or None
        One backward pass of all rows, where validation samples are among them.
    queries : Queries, or None
        Where `losses` are those of queries, all of them together.
    """

    number: int
    waited_for: bool
    device: torch.device
    losses: Mapping[str, Loss]
    weights: list[Tensor]
    place: Place
    samples: BatchSamples
    checks: Numbers
    scored: frozenset[str] | None = None
    joint: JointRows | None = None
    queries: Queries | None = None


@dataclass(frozen=True)
class StepReceived:
    """A step whose optimisers are about to move.

    Attributes
    ----------
    gradients : list of Tensor or None
        As the optimisers take them; None for a parameter without one.
    changes : Received
        How they came from the accumulated ones.
    unscaled : float or scalar Tensor
        What a fused optimiser multiplies gradients with itself, to undo a ``GradScaler``.
    void : Tensor, or None
        Where not zero, the optimiser will not have stepped, which it alone knows; None where it always does.
    update : Update
        What the optimisers will do.
    """

    gradients: list[Tensor | None]
    changes: Received
    unscaled: float | Tensor
    void: Tensor | None
    update: Update

    def factor(self, device: torch.device) -> float | Tensor:
        """Return what scores of the accumulated gradient are multiplied with to be scores of the one received.

        A float64 scalar on the device, or a number where it is one.
        """
        product: float | Tensor = 1.0
        for factor in (self.changes.factor, self.unscaled):
            product = product * (factor.to(device, torch.float64) if isinstance(factor, Tensor) else factor)
        return product


@dataclass(frozen=True)
class StepTaken:
    """A step after which weights are others.

    Attributes
    ----------
    received : StepReceived
        Its gradients are copies where the step's route needs them still.
    before, after : list of Tensor
        Weights; `before` are copies where anybody needs them still.
    place : Place
        What tells those after it from others.
    """

    received: StepReceived
    before: list[Tensor]
    after: list[Tensor]
    place: Place


class Route(Protocol):
    """How the samples of one step are scored; see :mod:`inrun_bench.attribution.scoring.route`."""

    @property
    def aimed(self) -> Aimed | None:
        """What layers score samples with in their own backward pass, and who takes it; None where they do not."""

    @property
    def late(self) -> bool:
        """Whether gradients and weights are needed after the optimisers' step as they were before it."""

    @property
    def by_element(self) -> bool:
        """Whether what was done to gradients before the step is asked for weight by weight."""

    @property
    def slope_errors(self) -> Tensor | None:
        """How far scores are off for slopes that were lagged, float64 [validation sets]; None where none was."""

    @property
    def sees_layers(self) -> bool:
        """Whether scores are of what layers report, so that a parameter which none reports is missed."""

    @property
    def keys(self) -> set[str]:
        """Parameters of which something has been seen."""

    @property
    def micro_batches(self) -> set[MicroBatch]:
        """Those of which something has been seen."""

    @property
    def samples_slopes(self) -> bool:
        """Whether the route reads of the optimisers what it needs itself, so that a step's `update` holds nothing."""

    @property
    def empty(self) -> Tensor | None:
        """What the step does with an empty coalition, to first order, float64 [validation sets]; None: measure it."""

    def receive(self, term: Term) -> None:
        """Take a term that a backward pass brings."""

    def before_step(self, begun: StepBegun, received: StepReceived) -> None:
        """Do what can be done only while accumulated gradients and weights are there."""

    def scores(self, begun: StepBegun, taken: StepTaken) -> Tensor:
        """Return the scores, float64 [validation sets, rows of the batch], and let go of what they were made of.

        Where some parameters make no scores, what theirs would add up to is one column more.
        """

    def scores_so_far(self, begun: StepBegun, received: Callable[[], StepReceived], /) -> Tensor:
        """Return the scores of what has been differentiated by now, float64 [validation sets, rows of the batch].

        Parameters
        ----------
        begun : StepBegun
            The step.
        received : callable
            Reads what the optimisers would do with the gradients as they are now.
        """

    def finite(self) -> list[Tensor]:
        """Return of all that is held whether it is finite."""


class OpenStep:
    """What :meth:`InRunShapley.step` yields; for batches that come in parts, and for choosing among a batch's samples.

    Parameters
    ----------
    begun : StepBegun
        Its beginning.
    route : Route
        How its samples are scored.
    capture : Capture
        Told the samples of the forward passes to come.
    received : callable
        Reads what the optimisers would do with the gradients as they are.
    losses : BatchLosses, or None
        Those of its samples, where they are given.
    """

    def __init__(
        self,
        begun: StepBegun,
        route: Route,
        capture: Capture,
        received: Callable[[], StepReceived],
        losses: BatchLosses | None,
    ) -> None:
        self.begun, self.route = begun, route
        self._received, self._losses = received, losses
        self.received: StepReceived | None = None  # once the optimisers are about to move
        self.taken: StepTaken | None = None  # once they have
        self.before: list[Tensor] = begun.weights  # or copies, once the optimisers are about to move
        self.losses_before: list[Tensor] = []  # of the validation sets, where they must be known by then
        self.stepped: list[Optimizer] = []  # those that have been about to
        self.as_read: AsRead | None = None  # what several optimisers are to do
        self._capture = capture
        self._parts: list[MicroBatch] = []

    def batch(self, index: Index, weights: Weights | None = None) -> None:
        """Say which training samples the coming forward passes hold, until the next call.

        Parameters
        ----------
        index : int [rows] or [rows, k]
            The sample of each row, in the order of the batch axis. A sample may have several rows (views of it, or
            draws with replacement): what they contribute is added up. The step's batch is the sum of its parts, for
            instance the micro-batches of gradient accumulation.
        weights : float [rows, k], optional
            Where a row is made of k samples (mixup), the share of each in what the row contributes; each row's add up
            to 1. Needed where `index` has two axes.
        """
        samples = self.begun.samples
        if samples.kept is not None:
            raise RuntimeError(
                "batch() was called after keep(), which chooses among all of the step's rows; call it before"
            )
        start, joint = samples.rows, self.begun.joint
        if joint is not None and self._parts:
            raise RuntimeError(
                "a step with validation_rows= has no parts: its index is given to step(); pass validation="
            )
        samples.add(index, weights, self.begun.checks, f"step {self.begun.number}: ")
        if joint is not None:
            self._parts.append(joint.training)
            self._capture.show(joint.rows)
            return
        differentiated = self.route.micro_batches
        beside = tuple(part.size for part in self._parts if part not in differentiated)
        self._parts.append(MicroBatch(start, samples.rows - start, beside))
        self._capture.show(self._parts[-1])

    def loss(self, training: Tensor, validation: Tensor) -> Tensor:
        """Return what is to be differentiated in a step with `validation_rows`.

        It is the training loss plus, for each validation set, the mean loss of its rows. Multiply it as you do with a
        loss (``GradScaler``), and call ``backward()`` on it.

        Parameters
        ----------
        training : scalar Tensor, or Tensor [training rows]
            The loss of the training rows, the first of the batch, as the loop has it; or one a row, whose mean it is.
        validation : Tensor [validation rows]
            The loss of each validation row, in nats.

        Returns
        -------
        scalar Tensor
        """
        if self.begun.joint is None:
            raise RuntimeError("loss() is for steps with validation rows: step(index, validation_rows=...)")
        return self.begun.joint.loss(training, validation)

    def scores(self, validation: str | None = None) -> Tensor:
        """Return the scores that the batch's rows would get, after the backward pass and before the optimiser steps.

        Of an engine of first order. Nothing is booked, and nobody waits for a device. Scores are of the gradients as
        they are now, taken as they are: what is done to them later (clipping) is not in them, and a loss scale is.
        Under an adaptive optimiser call it after ``scaler.unscale_(optimizer)``, and after clipping: its slopes are
        others for larger gradients, and scores are then off by one common factor alone.

        Parameters
        ----------
        validation : str, optional
            Which validation set's, where there are several.

        Returns
        -------
        float64 Tensor [rows]
            In the order of the batch axis, in nats.
        """
        names = list(self.begun.losses)
        if validation is None and len(names) > 1:
            raise ValueError(f"there are several validation sets, {', '.join(map(repr, names))}: name one")
        if validation is not None and validation not in names:
            raise ValueError(f"validation must be one of {', '.join(map(repr, names))}, got {validation!r}")
        self._expect_differentiated("scores()")
        if self.begun.samples.kept is not None:
            raise RuntimeError("scores() was called after keep(), which has changed the gradient; call it before")
        with self._capture.looking_away():
            scores = self.route.scores_so_far(self.begun, self._received)
        return scores[0 if validation is None else names.index(validation), : self.begun.samples.rows]

    def keep(self, mask: Tensor | Sequence[bool], *, rescale: bool = False) -> None:
        """Have the optimiser receive the gradient of some rows of the batch alone; the others score 0.

        Needs the `losses` of the step, which are differentiated anew, with the random numbers of the batch's forward
        pass; each is a row's contribution to the loss that was differentiated, loss scale included. Between the
        backward pass and what else is done to gradients (unscaling, clipping, ``optimizer.step()``). In the first steps
        it is looked at whether they are that, by one backward pass more.

        Parameters
        ----------
        mask : bool [rows]
            Which rows are kept, at least one.
        rescale : bool
            Whether those that are kept take the weight of all: their contributions are multiplied with rows / kept, so
            that a mean over the batch becomes one over them.
        """
        rows = self.begun.samples.rows
        if self.begun.joint is not None:
            raise RuntimeError(
                "keep() differentiates losses of training rows anew; use it in steps with validation=, and not with "
                "validation_rows="
            )
        given = torch.as_tensor(mask)
        if given.dtype != torch.bool or tuple(given.shape) != (rows,):
            raise ValueError(
                f"mask must be a bool for each of the {rows} rows, got {given.dtype} of shape {list(given.shape)}"
            )
        self._expect_differentiated("keep()")
        if self.begun.samples.kept is not None:
            raise RuntimeError("keep() was called twice in one step")
        kept = given.to(self.begun.device, torch.float64)
        number = int(kept.sum())
        if not number:
            raise ValueError("mask keeps no row; leave the block without optimizer.step() to skip a batch")
        kept = kept * (rows / number) if rescale else kept
        if self._losses is None:
            raise ValueError("keep() needs the samples' losses: pass losses= to step()")
        self._losses.keep(kept)
        self.begun.samples.kept = kept

    def _expect_differentiated(self, what: str) -> None:
        if self.received is not None:
            raise RuntimeError(f"{what} was called after optimizer.step(); call it before")
        seen = self.route.micro_batches
        if not self._parts or any(part not in seen for part in self._parts):
            raise RuntimeError(f"{what} was called before the backward pass of all of the batch; call it after")

    def overflowed(self, parameters: Sequence[Tensor]) -> bool:
        """Whether gradients are not finite, so that a ``GradScaler`` may have skipped the optimiser's step."""
        gradients = [torch.isfinite(p.grad).all() for p in parameters if p.grad is not None]
        return not to_host(gathered([*self.route.finite(), *gradients]))().all()
