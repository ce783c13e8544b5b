"""InRunShapley: the value of each training sample during the one training run that happens anyway."""

from __future__ import annotations

import fnmatch
import logging
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from inrun_bench.attribution.batch_samples import BatchSamples, Index, Weights
from inrun_bench.attribution.capture.batch_axis import BatchAxis, DeclaredAxes
from inrun_bench.attribution.capture.capture import Capture
from inrun_bench.attribution.capture.observation import is_looked_at_again
from inrun_bench.attribution.capture.saved_tensors import in_backward_pass
from inrun_bench.attribution.capture.trees import parameters_of
from inrun_bench.attribution.directions import Factors
from inrun_bench.attribution.gradient_scaling import Received, Watcher, copies, dense
from inrun_bench.attribution.layer_terms import MicroBatch, Term
from inrun_bench.attribution.ledger.books import ONLY, Books
from inrun_bench.attribution.ledger.ledger import Ledger, Pages
from inrun_bench.attribution.ledger.pending import Pending
from inrun_bench.attribution.optimizers import Optimizers, closure_evaluated
from inrun_bench.attribution.parallel import refuse_parallel, refuse_process_group
from inrun_bench.attribution.probes import PROBES, First, Probe, Step
from inrun_bench.attribution.products.backend import Backend
from inrun_bench.attribution.queries import QueryLoss, QueryLosses
from inrun_bench.attribution.scoring.checks import expect_received, expect_seen
from inrun_bench.attribution.scoring.early import EarlyRoute, joint_probes, known_probes, query_probes
from inrun_bench.attribution.scoring.joint import JointPass, RowsLoss, rows_by_set
from inrun_bench.attribution.scoring.jvp import JvpRoute
from inrun_bench.attribution.scoring.keep import KeepRoute
from inrun_bench.attribution.scoring.lagged import LaggedRoute, SlopeLag
from inrun_bench.attribution.scoring.route import LateChoice, RouteChooser
from inrun_bench.attribution.scoring.split import SplitRoute
from inrun_bench.attribution.selection import BatchLosses
from inrun_bench.attribution.step import OpenStep, Route, StepBegun, StepReceived, StepTaken
from inrun_bench.attribution.transfer import Numbers, gathered, to_host
from inrun_bench.attribution.updates import Update
from inrun_bench.attribution.validation import Loss, ValidationLoss, expect_no_effects_or_chance
from inrun_bench.attribution.weights import Place, SeenWeights, refuse_shared_memory

__all__ = ["InRunShapley"]

Closure: TypeAlias = Callable[[], Tensor]

RULES = ("auto", "project", "weight-gradient", "gram")
FIRST_STEPS = 3  # whose numbers are waited for: what is wrong with a model or a loop shows here

logger = logging.getLogger(__name__)


