"""What happens to a gradient between the backward pass and the optimiser.

Clipping and loss scaling change the gradient g of the backward pass before the optimiser sees it. A sample's
contribution changes with it: g_i times the ratio of what the optimiser receives and what was accumulated, element by
element, so that the contributions add up to what is received. Where the whole gradient is scaled (clipping by norm,
``GradScaler``) the ratio is one number; where it is clipped by value it is the secant of that function, as for the
optimiser's own.

To know the ratio takes a copy of the gradient. It is taken in the first step, and from then on as long as something was
seen to change it; what begins later is told by the tensors' version counters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Received", "Watcher", "dense"]


@dataclass(frozen=True)
class Received:
    """How the optimiser's gradient came from the accumulated one.

    Attributes
    ----------
    ratio : list of float, tensor or None
        By parameter; 1.0 where nothing was done, None where there is no gradient.
    known : bool
        False where a change came unexpected and no copy was there to compare with; such ratios are 1.0.
    """

    ratio: list[float | Tensor | None]
    known: bool = True

    @property
    def common(self) -> float | None:
        """The one ratio of all parameters; None where there is not one."""
        numbers = [r for r in self.ratio if isinstance(r, float)]
        if any(isinstance(r, Tensor) for r in self.ratio):
            return None
        if not numbers:
            return 1.0
        close = max(numbers) - min(numbers) <= 1e-6 * max(map(abs, numbers))
        return sum(numbers) / len(numbers) if close else None


class Watcher:
    """Watches the gradients of parameters while they are accumulated.

    Parameters
    ----------
    parameters : mapping of str to Parameter
        The trained parameters by name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.copying = True
        self.watching = False
        self._parameters = list(parameters.values())
        self._seen: dict[nn.Parameter, tuple[Tensor, int, Tensor | None]] = {}
        self._handles = [p.register_post_accumulate_grad_hook(self._accumulated) for p in self._parameters]

    def remove(self) -> None:
        """Take the hooks off the parameters."""
        for handle in self._handles:
            handle.remove()

    def begin(self) -> None:
        """Forget the last step."""
        self._seen.clear()
        self.watching = True

    def end(self) -> None:
        """Let go of what was held for the step."""
        self._seen.clear()
        self.watching = False

    def compare(self) -> Received:
        """Return what became of the gradients since they were accumulated."""
        ratios: list[float | Tensor | None] = []
        touched, known = False, True
        for p in self._parameters:
            if p.grad is None or p not in self._seen:
                ratios.append(None)
                continue
            gradient, version, copy = self._seen[p]
            same = p.grad is gradient and gradient._version == version
            if same and (copy is None or torch.equal(dense(gradient), copy)):  # GradScaler escapes the version counters
                ratios.append(1.0)
                continue
            touched = True
            known = known and copy is not None
            ratios.append(1.0 if copy is None else _ratio(dense(p.grad), copy))
        self.copying = touched
        return Received(ratios, known)

    def _accumulated(self, p: Tensor) -> None:
        if self.watching and p.grad is not None:
            copy = dense(p.grad.detach()).clone() if self.copying else None
            self._seen[p] = (p.grad, p.grad._version, copy)  # type: ignore[index]


def dense(gradient: Tensor) -> Tensor:
    """Return a gradient as a dense tensor; embeddings may have sparse ones."""
    return gradient.to_dense() if gradient.is_sparse else gradient


def _ratio(received: Tensor, accumulated: Tensor) -> float | Tensor:
    rounding = 16 * torch.finfo(received.dtype).eps
    received, accumulated = received.double(), accumulated.double()
    square = float(accumulated.square().sum())
    if square == 0:
        return 1.0
    common = float((received * accumulated).sum()) / square
    if float((received - common * accumulated).norm()) <= rounding * float(received.norm()):
        return common
    return torch.where(accumulated == 0, common, received / accumulated)
