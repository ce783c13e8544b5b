r"""One backward pass of training rows and of validation rows (arXiv 2406.11011, section 4.2 and appendix D.3).

The last rows of a batch are validation samples, and what is differentiated is the training loss plus the mean of
theirs. A layer sees the input a and the output's gradient b of all rows at once: the rows of validation make its part
of the probe, :math:`v = \sum_{val} b^T a`, and those of training are scored with it, at no pass of its own.

What optimisers are to receive is the gradient of the training rows alone. Linear maps and convolutions form it so in
their own backward pass (:mod:`inrun_bench.attribution.capture.fused`). Of any other use of a parameter, autograd sums
the gradient over all rows. It is taken apart when it arrives at the parameter: from the terms that were seen of it,
the parts of training and of validation are formed anew, the first is put in the place of the sum, and it is looked at
that the sum is theirs.

A probe is known when all of a parameter's uses have been differentiated, be it tied or called twice; terms wait until
then.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from inrun_bench.attribution.capture.operation_terms import OperationTerm
from inrun_bench.attribution.directions import Direction, Factors, multiplied_out
from inrun_bench.attribution.gradient_scaling import Watcher, dense
from inrun_bench.attribution.layer_terms import FormedTerm, LayerSite, LayerTerm, MicroBatch, Rows, Term
from inrun_bench.attribution.precision import norms
from inrun_bench.attribution.random_state import RandomState
from inrun_bench.attribution.scoring.early import EarlyRoute
from inrun_bench.attribution.step import Route
from inrun_bench.attribution.transfer import Numbers, gathered
from inrun_bench.attribution.validation import Loss, ValidationLoss

__all__ = ["JointPass", "RowsLoss", "rows_by_set"]

OF_NOTHING = 16  # in units of the precision: rounding that a parameter without a gradient may have, of all gradients
SHARE = 0.25  # of the root of the precision: what rounding may do to a sum
SAME = 0.02  # relative: half precision rounds, but another loss is far
KEEP_STATISTICS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
WHOLE = (
    "with validation_rows=, all rows are differentiated in one backward pass; give step(validation=...) a closure "
    "instead where there are several"
)


def rows_by_set(validation_rows: int | Sequence[str], only: str) -> dict[str, list[int]]:
    """Return which of the validation rows make up each validation set, numbered from 0.

    Raises
    ------
    ValueError
        If there is none, or a label is no string.
    """
    if isinstance(validation_rows, (int, np.integer)) and not isinstance(validation_rows, bool):
        if validation_rows < 1:
            raise ValueError(
                f"validation_rows must be at least 1, the number of rows at the end of the batch that are validation "
                f"samples, got {validation_rows}"
            )
        return {only: list(range(int(validation_rows)))}
    if isinstance(validation_rows, (str, bool)) or not isinstance(validation_rows, Sequence) or not validation_rows:
        raise ValueError(
            "validation_rows must be a number of rows, or the name of the validation set of each of them, "
            f"got {validation_rows!r}"
        )
    sets: dict[str, list[int]] = {}
    for row, name in enumerate(validation_rows):
        if not isinstance(name, str):
            raise ValueError(f"validation_rows must name validation sets by strings, got {name!r}")
        sets.setdefault(name, []).append(row)
    return sets


class RowsLoss:
    """The loss of the validation rows of one set in one step.

    It stands for a :class:`~inrun_bench.attribution.validation.ValidationLoss` at the weights of the step.

    Parameters
    ----------
    joint : JointPass
        The backward pass that differentiates it.
    number : int
        Which of its sets.
    closure : ValidationLoss, optional
        The same loss, as a function of the weights, by which the loss after the step is measured.
    """

    def __init__(self, joint: JointPass, number: int, closure: ValidationLoss | None) -> None:
        self.thorough = False
        self.closure = closure
        self._joint, self._number = joint, number
        self._moved = False

    @property
    def knows_present(self) -> bool:
        """Whether the loss at the present weights is known."""
        return not self._moved

    def value(self, at: Sequence[Tensor] | None = None) -> Tensor:
        """Return the loss that was differentiated; after the step, what was measured, or NaN."""
        if not self._moved:
            return self._joint.values[self._number]
        if self.closure is None:
            return torch.full_like(self._joint.values[self._number], torch.nan)
        return self.closure.value(at)

    def gradient(self, _at: Sequence[Tensor] | None = None, *, keep: bool = False) -> tuple[Tensor, list[Tensor]]:  # noqa: ARG002
        """Return the loss and its gradient, one tensor a parameter, at the weights before the step."""
        return self._joint.values[self._number], self._joint.gradient(self._number)

    def gradient_and_hessian_product(
        self, vector: Sequence[Tensor], at: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return the loss, its gradient v and the Hessian-vector product H x, where it is given as a function."""
        if self.closure is None:
            raise RuntimeError("validation rows bring no second derivatives; pass validation= to step()")
        return self.closure.gradient_and_hessian_product(vector, at)

    def moved(self) -> None:
        """Learn that the present weights are new ones."""
        self._moved = True
        if self.closure is not None:
            self.closure.moved()

    def copied(self, weights: Sequence[Tensor]) -> None:
        """Learn that `weights` are a copy of the present ones."""

    def forget_copies(self) -> None:
        """Forget all but the present weights."""
        if self.closure is not None:
            self.closure.forget_copies()