class InRunShapley:
    """In-Run Data Shapley (arXiv 2406.11011) of one training run.

    At every step, each sample of the batch gets a score: its share of the fall of the validation loss which that step
    brought, to the chosen order. A sample's value is the sum of its scores.

    Parameters
    ----------
    model : torch.nn.Module
        Layers with ghost rules (:func:`inrun_bench.attribution.supported_layers`) are fastest; other layers and bare
        parameters are followed operation by operation, exact as well. Layers that couple samples (batch norm in
        training mode) are refused.
    optimizer : torch.optim.Optimizer, or sequence of them
        All that move the model's parameters. Any that treats each weight alone (SGD with and without momentum, Adam,
        AdamW, RMSprop, Adagrad, ..., or one of your own); others (LBFGS, Muon, Shampoo, ...) are refused. Each steps
        once in a step of training; ``step(closure)`` is scored as well.
    n_samples : int
        Size of the training set; sample indices lie in ``0 .. n_samples - 1``.
    order : {"first", "second", "integrated", "midpoint", "trapezoid"} or Probe
        See :mod:`inrun_bench.attribution.probes` for what each costs and how far it is off.
    validation : callable, or mapping of str to callable, optional
        Returns the validation loss, a scalar in nats, as a deterministic function of the model's present weights; a
        mapping names several validation sets, each of which gets values of its own. Given here, the loss after a step
        is that before the next and is not computed twice. To judge each step by validation samples of its own, give
        it to :meth:`step` instead.
    labels : sequence [n_samples], optional
        The group of each sample (class, domain, source), whose totals the ledger keeps step by step.
    pages : Pages, or mapping of str to Pages, optional
        Where the ledger keeps whole steps: in memory where None; ``ParquetPages(folder)`` streams them to disk.
    rules : {"auto", "project", "weight-gradient", "gram"}
        How linear maps and convolutions are scored where the probe is known in time. ``"auto"`` picks by
        :mod:`inrun_bench.attribution.families.costs`; with any but ``"weight-gradient"``, and in layers where that is
        not picked, training's own arithmetic stays as it is, to the last bit.
    late : {"auto", "keep", "split", "jvp"}
        What is done where the probe comes late; see :mod:`inrun_bench.attribution.scoring.route`.
    memory_budget : int, optional
        Bytes that ``late="auto"`` may keep from a step's backward pass until its probe is known; a quarter of what is
        free where None.
    tolerance : float
        By how much first-order scores under Adam, AdamW and other adaptive optimisers may be off, relative to their
        size, where that spares the step half of what scores cost: they are then made in the backward pass, with the
        slope that the steps before let expect, as long as a certificate allows it
        (:mod:`inrun_bench.attribution.scoring.lagged`). What the step does with an empty coalition is then taken to
        first order as well, and not measured. 0 for exact scores.
    score : str or sequence of str, optional
        Patterns (:mod:`fnmatch`) of the names of parameters that make scores, for instance ``"*.layers.*"`` without
        embeddings and head; all parameters of a layer, or none. What the others bring is in the ledger's account
        ``unscored``. All make scores where None.
    per_query : bool
        Whether `validation` returns the losses of many queries, one each, [queries], and values are of each:
        [n_samples, queries], in one ledger (:mod:`inrun_bench.attribution.queries`). For ``order="first"``.
    batch_axis : {"observed"} or int, or mapping of str to (int, None or "folded")
        Which axis of layers' inputs and outputs numbers the samples. It is observed, in two forward passes beside the
        first step, by exchanging one sample for another
        (:mod:`inrun_bench.attribution.capture.observation`); what is given here, for all layers or by layer name, is
        believed. None: a layer sees positions and no samples; ``"folded"``: its first axis numbers samples and
        positions, samples slowest.
    kernels : {"auto", "triton", "torch"}
        What runs the products that have kernels: Triton on a GPU and plain torch elsewhere, or always the one named.

    Attributes
    ----------
    ledgers : dict of str to Ledger
        One a validation set: scores by sample and by step, and the accounts ``optimizer`` and ``residual``.
    choices : dict
        What was picked automatically: the rule of each layer, how late probes are served, and in how many steps slopes
        were exact and lagged.

    Examples
    --------
    >>> import torch
    >>> x, y = torch.randn(40, 8), torch.randint(3, (40,))
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> loss_fn = torch.nn.functional.cross_entropy
    >>> inrun = InRunShapley(model, optimizer, n_samples=30, order="integrated")
    >>> for index in torch.randperm(30).split(10):
    ...     with inrun.step(index, validation=lambda: loss_fn(model(x[30:]), y[30:])):
    ...         loss_fn(model(x[index]), y[index]).backward()
    ...         optimizer.step()
    ...         optimizer.zero_grad()
    >>> inrun.values().shape
    (30,)
    >>> abs(inrun.ledger.accounts["residual"]) < 1e-4
    True
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        n_samples: int,
        order: str | Probe = "integrated",
        *,
        validation: Closure | Mapping[str, Closure] | None = None,
        labels: Sequence[Any] | NDArray[Any] | None = None,
        pages: Pages | Mapping[str, Pages] | None = None,
        rules: str = "auto",
        late: LateChoice = "auto",
        memory_budget: int | None = None,
        tolerance: float = 0.0,
        score: str | Sequence[str] | None = None,
        per_query: bool = False,
        batch_axis: BatchAxis | Literal["observed"] | Mapping[str, BatchAxis] = "observed",
        kernels: Backend = "auto",
    ) -> None:
        if n_samples < 1:
            raise ValueError(f"n_samples must be at least 1, got {n_samples}")
        model = _as_written(model)
        refuse_parallel(model, model.parameters())
        _check_choice("rules", rules, RULES)
        _check_choice("late", late, get_args(LateChoice))
        _check_choice("kernels", kernels, get_args(Backend))
        if not any(p.requires_grad for p in model.parameters()):
            raise ValueError("model has no trained parameters (none has requires_grad=True)")
        hollow = [name for name, p in model.named_parameters() if p.device.type == "meta"]
        if hollow and batch_axis == "observed":
            raise ValueError(
                f"model has weights without numbers, on the device 'meta' ({', '.join(map(repr, hollow[:3]))}"
                f"{', ...' if len(hollow) > 3 else ''}); load them before it is watched"
            )
        refuse_shared_memory(model)
        self._optimizers = Optimizers(optimizer, {p: name for name, p in model.named_parameters()}, kernels)
        self.probe = _probe(order)
        self.n_samples = n_samples
        self._model, self._rules, self._kernels, self._axes = model, rules, kernels, DeclaredAxes(batch_axis)
        self._labels, self._pages = labels, pages
        self._chooser = RouteChooser(late, memory_budget)
        self._lag = SlopeLag(tolerance)
        if tolerance and type(self.probe) is not First:
            raise ValueError(
                f"tolerance={tolerance:g} is for order='first': probes of {self.probe.name!r} are known only after the "
                "step, so that lagged slopes spare nothing"
            )
        self._scored = None if score is None else _matching(score, model)
        if self._scored is not None and late == "jvp":
            raise ValueError("late='jvp' differentiates losses by all parameters; with score=, choose another")
        self._validation = None if validation is None else _named(validation)
        self._per_query = per_query
        self._collected: list[Term] | None = None  # of a pass over queries
        self._joint: JointPass | None = None  # of the step that is open
        self._joint_steps = 0
        if per_query and type(self.probe) is not First:
            raise ValueError(f"per_query=True is for order='first', got {self.probe.name!r}")
        if per_query and late in ("split", "jvp"):
            raise ValueError(f"per_query=True is not for late={late!r}; choose 'auto' or 'keep'")
        if per_query and isinstance(validation, Mapping):
            raise ValueError("per_query=True takes one validation closure, which returns the losses of all queries")
        self._books = self._new_books(self._validation or (ONLY,))
        self._watch()
        self._optimizers.watch(self._before_optimizer_step, self._after_optimizer_step)
        self._open: OpenStep | None = None
        self._steps = 0
        self._pending: Pending | None = None  # the last step, while nobody has looked at its numbers
        self._left_at: Place | None = None  # the weights to which it led, unless their loss is known

    @property
    def ledgers(self) -> dict[str, Ledger]:
        """One ledger a validation set."""
        self._settle_books()
        return dict(self._books.ledgers)

    @property
    def ledger(self) -> Ledger:
        """The ledger of the one validation set."""
        return self.ledgers[self._books.only()]

    @property
    def choices(self) -> dict[str, Any]:
        """What was picked automatically: ``rules`` by layer, ``late`` and its bytes, ``slopes`` by number of steps."""
        self._look()
        return {
            "rules": dict(self._capture.chosen),
            **self._chooser.choices,
            **({"slopes": dict(self._lag.counts)} if self._lag.wanted else {}),
        }

    def values(self, validation: str | None = None, *, steps: slice | None = None) -> NDArray[np.float64]:
        """Return the value of each sample so far, float64 [n_samples], in nats of validation loss.

        Parameters
        ----------
        validation : str, optional
            Which validation set's, where there are several.
        steps : slice, optional
            Of which steps the scores are added up, for instance ``slice(1, None)`` without the first; all where None.

        Raises
        ------
        ValueError
            If the model was found to mix samples after steps in which that could not be seen.
        """
        if self._capture.contradicted is not None:
            raise ValueError(f"there are no values: {self._capture.contradicted}")
        name = self._books.only() if validation is None else validation
        _check_choice("validation", name, list(self._books.ledgers))
        if steps is None:
            self._look()
            return self._books.values(name)
        values = np.zeros_like(self._books.values(name))
        pages = self.ledgers[name].steps
        for number in range(*steps.indices(len(pages))):
            np.add.at(values, pages[number].index, pages[number].scores)
        return values

    def detach(self) -> None:
        """Take all hooks off the model and the optimiser; the ledgers stay, and streamed pages are brought to disk."""
        try:
            for ledger in self.ledgers.values():
                ledger.steps.flush()
        finally:
            self._capture.remove()
            self._watcher.remove()
            self._optimizers.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return the ledgers, and what choices rest on, to be saved with the model and the optimiser.

        Returns
        -------
        dict
            Tensors and plain Python, for ``torch.save``; see :meth:`load_state_dict`.
        """
        self._settle_books()
        return {
            "steps": self._steps,
            "by_element": self._watcher.by_element,
            "copying": self._watcher.copying,
            "surprised": self._watcher.surprised,
            "kept_bytes": self._chooser.kept_bytes,
            "factorable": sorted(self._capture.worth_factoring()),
            "ledgers": self._books.state_dict(),
            "lag": self._lag.state_dict() if self._lag.wanted else None,
            "scored": None if self._scored is None else sorted(self._scored),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        With model and optimiser restored as well, the values of the resumed run are those of an uninterrupted one, to
        the last bit.
        """
        if self._open is not None:
            raise RuntimeError("a step is open; restore the state between steps")
        scored = state.get("scored")
        if (None if scored is None else frozenset(scored)) != self._scored:
            raise ValueError(
                "the state is of an engine whose scores are of other parameters; resume with the same score= that the "
                "run began with"
            )
        if self._validation is None and state["ledgers"].keys() != self._books.ledgers.keys():
            self._books = self._new_books(state["ledgers"])
        if self._per_query:
            self._books = self._new_books((ONLY,), state["ledgers"][ONLY]["values"].shape[-1])
        self._books.load_state_dict(state["ledgers"])
        self._pending = self._left_at = None
        self._steps = state["steps"]
        self._watcher.by_element, self._watcher.surprised = state["by_element"], state["surprised"]
        self._watcher.differed = state["copying"]
        self._chooser.kept_bytes = state["kept_bytes"]
        self._capture.factors.resume(set(state["factorable"]))
        if state.get("lag") is not None:
            self._lag.load_state_dict(state["lag"])

    @contextmanager
    def step(
        self,
        index: Index | None = None,
        validation: Closure | Mapping[str, Closure] | None = None,
        losses: Closure | None = None,
        *,
        weights: Weights | None = None,
        validation_rows: int | Sequence[str] | None = None,
    ) -> Iterator[OpenStep]:
        """Score one training step: its forward and backward passes and ``optimizer.step()`` belong in the with-block.

        Parameters
        ----------
        index : int [rows] or [rows, k], optional
            The training sample of each row of the batch, in the order of the batch axis; a sample may have several
            rows, whose contributions are added up. None where the batch comes in parts, each announced by
            :meth:`OpenStep.batch`.
        validation : callable, or mapping of str to callable, optional
            Returns the validation loss, a scalar, for this step; the engine's own where None.
        losses : callable, optional
            Returns each sample's contribution to the loss that is differentiated, [batch], for instance
            ``lambda: cross_entropy(model(x), y, reduction="none") / len(x)``. ``late="jvp"`` and
            :meth:`OpenStep.keep` need it, and ``late="auto"`` may use it.
        weights : float [rows, k], optional
            Where a row is made of k samples (mixup), their shares in it; see :meth:`OpenStep.batch`.
        validation_rows : int or sequence of str, optional
            How many rows of the forward pass, after those that `index` names, are validation samples; or the name of
            the validation set of each. Training and validation are then differentiated in one backward pass
            (:mod:`inrun_bench.attribution.scoring.joint`), that of :meth:`OpenStep.loss`; optimisers receive the
            gradient of the training rows alone. For ``order="first"``. The loss after the step is not known then, and
            drop and residual of the step are NaN, unless `validation` returns the mean loss of the same rows.

        Yields
        ------
        OpenStep

        Raises
        ------
        ValueError
            If an index is out of range, a layer's batch axis cannot be observed, or the scores do not add up.
        RuntimeError
            If steps are nested, the block ends without ``optimizer.step()``, or anything else moves the weights in it.
        FloatingPointError
            If a score is not finite.

        Notes
        -----
        From the fourth step on, what only numbers on the device can tell is looked at a step later, so that a GPU never
        waits: such an error is raised at the end of the next step, or when values, ledgers or a state are asked for. It
        names its step, which is not booked; the next is, if it is sound.

        If the block is left by an exception of its own, nothing is written to the ledger. A step that a ``GradScaler``
        skips, since gradients overflowed, is not booked either.
        """
        if self._open is not None:
            raise RuntimeError("a step is already open; steps must not be nested")
        refuse_process_group()
        self._capture.check_parameters()
        self._follow_frozen_and_unfrozen()
        self._optimizers.look_again(self._names)
        self._optimizers.watch(self._before_optimizer_step, self._after_optimizer_step)  # hooks may have been added
        if self._per_query:
            queries = self._queries_of(validation, validation_rows, losses)
            begun = self._begun(self._each(queries), queries=queries)
        elif validation_rows is None:
            begun = self._begun(self._losses_of(validation))
        else:
            of_rows, self._joint = self._joint_pass(validation_rows, index, validation, losses)
            begun = self._begun(of_rows, joint=self._joint)
        others = self._optimizers.watch_others(self._names)
        try:
            with self._capture.watching():
                opened = self._opened(begun, losses)
                self._capture.begin()
                if index is not None:
                    opened.batch(index, weights)
                self._open = opened
                yield opened
            if opened.received is None and opened.overflowed(self._parameters):
                logger.info("step %d: gradients overflowed and the optimiser did not step; not booked", self._steps)
                return
            self._finish(opened)
        except ValueError as error:
            if self._joint is not None:
                error.add_note("The rows of the step are those of index and of validation_rows together.")
            raise
        finally:
            others.remove()
            self._open = self._joint = None
            self._watcher.end()
            self._capture.join(None)
            for loss in begun.losses.values():
                loss.forget_copies()

    def _begun(
        self, losses: Mapping[str, Loss], *, joint: JointPass | None = None, queries: QueryLosses | None = None
    ) -> StepBegun:
        """Note what there is before the step."""
        if losses is not self._lasting and self._left_at is not None:  # for a loss that this step won't measure
            self._settle_books()
        self._warn_if_weights_changed()
        begun = StepBegun(
            number=self._steps,
            waited_for=self._steps < FIRST_STEPS or self._watcher.surprised,
            device=self._parameters[0].device,
            losses=losses,
            weights=self._weights.present,
            place=self._weights.place,
            samples=BatchSamples(self.n_samples),
            checks=Numbers(),
            scored=self._scored,
            joint=joint,
            queries=queries,
        )
        self._weights.note_if_moved()
        for loss in losses.values():
            loss.thorough = begun.waited_for
        return begun

    def _opened(self, begun: StepBegun, losses: Closure | None) -> OpenStep:
        """Choose a route, and aim the probe if it can be known by now."""
        route = self._route(begun, losses)
        if begun.number == 0:
            closures = {name: loss.closure for name, loss in begun.losses.items() if loss.closure is not None}
            if self._per_query:  # all of them have one
                closures = dict(zip((ONLY,), closures.values(), strict=False))
            expect_no_effects_or_chance(self._model, closures, begun.checks)
        joint = self._joint
        self._capture.aim(route.aimed if joint is None else None)
        self._capture.join(joint)
        self._watcher.begin()
        if joint is not None:
            joint.route, self._watcher.arrived = route, joint.arrived
            self._joint_steps += 1
            if begun.waited_for or is_looked_at_again(self._joint_steps) or self._joint_steps == 1:
                joint.look_closely(self._model, through=not self._capture.compiled)

        def received() -> StepReceived:
            gradients = [None if p.grad is None else dense(p.grad.detach()) for p in self._parameters]
            return StepReceived(
                gradients, Received(), 1.0, None, self._optimizers.read(self._capture.parameters, gradients)
            )

        of_batch = None
        if losses is not None:
            of_batch = BatchLosses(
                losses,
                self._model,
                self._capture.parameters,
                self._watcher,
                self._capture.looking_away,
                thorough=begun.waited_for,
            )
        return OpenStep(begun, route, self._capture, received, of_batch)

    def _route(self, begun: StepBegun, losses: Closure | None) -> Route:
        parameters, linear, joint = self._capture.parameters, self._optimizers.linear, begun.joint
        names = list(parameters)
        if linear and not self.probe.late and not self._watcher.by_element and self._chooser.wanted == "auto":
            update = self._optimizers.read(parameters)
            if joint is not None:
                return EarlyRoute(joint_probes(begun, update, names), begun)
            if begun.queries is not None:
                return EarlyRoute(query_probes(begun, update, names), begun)
            return EarlyRoute(known_probes(begun, update, names, self._early_direction), begun)
        lag = self._lag if self._lag.wanted and not linear and self._chooser.wanted == "auto" else None
        expected = None if lag is None else self._optimizers.expected_slopes(parameters, lag.last)
        if lag is not None and expected is not None and lag.trusts(begun.number) and not self._watcher.by_element:
            return LaggedRoute(lag, begun, parameters, expected, self._optimizers)
        has_losses = losses is not None and self._scored is None
        linear = linear and joint is None and begun.queries is None
        chosen = self._chooser.choose(has_losses, linear, self._parameters)
        if chosen == "jvp":
            assert losses is not None
            return JvpRoute(self.probe, parameters, self._model, losses)
        if chosen == "keep":
            return KeepRoute(self.probe, parameters, self._chooser.count, lag, expected)
        first = known_probes(begun, self._optimizers.read(parameters), names, First().direction)
        return SplitRoute(self.probe, parameters, self._chooser.count, first, begun)

    def _early_direction(self, step: Step) -> Sequence[Tensor | Factors]:
        lasting = step.validation in self._losses.values()  # factors are trusted once they have been checked
        loss = step.validation.closure
        if type(self.probe) is First and self._rules in ("auto", "gram") and lasting and loss is not None:
            loss.factored = self._capture.worth_factoring()
            return loss.factored_gradient()[1]
        return self.probe.direction(step)

    def _receive(self, term: Term) -> None:
        """Hand what one layer's backward pass brings to the step's route."""
        if self._collected is not None:
            self._collected.append(term)
        elif self._open is not None:
            (self._open.route if self._joint is None else self._joint).receive(term)

    def _before_optimizer_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note what the optimisers are about to do, while gradients and old weights are still there."""
        opened = self._open
        if opened is None:
            return None
        if in_backward_pass():
            raise RuntimeError(
                "optimizer.step() was called inside of the backward pass, where other gradients are not known yet; "
                "call it after backward()"
            )
        if optimizer in opened.stepped:
            raise RuntimeError("optimizer.step() was called twice in one step; open one step for each")
        arguments = closure_evaluated(args, kwargs, first=not opened.stepped)
        opened.stepped.append(optimizer)
        if len(opened.stepped) == 1:
            self._read_step(opened)
            opened.as_read = self._optimizers.as_read(self._capture.parameters)
        elif opened.as_read is not None:
            opened.as_read.expect_still(optimizer, opened.begun.checks, opened.begun.number)
        return arguments

    def _read_step(self, opened: OpenStep) -> None:
        self._capture.show(None)
        begun, route = opened.begun, opened.route
        if not begun.samples.rows:
            raise ValueError("the step has no index: give one to step(), or announce its parts by batch()")
        if begun.place != self._weights.place:
            raise RuntimeError(
                "weights were changed between the beginning of the step and optimizer.step(): gradients of two points "
                "(sharpness-aware training, look-ahead) have no scores at one"
            )
        self._weights.expect_as_noted(begun.checks, begun.number)
        if self._trained() != set(self._parameters):
            raise RuntimeError(
                "parameters were frozen or unfrozen inside of the step; do it between steps, where it is followed"
            )
        if self._joint is not None:
            self._joint.finish()
        received = self._received(opened)
        if self._joint is not None:
            self._joint.expect_sums(begun.checks, received.gradients, begun.number)
            if begun.waited_for:
                self._joint.expect_closures(begun.checks, begun.losses.values(), begun.number)
        route.before_step(begun, received)
        if begun.waited_for:
            begun.checks.read()
        before = begun.weights
        if not route.late:  # its probe has made the loss known
            opened.losses_before = [loss.value() for loss in begun.losses.values()]
        else:  # whatever comes after the step may change gradients, and the optimiser changes weights in place
            received = replace(received, gradients=copies(received.gradients))
        if route.late or (received.update.empty is not None and route.empty is None):
            before = copies(begun.weights)
            for loss in begun.losses.values():
                loss.copied(before)
        opened.received, opened.before = received, before

    def _received(self, opened: OpenStep) -> StepReceived:
        """Note the gradients as they are about to be taken; a fused optimiser undoes a ``GradScaler`` itself."""
        begun, scale = opened.begun, self._optimizers.grad_scale
        changes = self._watcher.compare(by_element=opened.route.by_element)
        gradients = [None if p.grad is None else dense(p.grad.detach()) for p in self._parameters]
        unscaled: float | Tensor = 1.0
        if scale is not None:
            unscaled = scale.double().reciprocal()
            gradients = [None if g is None else g * unscaled.to(g.device) for g in gradients]
        void = self._optimizers.found_inf
        expect_received(begun.checks, changes, void, self._watcher, begun.number)
        if opened.route.sees_layers:
            by_name = dict(zip(self._capture.parameters, gradients, strict=True))
            expect_seen(begun.checks, opened.route.keys, by_name, begun.number)
        if opened.route.samples_slopes:
            update = Update([], None)
        else:
            update = self._optimizers.read(self._capture.parameters, gradients)
        return StepReceived(gradients, changes, unscaled, void, update)

    def _after_optimizer_step(self, *_: Any) -> None:
        opened = self._open
        if opened is not None and opened.received is not None:
            opened.taken = StepTaken(opened.received, opened.before, self._weights.present, self._weights.place)
            self._weights.note()
            for loss in opened.begun.losses.values():
                loss.moved()

    def _finish(self, opened: OpenStep) -> None:
        """Compute what is missing when the step has been taken, and hand it to the books."""
        begun, taken = opened.begun, opened.taken
        if taken is None:
            raise RuntimeError("the step ended without optimizer.step(); it must be called inside the with-block")
        if len(opened.stepped) < len(self._optimizers.members):
            raise RuntimeError(
                f"{len(opened.stepped)} of {len(self._optimizers.members)} optimisers stepped; each must, once a step"
            )
        if taken.place != self._weights.place:
            _warn_of_changed_weights(f"after optimizer.step(), in step {begun.number}")
        losses, update = list(begun.losses.values()), taken.received.update
        scores = opened.route.scores(begun, taken)
        before = gathered(opened.losses_before or [loss.value(taken.before) for loss in losses])
        empty = torch.zeros_like(before)
        if opened.route.empty is not None:
            empty = opened.route.empty
        elif update.empty is not None:
            base = torch._foreach_sub(taken.before, update.empty)
            empty = before - gathered([loss.value(base) for loss in losses]).to(before.device)
        after = None
        if begun.losses is not self._lasting or all(loss.knows_present for loss in losses):
            after = gathered([loss.value() for loss in losses])
        self._left_at = self._weights.place if after is None else None
        earlier, self._pending = (
            self._pending,
            Pending(begun, taken, scores, self._books, before, empty, after, opened.route.slope_errors),
        )
        self._steps += 1
        if begun.queries is not None:
            begun.queries.let_go()
        if earlier is not None:
            earlier.look()  # while the device is busy with this step
        if begun.waited_for:
            self._look()

    def _look(self) -> None:
        """Look at the numbers of the last step, if nobody has; this waits for the device."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.look()

    def _settle_books(self) -> None:
        """Measure the loss to which the last step led, if nobody has by now."""
        self._look()
        if self._left_at is not None and self._open is None:
            self._warn_if_weights_changed()
            self._left_at = None
            self._weights.note_if_moved()  # the loss that is measured now is theirs
            losses = to_host(gathered([loss.value() for loss in self._lasting.values()]))()
            if self._per_query:
                self._books.settle({ONLY: losses.copy()})
            else:
                self._books.settle(dict(zip(self._lasting, losses.tolist(), strict=True)))

    @property
    def _lasting(self) -> Mapping[str, Loss]:
        """The losses of the engine's own closures, which are the same from step to step."""
        return self._of_queries if self._per_query else self._losses

    def _watch(self) -> None:
        """Put hooks on the model as it is now."""
        self._queries: QueryLosses | None = None  # of the engine's own closure, and of these parameters
        self._of_queries: dict[str, QueryLoss] = {}  # the same, one by one
        self._names = {p: name for name, p in self._model.named_parameters()}
        self._capture = Capture(self._model, self._receive, self._axes, self._rules, self._kernels)
        self._parameters = list(self._capture.parameters.values())
        self._watcher = Watcher(self._capture.parameters)
        self._weights = SeenWeights(self._parameters, self._names)
        closures = {} if self._validation is None or self._per_query else self._validation
        self._losses = {name: self._new_loss(closure) for name, closure in closures.items()}

    def _trained(self) -> set[nn.Parameter]:
        return {p for p in parameters_of(self._model) if p.requires_grad}

    def _follow_frozen_and_unfrozen(self) -> None:
        """Watch anew where parameters were frozen or unfrozen since the last step."""
        trained = self._trained()
        if trained != set(self._parameters):
            self._settle_books()
            if not trained:
                raise RuntimeError("every parameter was frozen since InRunShapley was made; there is nothing to score")
            known = self._watcher
            self._lag.forget()
            self._capture.remove()
            known.remove()
            self._watch()
            self._watcher.by_element, self._watcher.surprised = known.by_element, known.surprised
            self._watcher.differed = known.copying

    def _warn_if_weights_changed(self) -> None:
        if self._left_at is not None and self._left_at != self._weights.place:
            _warn_of_changed_weights(f"after step {self._steps - 1}")

    def _losses_of(self, validation: Closure | Mapping[str, Closure] | None) -> dict[str, ValidationLoss]:
        if validation is None:
            if not self._losses:
                raise ValueError(
                    "no validation loss: pass validation= to step() or to InRunShapley(), or validation_rows= to step()"
                )
            return self._losses
        closures = _named(validation)
        self._expect_sets(closures)
        return {name: self._new_loss(closure) for name, closure in closures.items()}

    def _refuse_frequencies(self, what: str) -> None:
        """Refuse tables whose gradient depends on what all rows of a call name."""
        for name, module in self._model.named_modules():
            if getattr(module, "scale_grad_by_freq", False):
                raise TypeError(
                    f"{name!r} ({type(module).__name__}) has scale_grad_by_freq=True, so that the gradient of each row "
                    f"depends on the others it is called with, and {what} cannot tell them apart; set it to False"
                )

    def _queries_of(self, validation: Any, validation_rows: Any, losses: Any) -> QueryLosses:
        """Return the losses of the queries of a step, all together: its own, or the engine's, which last."""
        if validation_rows is not None:
            raise ValueError(
                "per_query=True takes queries from validation=; for values of each validation row, give each a name of "
                "its own in validation_rows= of an engine without per_query"
            )
        if losses is not None:
            raise ValueError("a step with per_query=True takes no losses=")
        if isinstance(validation, Mapping):
            raise ValueError("per_query=True takes one validation closure, which returns the losses of all queries")
        self._refuse_frequencies("per_query=True")
        if validation is not None:
            return self._new_queries(validation)
        if self._validation is None:
            raise ValueError("no validation loss: pass validation= to step() or to InRunShapley()")
        if self._queries is None:
            self._queries = self._new_queries(self._validation[ONLY])
        return self._queries

    def _each(self, queries: QueryLosses) -> dict[str, QueryLoss]:
        """Return the loss of each query; make books in the first step."""
        each = self._of_queries if queries is self._queries and self._of_queries else queries.each()
        if self._books.queries != len(each):
            if self._steps:
                raise ValueError(
                    f"validation returned {len(each)} losses, and {self._books.queries} before; queries must stay the "
                    "same"
                )
            self._books = self._new_books((ONLY,), len(each))
        if queries is self._queries:
            self._of_queries = each
        return each

    def _joint_pass(
        self,
        validation_rows: int | Sequence[str],
        index: Index | None,
        validation: Closure | Mapping[str, Closure] | None,
        losses: Closure | None,
    ) -> tuple[dict[str, RowsLoss], JointPass]:
        """Return the losses of the validation rows of a step, and what brings them."""
        if type(self.probe) is not First:
            raise ValueError(
                f"validation_rows= is for order='first': probes of {self.probe.name!r} need validation gradients, or "
                "their derivatives, at other weights than those of the pass; pass validation= instead"
            )
        if self._chooser.wanted in ("split", "jvp"):
            raise ValueError(f"validation_rows= is not for late={self._chooser.wanted!r}; choose 'auto' or 'keep'")
        if losses is not None:
            raise ValueError("a step has losses= or validation_rows=, and not both; for keep(), pass validation=")
        if index is None:
            raise ValueError(
                "validation_rows= needs the index of the training rows: step(index, validation_rows=...); for a batch "
                "in parts, pass validation="
            )
        self._refuse_frequencies("validation_rows=")
        sets = rows_by_set(validation_rows, ONLY)
        closures = {} if validation is None else _named(validation)
        if closures and closures.keys() != sets.keys():
            raise ValueError(
                f"validation must have a closure for each set of validation_rows, {', '.join(map(repr, sets))}; got "
                f"{', '.join(map(repr, closures))}"
            )
        self._expect_sets(sets)
        capture = self._capture
        joint = JointPass(len(index), sets, capture.parameters, capture.is_used_elsewhere, capture.looking_away)
        measured = {name: self._new_loss(closure) for name, closure in closures.items()}
        return {name: RowsLoss(joint, number, measured.get(name)) for number, name in enumerate(sets)}, joint

    def _expect_sets(self, names: Collection[str]) -> None:
        """Refuse other validation sets than those of the run; make books in its first step."""
        if set(names) != self._books.ledgers.keys():
            if self._steps or self._validation:
                raise ValueError(
                    f"validation sets must stay the same over a run: {', '.join(map(repr, self._books.ledgers))}; "
                    f"got {', '.join(map(repr, names))}"
                )
            self._books = self._new_books(names)

    def _new_books(self, names: Iterable[str], queries: int | None = None) -> Books:
        if self._per_query and queries is None:
            queries = 0  # until the first step
        return Books(self.n_samples, names, self._labels, self._pages, queries)

    def _new_queries(self, closure: Closure) -> QueryLosses:
        trained, capture = self._capture.parameters, self._capture
        others = parameters_of(self._model) - set(trained.values())
        return QueryLosses(
            closure,
            trained,
            others,
            capture.factors.collecting,
            capture.as_called_last,
            watching=self._watching_queries,
            watched=lambda: self._capture.watched,
            budget=lambda: self._chooser.allowed(self._parameters),
            heavy=capture.weights_of_products,
            number=self._books.queries or None,
            times=self._steps,
        )

    @contextmanager
    def _watching_queries(self, number: int) -> Iterator[list[Term]]:
        """Collect the terms of what is differentiated in this block, whose rows are queries."""
        self._collected = []
        self._capture.aim(None)
        self._capture.show(MicroBatch(0, number))
        try:
            yield self._collected
        finally:
            self._capture.show(None)
            self._collected = None

    def _new_loss(self, closure: Closure) -> ValidationLoss:
        trained = self._capture.parameters
        others = parameters_of(self._model) - set(trained.values())
        return ValidationLoss(closure, trained, others, self._capture.factors.collecting, self._capture.as_called_last)


def _as_written(model: nn.Module) -> nn.Module:
    """Return the model that ``torch.compile`` was given: layers are watched in it, whichever of the two is called."""
    inner = getattr(model, "_orig_mod", None)
    return _as_written(inner) if isinstance(inner, nn.Module) else model


def _named(validation: Closure | Mapping[str, Closure]) -> dict[str, Closure]:
    if not isinstance(validation, Mapping):
        return {ONLY: validation}
    if not validation:
        raise ValueError("validation must name at least one validation set, got an empty mapping")
    return dict(validation)


def _warn_of_changed_weights(when: str) -> None:
    warnings.warn(
        f"weights were changed by something else {when}; what that did to the validation loss is in the residual of "
        "the step",
        RuntimeWarning,
        stacklevel=5,
    )


def _probe(order: str | Probe) -> Probe:
    if not isinstance(order, str):
        return order
    if order not in PROBES:
        raise ValueError(f"order must be one of {', '.join(map(repr, PROBES))} or a Probe, got {order!r}")
    return PROBES[order]()


def _matching(patterns: str | Sequence[str], model: nn.Module) -> frozenset[str]:
    """Return the names of parameters that match any of the patterns, by any of their names where they have several."""
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    first = {p: name for name, p in model.named_parameters()}
    of_name = {name: first[p] for name, p in model.named_parameters(remove_duplicate=False)}
    names = list(of_name)
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(
                f"score names {pattern!r}, which matches none of the model's parameters, such as "
                f"{', '.join(map(repr, names[:3]))}"
            )
    if not patterns:
        raise ValueError("score must name at least one pattern of parameters, got none")
    return frozenset(of_name[name] for pattern in patterns for name in fnmatch.filter(names, pattern))


def _check_choice(name: str, got: str, allowed: Sequence[str]) -> None:
    if got not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {got!r}")
