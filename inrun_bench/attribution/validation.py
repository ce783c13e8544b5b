"""The validation loss as a function of the weights, read off a user's closure.

The closure evaluates the user's model; to ask for another point than the present weights, they are put into the model
for the time of the call and taken out again. Neither the weights nor the random stream of training notice.

Where the closure is declared a deterministic function of the weights, what it said of the present ones is remembered
until they change: the loss after a step is that before the next, and so is its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["ValidationLoss", "moved_to"]

_Place: TypeAlias = tuple[tuple[int, int], ...]


class ValidationLoss:
    """l_val(w) and its derivatives with respect to the trained parameters.

    Parameters
    ----------
    closure : callable
        Returns the validation loss at the model's present weights, a scalar tensor in nats.
    parameters : sequence of tensors
        The model's trained parameters.
    remember : bool
        Whether the closure is a deterministic function of the weights, so that nothing need be computed twice.

    All methods take `at`, the weights to evaluate at, or None for the present ones. Tensors that they return are not to be
    changed.
    """

    def __init__(self, closure: Callable[[], Tensor], parameters: Sequence[Tensor], *, remember: bool = False) -> None:
        self._closure = closure
        self._parameters = parameters
        self._remember = remember
        self._known: dict[_Place, tuple[float, list[Tensor] | None]] = {}

    def value(self, at: Sequence[Tensor] | None = None) -> float:
        """Return l_val, in nats."""
        known = self._known.get(self._place(at))
        if known:
            return known[0]
        with moved_to(self._parameters, at), torch.no_grad():
            loss = float(self._loss())
        self._note(at, loss, None)
        return loss

    def gradient(self, at: Sequence[Tensor] | None = None, *, keep: bool = False) -> tuple[float, list[Tensor]]:
        """Return l_val and its gradient, one tensor a parameter; `keep` remembers the gradient, too."""
        known = self._known.get(self._place(at))
        if known and known[1] is not None:
            return known[0], known[1]
        with moved_to(self._parameters, at), torch.enable_grad():
            loss = self._loss()
            value, gradient = float(loss.detach()), self._differentiate(loss)
        self._note(at, value, gradient if keep else None)
        return value, gradient

    def gradient_and_hessian_product(
        self, vector: Sequence[Tensor], at: Sequence[Tensor] | None = None
    ) -> tuple[float, list[Tensor], list[Tensor]]:
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
            return float(loss.detach()), [v.detach() for v in gradient], product

    def copied(self, weights: Sequence[Tensor]) -> None:
        """Learn that `weights` are a copy of the present ones: what is known of these holds for them."""
        known = self._known.get(self._place(None))
        if known:
            self._known[self._place(weights)] = known

    @property
    def knows_present(self) -> bool:
        """Whether the loss at the present weights is known already."""
        return self._place(None) in self._known

    def forget_copies(self) -> None:
        """Forget all but the present weights; the memory of others may be given to tensors to come."""
        here = self._place(None)
        self._known = {place: known for place, known in self._known.items() if place == here}

    def _loss(self) -> Tensor:
        loss = self._closure()
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            got = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"validation must return a scalar tensor, the validation loss; got {got}")
        return loss

    def _differentiate(self, loss: Tensor, *, create_graph: bool = False) -> list[Tensor]:
        if not loss.requires_grad:
            raise ValueError(
                "validation returned a loss without a graph, so it has no gradient; "
                "compute it from the model being trained, without torch.no_grad() or detach()"
            )
        gradients = torch.autograd.grad(loss, self._parameters, create_graph=create_graph, allow_unused=True)
        return [
            torch.zeros_like(p) if gradient is None else gradient.to(p.dtype)
            for p, gradient in zip(self._parameters, gradients, strict=True)
        ]

    def _place(self, at: Sequence[Tensor] | None) -> _Place:
        """Return what tells these weights from others as long as they live."""
        return tuple((w.data_ptr(), w._version) for w in (self._parameters if at is None else at))

    def _note(self, at: Sequence[Tensor] | None, loss: float, gradient: list[Tensor] | None) -> None:
        place = self._place(at)
        if self._remember and place == self._place(None):
            self._known = {place: (loss, gradient)}


@contextmanager
def moved_to(parameters: Sequence[Tensor], weights: Sequence[Tensor] | None) -> Iterator[None]:
    """Put `weights` into the parameters for the time of the block; random numbers drawn in it are drawn again."""
    devices = sorted({p.device.index for p in parameters if p.device.type == "cuda"})
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