class JointPass:
    """The rows of one step's batch, what is differentiated of them, and what that brings, parameter by parameter.

    Parameters
    ----------
    training : int
        Number of training rows, which come first.
    sets : mapping of str to list of int
        The validation rows of each validation set, numbered from 0.
    parameters : mapping of str to Parameter
        The trained parameters by name.
    elsewhere : callable
        Given a parameter's name, whether it is used outside of the one layer that it belongs to.
    looking_away : callable
        Returns a context in which nothing that is called is taken for training.

    Attributes
    ----------
    training : MicroBatch
        The training rows.
    rows : MicroBatch
        All rows.
    sets : list of slice or Tensor
        Where the rows of each validation set stand.
    values : list of Tensor
        Their mean losses, float64 scalars, once they are known.
    route : Route
        How training rows are scored.
    """

    route: Route

    def __init__(
        self,
        training: int,
        sets: Mapping[str, Sequence[int]],
        parameters: Mapping[str, nn.Parameter],
        elsewhere: Callable[[str], bool],
        looking_away: Callable[[], AbstractContextManager[None]],
    ) -> None:
        validation = sum(map(len, sets.values()))
        self.training = MicroBatch(0, training)
        self.rows = MicroBatch(0, training + validation, validation=validation)
        self.sets: list[Rows] = [_rows([training + row for row in rows]) for rows in sets.values()]
        self.values: list[Tensor] = []
        self._closely = self._through = False
        self._checking: _Seen | None = None  # while losses are differentiated to see what they are made of
        self._first: tuple[str, Tensor] | None = None  # what the backward pass is to begin with
        self._of_first: Tensor | None = None
        self._random: RandomState | None = None
        self._buffers: list[tuple[str, Tensor, Tensor]] = []
        self._of_set = [list(rows) for rows in sets.values()]
        self._parameters, self._names = parameters, {p: name for name, p in parameters.items()}
        self._elsewhere, self._looking_away = elsewhere, looking_away
        self._calls: Counter[str] = Counter()  # of layers that form the gradient of the training rows themselves
        self._gradients: list[dict[str, Any]] = [{} for _ in sets]  # tensors, or factors
        self._of_layers: dict[str, Tensor] = {}  # what layers have formed of gradients that have other parts, too
        self._of_terms: dict[str, Tensor] = {}  # the same of terms
        self._terms_of_all: dict[str, Tensor] = {}  # of training and validation rows
        self._to_split: dict[str, list[Term]] = {}
        self._waiting: list[Term] = []
        self._complete: set[str] = set()
        self._scale: Tensor | None = None
        self._precision: dict[str, float] = {}  # of the coarsest of what went into terms
        self._found: list[tuple[str, Tensor]] = []

    # what is differentiated

    def look_closely(self, model: nn.Module, *, through: bool) -> None:
        """Have it looked at what losses are made of, and what the forward pass changes; before it is run.

        `through` the model, by a backward pass of each: a compiled graph is not differentiated twice.
        """
        self._closely, self._through = True, through
        self._random = RandomState.now(list(self._parameters.values()), others=True)
        self._buffers = [
            (name, buffer, buffer.clone())
            for name, buffer in model.named_buffers()
            if buffer.is_floating_point() and not buffer.is_meta
        ]
        for name, module in model.named_modules():
            if isinstance(module, KEEP_STATISTICS) and module.training and module.running_mean is not None:
                raise TypeError(
                    f"{name!r} ({type(module).__name__}) keeps statistics of what it is called on, and validation rows "
                    "would be in them; make it with track_running_stats=False, or pass validation="
                )

    def loss(self, training: Tensor, validation: Tensor) -> Tensor:
        """Return what is to be differentiated; see :meth:`inrun_bench.attribution.step.OpenStep.loss`."""
        if self.values:
            raise RuntimeError("loss() was called twice in one step; " + WHOLE)
        count = self.rows.validation
        if not isinstance(validation, Tensor) or tuple(validation.shape) != (count,):
            got = list(validation.shape) if isinstance(validation, Tensor) else type(validation).__name__
            raise ValueError(f"validation must be the loss of each of the {count} validation rows, got {got}")
        if not isinstance(training, Tensor) or tuple(training.shape) not in ((), (self.training.size,)):
            got = list(training.shape) if isinstance(training, Tensor) else type(training).__name__
            raise ValueError(
                f"training must be a scalar, the loss as the loop has it, or the loss of each of the "
                f"{self.training.size} training rows, got {got}"
            )
        for name, loss in (("training", training), ("validation", validation)):
            if not loss.requires_grad:
                raise ValueError(f"{name} has no graph; compute it from the model's output, without detach()")
        total = training.mean() if training.dim() else training
        means = [validation.mean() if len(rows) == count else validation[rows].mean() for rows in self._of_set]
        if self._closely:
            self._expect_apart(total, torch.stack(means).sum())
            self._warn_of_chance_and_buffers()
        for mean in means:
            self.values.append(mean.detach().double())
            total = total + mean
        validation.register_hook(self._differentiated)
        return total

    def _differentiated(self, gradient: Tensor) -> None:
        """Note what a loss scale has made of the means' gradients."""
        if self._scale is not None:
            raise RuntimeError("the losses of a step were differentiated twice; " + WHOLE)
        first = self._of_set[0]
        self._scale = gradient.detach()[first[0]].double() * len(first)

    def _expect_apart(self, training: Tensor, validation: Tensor) -> None:
        """Refuse a training loss that is made of validation rows as well, and the other way round."""
        size, start = self.rows.size, self.training.size
        behind = [_parameters_behind(loss) for loss in (training, validation)]
        alone = sorted(self._names[p] for p in behind[1] - behind[0] if p in self._names)
        if alone:
            raise ValueError(
                f"the validation loss is made of parameter {alone[0]!r}, and the training loss is not: an optimiser "
                "would take it for trained, with a gradient of zeros; pass validation= for such a step"
            )
        if not self._through:
            return
        seen: list[_Seen] = []
        of_training, of_validation = slice(0, start), slice(start, size)
        for loss, foreign in ((training, of_validation), (validation, of_training)):
            self._checking = _Seen(foreign)
            try:
                torch.autograd.grad(loss, list(self._parameters.values()), retain_graph=True, allow_unused=True)
            finally:
                seen.append(self._checking)
                self._checking = None
        for own, other, part in (("training", "validation", seen[0]), ("validation", "training", seen[1])):
            if part.strays and bool(torch.stack(part.strays).any()):
                raise ValueError(
                    f"the {own} loss is made of {other} rows as well: the first {start} rows of the batch are training "
                    f"samples, the last {size - start} validation samples, and each loss must be of its own"
                )
        firsts = [part.first for part in seen if part.first is not None]
        if len(firsts) == len(seen) and firsts[0][0] == firsts[1][0]:
            self._first = firsts[0][0], firsts[0][1] + firsts[1][1]

    def _warn_of_chance_and_buffers(self) -> None:
        if self._random is not None and self._random.drawn_from():
            warnings.warn(
                "random numbers are drawn in the forward pass (dropout?), so that the loss of the validation rows is "
                "another one each time, and its noise is in scores; train without, or pass validation= and put the "
                "model in eval mode for it",
                RuntimeWarning,
                stacklevel=4,
            )
        for name, buffer, before in self._buffers:
            if not torch.equal(buffer, before):
                warnings.warn(
                    f"the forward pass changes the model's buffer {name!r}; if that depends on what the rows hold, "
                    "validation rows take part in it",
                    RuntimeWarning,
                    stacklevel=4,
                )
                break

    def _see(self, where: str, b: Tensor) -> bool:
        """Look at the gradient of a call's output, [rows, ...]; return whether that is all that it was brought for."""
        if self._checking is not None:
            self._checking.note(where, b.detach())
            return True
        if self._first is not None and self._scale is not None:
            (first, expected), self._first = self._first, None
            if first == where and expected.shape == b.shape:
                off = (b.double() - expected.double() * self._scale.to(b.device)).norm()
                self._of_first = torch.stack(
                    [off, b.double().norm(), b.new_full((), torch.finfo(b.dtype).eps).double()]
                )
        return False

    @property
    def scale(self) -> Tensor:
        """What a loss scale has multiplied gradients with, float64 scalar."""
        assert self._scale is not None
        return self._scale

    # what the backward pass brings

    def called(self, keys: Sequence[str]) -> None:
        """Be told that a layer is run which will bring the gradients of these parameters itself."""
        self._calls.update(keys)

    def takes_factors(self, keys: Sequence[str]) -> bool:
        """Whether a layer's part of the gradients may be in factors: it is all of them, and slopes are one number."""
        return isinstance(self.route, EarlyRoute) and self.route.scales_alike and self.alone(keys)

    def bring(self, keys: Sequence[str], of_sets: Sequence[Sequence[Tensor | Factors]]) -> Sequence[Direction] | None:
        """Take a layer's part of the validation gradients.

        Parameters
        ----------
        keys : sequence of str
            The layer's parameters.
        of_sets : sequence of sequences of Tensor or Factors
            Their gradients, by validation set; in factors where :meth:`takes_factors` says so.

        Returns
        -------
        sequence of mappings, or None
            The probes, where that is all there will be of them and scores are made in the backward pass.
        """
        self._expect_open(keys)
        for gradients, own in zip(self._gradients, of_sets, strict=True):
            for key, gradient in zip(keys, own, strict=True):
                if isinstance(gradient, Factors):
                    gradients[key] = gradient
                else:
                    _add(gradients, key, gradient.to(self._parameters[key].dtype))
        if not self.alone(keys):
            return None
        for key in keys:
            self._completed(key)
        return self.route.directions if isinstance(self.route, EarlyRoute) else None

    def alone(self, keys: Sequence[str]) -> bool:
        """Whether one call of one layer is all that is done with these parameters."""
        return all(self._calls[key] <= 1 and not self._elsewhere(key) for key in keys)

    def take_scores(self, site: LayerSite, scores: Tensor, kind: torch.dtype) -> None:
        """Take scores of training rows that a layer has made with the probes that it was given."""
        assert isinstance(self.route, EarlyRoute)
        self.route.take_scores(site, self.training, scores, kind)

    def looks_away(self, site: LayerSite, b: Tensor) -> bool:
        """Whether a layer's gradient, that of its output being b, is asked for to see what losses are made of alone."""
        return self._see(site.where, b)

    def receive_training(self, term: LayerTerm, gradients: Mapping[str, Tensor]) -> None:
        """Take a term of training rows whose gradient its layer has formed."""
        if not term.keys <= self._complete:
            for key, gradient in gradients.items():
                _add(self._of_layers, key, gradient)
        self._hand_on(term)

    def receive(self, term: Term) -> None:
        """Take a term of all rows."""
        if self._see(term.where, _by_row(term)):
            return
        self._expect_open(term.keys)
        for key in term.keys:
            self._to_split.setdefault(key, []).append(term)

    def arrived(self, parameter: nn.Parameter) -> None:
        """Be told that all of the gradient of a parameter has been accumulated."""
        key = self._names.get(parameter)
        if key is None or parameter.grad is None or key in self._complete:
            return
        with self._looking_away(), torch.no_grad():
            for term in list(self._to_split.get(key, [])):
                self._split(term)
            if key in self._of_terms:
                self._take_apart(key, parameter)
            self._completed(key)
            self._release()

    def finish(self) -> None:
        """Be told that all has been differentiated: what nothing is known of has no gradient."""
        if not self.values:
            raise RuntimeError(
                "the step has validation_rows, and their loss is not in what was differentiated: "
                "step.loss(training, validation) adds it"
            )
        if self._scale is None:
            raise RuntimeError("what step.loss() returned was not differentiated; call backward() on it")
        for key in self._parameters:
            self._completed(key)
        self._release()
        if isinstance(self.route, EarlyRoute):
            self.route.order(list(self._parameters))

    def gradient(self, number: int) -> list[Tensor]:
        """Return the gradient of the loss of a validation set, one tensor a parameter."""
        own = self._gradients[number]
        return [multiplied_out(own[name]) / self.scale.to(p.device, p.dtype) for name, p in self._parameters.items()]

    def expect_closures(self, checks: Numbers, losses: Iterable[Loss], number: int) -> None:
        """Have a closure refused that is another loss than that of the rows."""
        pairs = [(own, loss.closure.value()) for own, loss in zip(self.values, losses, strict=True) if loss.closure]
        if not pairs:
            return

        def check(found: NDArray[np.float64]) -> None:
            for rows, closure in found.reshape(-1, 2):
                if not np.isclose(rows, closure, rtol=SAME, atol=SAME**2):
                    raise ValueError(
                        f"step {number}: the mean loss of the validation rows is {rows:.6g}, and validation= says "
                        f"{closure:.6g} at the same weights. It must be the mean loss of the same rows, with the model "
                        "in the same mode (dropout makes them two)"
                    )

        checks.expect(gathered([one for pair in pairs for one in pair]), check)

    def expect_sums(self, checks: Numbers, gradients: Sequence[Tensor | None], number: int) -> None:
        """Have ValueError raised unless gradients that were taken apart were the sums of what was seen of them.

        And, where it was looked at, unless the backward pass was that of the losses.
        """
        if self._of_first is not None:
            checks.expect(self._of_first, partial(_refuse_other_losses, number))
        if not self._found:
            return
        names = [name for name, _ in self._found]
        eps = np.array([max(self._precision[n], torch.finfo(self._parameters[n].dtype).eps) for n in names])
        whole = norms([g for g in gradients if g is not None]).double().norm()
        device = whole.device
        table = torch.stack([row.to(device) for _, row in self._found])

        def check(found: NDArray[np.float64]) -> None:
            off, size = found[1:].reshape(-1, 2).T
            wrong = off > SHARE * np.sqrt(eps) * size + OF_NOTHING * eps * found[0]
            if wrong.any():
                raise ValueError(
                    f"step {number}: the gradient of {names[int(wrong.argmax())]!r} is not the sum of what was seen of "
                    "the batch's rows, so that the part of its training rows is not known. Look for gradients that "
                    "were there before the step (zero_grad), hooks on parameters, or something else that changed them"
                )

        checks.expect(torch.cat([whole.reshape(1), table.reshape(-1)]), check)

    def _take_apart(self, key: str, parameter: nn.Parameter) -> None:
        """Put the gradient of the training rows in the place of that of all rows."""
        assert parameter.grad is not None
        if parameter.grad.is_sparse:
            raise ValueError(
                f"parameter {key!r} has a sparse gradient, which validation_rows= does not serve; pass validation=, or "
                "make the embedding with sparse=False"
            )
        total = dense(parameter.grad.detach())
        of_layers = self._of_layers.pop(key, None)
        own, of_all = self._of_terms.pop(key), self._terms_of_all.pop(key)
        if of_layers is not None:
            own, of_all = own + of_layers, of_all + of_layers
        off = (total.to(of_all.dtype) - of_all).norm().double()
        self._found.append((key, torch.stack([off, of_all.norm().double() + own.norm().double()])))
        first = next(iter((getattr(parameter, "_post_accumulate_grad_hooks", None) or {}).values()), None)
        if not isinstance(getattr(first, "__self__", None), Watcher):
            raise RuntimeError(
                f"a hook was put on the gradient of parameter {key!r} before InRunShapley was made, and would see that "
                "of validation rows, too; put it on afterwards, or pass validation="
            )
        parameter.grad.copy_(own.reshape(total.shape))

    def _split(self, term: Term) -> None:
        """Form the gradients of the training rows and of each validation set, once for all of a term's parameters."""
        for key in term.keys:
            self._to_split[key] = [one for one in self._to_split.get(key, []) if one is not term]
        whole = term.formed() if isinstance(term, LayerTerm) else term
        training, *of_sets = whole.gradients([self.training.rows, *self.sets])
        for key, gradient in training.items():
            self._precision[key] = max(self._precision.get(key, 0.0), torch.finfo(term.kind).eps)
            _add(self._of_terms, key, gradient)
            _add(self._terms_of_all, key, sum((own[key] for own in of_sets), start=gradient))
            for gradients, own in zip(self._gradients, of_sets, strict=True):
                _add(gradients, key, own[key].to(self._parameters[key].dtype))
        self._waiting.append(_of_training(whole, self.training))

    def _completed(self, key: str) -> None:
        if key in self._complete:
            return
        self._complete.add(key)
        p = self._parameters[key]
        for gradients in self._gradients:
            if key not in gradients:
                gradients[key] = torch.zeros_like(p, requires_grad=False)
        if isinstance(self.route, EarlyRoute):
            self.route.aim_at(key, [gradients[key] for gradients in self._gradients])

    def _hand_on(self, term: Term) -> None:
        """Hand a term of training rows to the route, as soon as its probe is known."""
        if term.keys <= self._complete:
            self.route.receive(term)
        else:
            self._waiting.append(term)

    def _release(self) -> None:
        waiting, self._waiting = self._waiting, []
        for term in waiting:
            self._hand_on(term)

    def _expect_open(self, keys: Any) -> None:
        if not self._complete.isdisjoint(keys):
            raise RuntimeError(
                f"parameter {sorted(self._complete.intersection(keys))[0]!r} got a gradient after all of it was taken "
                "to be there (several backward passes in one step, a checkpoint with use_reentrant=True, or a layer "
                "that is called twice in a compiled graph); " + WHOLE
            )


