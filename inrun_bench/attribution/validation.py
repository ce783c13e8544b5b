"""The validation loss as a function of the weights, read off a user's closure.

The closure evaluates the user's model; to ask for another point than the present weights, they are put into the model
for the time of the call and taken out again. Neither the weights nor the random stream of training notice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["ValidationLoss"]


class ValidationLoss:
    """l_val(w) and its derivatives with respect to the trained parameters.

    Parameters
    ----------
    closure : callable
        Returns the validation loss at the model's present weights, a scalar tensor in nats.
    parameters : sequence of tensors
        The model's trained parameters.

    All methods take `at`, the weights to evaluate at, or None for the present ones.
    """

    def __init__(self, closure: Callable[[], Tensor], parameters: Sequence[Tensor]) -> None:
        self._closure = closure
        self._parameters = parameters

    def value(self, at: Sequence[Tensor] | None = None) -> float:
        """Return l_val, in nats."""
        with self._moved_to(at), torch.no_grad():
            return float(self._loss())

    def gradient(self, at: Sequence[Tensor] | None = None) -> tuple[float, list[Tensor]]:
        """Return l_val and its gradient, one tensor a parameter."""
        with self._moved_to(at), torch.enable_grad():
            loss = self._loss()
            return float(loss.detach()), self._differentiate(loss)

    def gradient_and_hessian_product(
        self, vector: Sequence[Tensor], at: Sequence[Tensor] | None = None
    ) -> tuple[float, list[Tensor], list[Tensor]]:
        """Return l_val, its gradient v and the Hessian-vector product H x, by differentiating <v, x>."""
        with self._moved_to(at), torch.enable_grad():
            loss = self._loss()
            gradient = self._differentiate(loss, create_graph=True)
            along = sum(((v * x).sum() for v, x in zip(gradient, vector, strict=True)), start=loss.new_zeros(()))
            product: list[Tensor] = [torch.zeros_like(p) for p in self._parameters]
            if along.requires_grad:
                product = self._differentiate(along)
            return float(loss.detach()), [v.detach() for v in gradient], product

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
            torch.zeros_like(p) if gradient is None else gradient
            for p, gradient in zip(self._parameters, gradients, strict=True)
        ]

    @contextmanager
    def _moved_to(self, weights: Sequence[Tensor] | None) -> Iterator[None]:
        devices = sorted({p.device.index for p in self._parameters if p.device.type == "cuda"})
        present = [p.data for p in self._parameters]
        with torch.random.fork_rng(devices=devices):
            try:
                for parameter, weight in zip(self._parameters, weights or present, strict=True):
                    parameter.data = weight
                yield
            finally:
                for parameter, weight in zip(self._parameters, present, strict=True):
                    parameter.data = weight
