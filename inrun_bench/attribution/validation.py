"""The validation loss as a function of the weights, read off a user's closure.

The closure evaluates the user's model; to ask for another point than the present weights, they are put into the model
for the time of the call and taken out again. Neither the weights nor the random stream of training notice.

The closure is taken to be a deterministic function of the weights: what it said of the present ones is remembered until
they change. The loss after a step is that before the next, and so is its gradient.

Losses are scalar tensors, float64, and stay on the device of the closure's: whoever reads one waits for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from inrun_bench.attribution.capture.factors import FactorCall
from inrun_bench.attribution.directions import Factors, multiplied_out
from inrun_bench.attribution.gradient_scaling import dense
from inrun_bench.attribution.transfer import Numbers, gathered, to_host
from inrun_bench.attribution.weights import traits, unlike

__all__ = ["Loss", "ValidationLoss", "expect_no_effects_or_chance", "moved_to"]

_Place: TypeAlias = tuple[tuple[int, int], ...]


class Loss(Protocol):
    """What a step knows of a validation loss; see :class:`ValidationLoss`."""

    thorough: bool

    @property
    def closure(self) -> ValidationLoss | None:
        """The loss as a function of the weights, where there is one."""

    @property
    def knows_present(self) -> bool:
        """Whether the loss at the present weights is known already."""

    def value(self, at: Sequence[Tensor] | None = None) -> Tensor:
        """Return l_val, in nats."""

    def gradient(self, at: Sequence[Tensor] | None = None, *, keep: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Return l_val and its gradient, one tensor a parameter."""

    def gradient_and_hessian_product(
        self, vector: Sequence[Tensor], at: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return l_val, its gradient v and the Hessian-vector product H x."""

    def moved(self) -> None:
        """Learn that the present weights are new ones."""

    def copied(self, weights: Sequence[Tensor]) -> None:
        """Learn that `weights` are a copy of the present ones."""

    def forget_copies(self) -> None:
        """Forget all but the present weights."""


class ValidationLoss:
    """l_val(w) and its derivatives with respect to the trained parameters.

    Parameters
    ----------
    closure : callable
        Returns the validation loss at the model's present weights, a scalar tensor in nats.
    parameters : mapping of str to tensor
        The model's trained parameters by name.
    others : collection of tensor
        Those that are not trained, of which a loss is a function, too.
    collecting : callable
        Given names of weights, a context manager that yields a list, to which calls of their linear maps are added.
    as_called : callable
        Returns a context manager in which the model is in the mode, train or eval, in which the closure has called it:
        it may have put it back, and a checkpoint computes anew what is differentiated.

    Attributes
    ----------
    factored : set of str
        Parameters whose gradients :meth:`factored_gradient` leaves in factors.
    thorough : bool
        Whether weights that the closure changes behind torch's version counters are looked for, which waits for the
        device and reads all weights twice.

    All methods take `at`, the weights to evaluate at, or None for the present ones. Tensors that they return are not
    to be changed.
    """

    def __init__(
        self,
        closure: Callable[[], Tensor],
        parameters: Mapping[str, Tensor],
        others: Collection[Tensor],
        collecting: Callable[[Collection[str]], AbstractContextManager[list[FactorCall]]],
        as_called: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.factored: set[str] = set()
        self.thorough = False
        self._closure = closure
        self._names = list(parameters)
        self._parameters, self._others = list(parameters.values()), list(others)
        self._collecting, self._as_called = collecting, as_called
        self._trusted: set[str] = set()  # factors that were seen to multiply out to the gradient
        self._refused: set[str] = set()  # those that were seen not to
        self._known: dict[_Place, tuple[Tensor, list[Tensor] | None]] = {}
        self._copies: set[_Place] = set()

    @property
    def closure(self) -> ValidationLoss:
        """The loss itself."""
        return self

    def value(self, at: Sequence[Tensor] | None = None) -> Tensor:
        """Return l_val, in nats."""
        known = self._known.get(self._place(at))
        if known:
            return known[0]
        with moved_to(self._parameters, at), torch.no_grad():
            loss = _read(self._loss())
        self._note(at, loss, None)
        return loss

    def changes_with_chance(self) -> Tensor:
        """Return whether the loss at the present weights is another one for other random numbers, a bool scalar."""
        losses = []
        for extra in (0, 1):
            with moved_to(self._parameters, None), torch.no_grad():
                if extra:
                    torch.manual_seed(1)
                losses.append(_read(self._loss()))
        first, second = losses
        return ~torch.isclose(first, second, rtol=1e-6, atol=0.0, equal_nan=True).all()

    def factored_gradient(self) -> tuple[Tensor, list[Tensor | Factors]]:
        """Return l_val and its gradient at the present weights, that of the weights in `factored` as factors.

        What a weight's factors leave out (its use outside of its layer, a penalty) shows in the first pass, which
        forms the gradient, too, and waits for it: such a weight is taken out of `factored`, once and for all.
        """
        self.factored -= self._refused
        with torch.enable_grad(), moved_to(self._parameters, None), self._collecting(self.factored) as calls:
            loss = self._loss()
            calls = [call for call in calls if call.output.requires_grad]
            trusted = self._trusted & {call.key for call in calls}
            wanted = {n: p for n, p in zip(self._names, self._parameters, strict=True) if n not in trusted}
            outputs = [call.output for call in calls]
            found = self._differentiate(loss, [*wanted.values(), *outputs])
        gradient: dict[str, Tensor | Factors] = dict(zip(wanted, found, strict=False))
        factors: dict[str, Factors] = {}
        for call, b in zip(calls, found[len(wanted) :], strict=True):
            own = Factors(call.a.flatten(0, -2), b.flatten(0, -2), call.transposed)
            factors[call.key] = factors[call.key].joined(own) if call.key in factors else own
        untried = sorted(self.factored & factors.keys() - trusted)
        if untried:
            far = [_far(factors[key].dense(), gradient[key]) for key in untried]
            for key, is_far in zip(untried, to_host(gathered(far))(), strict=True):
                (self._refused if is_far else self._trusted).add(key)
        self.factored &= self._trusted & factors.keys()
        gradient |= {key: factors[key] for key in self.factored}
        value = _read(loss)
        self._note(None, value, None)
        return value, [gradient[name] for name in self._names]

    def gradient(self, at: Sequence[Tensor] | None = None, *, keep: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Return l_val and its gradient, one tensor a parameter; `keep` remembers the gradient, too."""
        known = self._known.get(self._place(at))
        if known and known[1] is not None:
            return known[0], known[1]
        with moved_to(self._parameters, at), torch.enable_grad():
            loss = self._loss()
            value, gradient = _read(loss), self._differentiate(loss)
        self._note(at, value, gradient if keep else None)
        return value, gradient

    def gradient_and_hessian_product(
        self, vector: Sequence[Tensor], at: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return l_val, its gradient v and the Hessian-vector product H x, by differentiating <v, x>.

        Attention runs in its plain form: the fused ones have no second derivative.
        """
        with moved_to(self._parameters, at), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            loss = self._loss()
            gradient = self._differentiate(loss, create_graph=True)
            along = sum(((v * x).sum() for v, x in zip(gradient, vector, strict=True)), start=loss.new_zeros(()))
            product: list[Tensor] = [torch.zeros_like(p) for p in self._parameters]
            if along.requires_grad:
                product = self._differentiate(along)
            return _read(loss), [v.detach() for v in gradient], product

    def moved(self) -> None:
        """Learn that the present weights are new ones: fused optimisers change them behind the version counters."""
        self._known.pop(self._place(None), None)

    def copied(self, weights: Sequence[Tensor]) -> None:
        """Learn that `weights` are a copy of the present ones: what is known of these holds for them."""
        place = self._place(weights)
        self._copies.add(place)
        known = self._known.get(self._place(None))
        if known:
            self._known[place] = known

    @property
    def knows_present(self) -> bool:
        """Whether the loss at the present weights is known already."""
        return self._place(None) in self._known

    def forget_copies(self) -> None:
        """Forget all but the present weights; the memory of others may be given to tensors to come."""
        here = self._place(None)
        self._copies.clear()
        self._known = {place: known for place, known in self._known.items() if place == here}

    def _loss(self) -> Tensor:
        versions = [p._version for p in self._parameters]
        before = traits(self._parameters) if self.thorough else None
        loss = self._closure()
        changed = [name for name, p, v in zip(self._names, self._parameters, versions, strict=True) if p._version != v]
        if before is not None and not changed:  # nor behind the version counters
            others = unlike(traits(self._parameters), before).tolist()
            changed = [name for name, other in zip(self._names, others, strict=True) if other]
        if changed:
            raise ValueError(
                f"validation changed parameter {changed[0]!r} while it was evaluated (an embedding with max_norm does, "
                "or an optimiser's step), so that training would not be what it is without InRunShapley; renormalise "
                "after optimizer.step() instead"
            )
        self._check_form(loss)
        return loss

    def _check_form(self, loss: Any) -> None:
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            got = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(
                f"validation must return a scalar tensor, the validation loss (or one loss a query, with "
                f"per_query=True); got {got}"
            )

    def _differentiate(
        self,
        loss: Tensor,
        inputs: Sequence[Tensor] | None = None,
        *,
        create_graph: bool = False,
        retain: bool | None = None,
    ) -> list[Tensor]:
        if not loss.requires_grad:
            raise ValueError(
                "validation returned a loss without a graph, so it has no gradient; "
                "compute it from the model being trained, without torch.no_grad() or detach()"
            )
        with self._as_called():
            gradients = torch.autograd.grad(
                loss,
                self._parameters if inputs is None else inputs,
                create_graph=create_graph,
                retain_graph=retain,
                allow_unused=True,
            )
        if all(gradient is None for gradient in gradients):
            raise ValueError(
                "the validation loss depends on none of the model's trained parameters: validation must evaluate the "
                "model that the optimiser moves, and not a copy, a teacher or an average of its weights"
            )
        inputs = self._parameters if inputs is None else inputs
        return [
            torch.zeros_like(x) if gradient is None else dense(gradient).to(x.dtype)
            for x, gradient in zip(inputs, gradients, strict=True)
        ]

    def _place(self, at: Sequence[Tensor] | None) -> _Place:
        """Return what tells these weights, and those not trained, from others as long as they live."""
        weights = [*(self._parameters if at is None else at), *self._others]
        return tuple((w.data_ptr(), w._version) for w in weights)

    def _note(self, at: Sequence[Tensor] | None, loss: Tensor, gradient: list[Tensor] | None) -> None:
        place = self._place(at)
        if place == self._place(None) or place in self._copies:
            self._known[place] = (loss, gradient)


def expect_no_effects_or_chance(model: nn.Module, losses: Mapping[str, ValidationLoss], checks: Numbers) -> None:
    """Have a validation loss refused that has side effects, and warned of one that is another each time.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    losses : mapping of str to ValidationLoss
        By name.
    checks : Numbers
        With which the answers travel.
    """

    def warn(changes: NDArray[np.float64]) -> None:
        for name, does in zip(losses, changes, strict=True):
            if does:
                warnings.warn(
                    f"the validation loss {name!r} draws random numbers (dropout?): evaluated twice at the same "
                    "weights it is not the same, so that its noise is in scores and residual; put the model in eval "
                    "mode for it",
                    RuntimeWarning,
                    stacklevel=2,
                )

    with _without_side_effects(model, checks):
        changes = gathered([loss.changes_with_chance() for loss in losses.values()])
    checks.expect(changes, warn)


@contextmanager
def _without_side_effects(model: nn.Module, numbers: Numbers) -> Iterator[None]:
    """Have ValueError raised if the model is run at other weights in this block, or its buffers are others after it.

    Both are looked at by value, which takes time: for the first evaluation of a validation loss.
    """
    sizes = {p: traits([p]) for p in model.parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found: list[tuple[str, Tensor]] = []

    def look(module: nn.Module, *_: Any) -> None:
        for name, p in module.named_parameters(recurse=False):
            if p in sizes:
                message = (
                    f"validation evaluates the model at other weights than its present ones (of {name!r} in "
                    f"{type(module).__name__}): an average of weights that is put into the model for the time of "
                    "validation is no loss of the weights that the optimiser moves"
                )
                found.append((message, torch.tensor(unlike(traits([p]), sizes[p]).any(), device=p.device)))

    def refuse(wrong: NDArray[np.float64]) -> None:
        for (message, _), does in zip(found, wrong, strict=True):
            if does:
                raise ValueError(message)

    handles = [module.register_forward_pre_hook(look) for module in model.modules()]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for handle in handles:
            handle.remove()
    for name, buffer in model.named_buffers():
        before = buffers.get(name)
        if before is not None and before.shape == buffer.shape:
            message = (
                f"validation changed buffer {name!r} of the model (statistics, a spectral norm's vectors), so that "
                "training would not be what it is without InRunShapley; put the model in eval mode for it"
            )
            found.append((message, ((before != buffer) & ~(before.isnan() & buffer.isnan())).any()))
    numbers.expect(gathered([flag for _, flag in found]), refuse)


def _read(loss: Tensor) -> Tensor:
    """Return what a loss says now, in a tensor of its own: a captured graph writes each loss over the last."""
    return loss.detach().to(torch.float64, copy=True)


def _far(got: Tensor, expected: Tensor | Factors) -> Tensor:
    expected = multiplied_out(expected)
    tolerance = torch.finfo(got.dtype).eps ** 0.5 / 4
    close: Tensor = (got - expected).norm() <= tolerance * expected.norm()
    return ~close  # true of what is not a number


@contextmanager
def moved_to(parameters: Sequence[Tensor], weights: Sequence[Tensor] | None) -> Iterator[None]:
    """Put `weights` into the parameters for the time of the block; random numbers drawn in it are drawn again."""
    devices = sorted({p.device.index for p in parameters if p.device.type == "cuda"})
    torch.clear_autocast_cache()  # of copies in half precision, that it takes to be those of the present weights
    present = [p.data for p in parameters]
    with torch.random.fork_rng(devices=devices):
        try:
            if weights is not None:
                for parameter, weight in zip(parameters, weights, strict=True):
                    parameter.data = weight
            yield
        finally:
            for parameter, weight in zip(parameters, present, strict=True):
                parameter.data = weight
            torch.clear_autocast_cache()