class _Seen:
    """What is seen of the calls that a loss is made of, the last first.

    Attributes
    ----------
    strays : list of bool Tensor
        Whether rows that are none of the loss's have a gradient, call by call.
    first : (str, Tensor), or None
        The call that is met first, and the gradient of its output, [rows, ...].
    """

    def __init__(self, foreign: slice) -> None:
        self._foreign = foreign
        self.strays: list[Tensor] = []
        self.first: tuple[str, Tensor] | None = None

    def note(self, where: str, b: Tensor) -> None:
        """Note a call by the gradient of its output, [rows, ...]."""
        self.strays.append(b[self._foreign].any())
        if self.first is None:
            self.first = where, b.clone()


def _refuse_other_losses(number: int, found: NDArray[np.float64]) -> None:
    off, size, eps = found
    if off > SHARE * np.sqrt(eps) * size:
        raise ValueError(
            f"step {number}: what was differentiated is not what step.loss() returned, or more than that; add further "
            "losses of the training rows to what it is given as training"
        )


def _by_row(term: Term) -> Tensor:
    """Return the gradient of a call's output, [rows, ...]."""
    if isinstance(term, OperationTerm):
        return term.by_row
    size = term.micro_batch.size
    return term.b if len(term.b) == size else term.b.unflatten(0, (size, -1))


def _parameters_behind(loss: Tensor) -> set[Any]:
    """Return the leaves that a loss is made of."""
    waiting = [loss.grad_fn]
    met, leaves = set(waiting), set()
    while waiting:
        node: Any = waiting.pop()
        if hasattr(node, "variable"):
            leaves.add(node.variable)
        further = {each for each, _ in node.next_functions if each is not None} - met
        met |= further
        waiting += further
    return leaves


class _PartOfTerm:
    """The training rows of a term that cannot be cut: all are scored, and those of validation left away."""

    def __init__(self, term: Term, training: MicroBatch) -> None:
        self._term, self.micro_batch = term, training
        self.where, self.keys, self.kind, self.b, self.tensors = term.where, term.keys, term.kind, term.b, term.tensors

    def score(self, probe: Direction) -> Tensor:
        """Return the samples' dot products with `probe`, [micro_batch.size]."""
        return self._term.score(probe)[self.micro_batch.rows]

    def scores(self, probes: Sequence[Direction]) -> Tensor:
        """Return the samples' dot products with several probes."""
        return self._term.scores(probes)[:, self.micro_batch.rows]

    def gradients(self, groups: Sequence[Rows]) -> list[dict[str, Tensor]]:
        """Return the gradients of groups of rows."""
        return self._term.gradients(groups)

    def gradients_of_each(self) -> dict[str, Tensor]:
        """Return the gradient of each row."""
        return {key: own[self.micro_batch.rows] for key, own in self._term.gradients_of_each().items()}

    def rounded(self, dtype: torch.dtype) -> _PartOfTerm:
        """Return the term in another precision."""
        return _PartOfTerm(self._term.rounded(dtype), self.micro_batch)


def _of_training(term: Term, training: MicroBatch) -> Term:
    if isinstance(term, FormedTerm) or (isinstance(term, LayerTerm) and isinstance(term.a, Tensor)):
        return term.part(training)
    return _PartOfTerm(term, training)


def _rows(numbers: Sequence[int]) -> Rows:
    if list(numbers) == list(range(numbers[0], numbers[0] + len(numbers))):
        return slice(numbers[0], numbers[0] + len(numbers))
    return torch.tensor(numbers)


def _add(sums: dict[str, Tensor], key: str, part: Tensor) -> None:
    sums[key] = sums[key] + part if key in sums else part
