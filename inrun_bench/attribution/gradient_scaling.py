"""What happens to a gradient between the backward pass and the optimiser.

Clipping and loss scaling change the gradient c of the backward pass into the r that the optimiser sees. A sample's
contribution changes with it, element by element: it is multiplied by r / c, so that the contributions add up to what is
received. Where the whole gradient is scaled (clipping by norm, ``GradScaler``) that is one number; where it is clipped
by value it is the secant of that function, as for the optimiser's own.

To know it takes a copy of c. It is taken in the first step, and from then on as long as something was seen to change
the gradient; what begins later is told by the tensors' version counters, and from then on there always is one. Nothing
here waits for the device: what only values can tell is a flag on the device, for others to look at later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from inrun_bench.attribution.transfer import gathered

__all__ = ["Received", "Watcher", "copies", "dense"]

T = TypeVar("T", Tensor, Tensor | None)


@dataclass(frozen=True)
class Received:
    """How the optimiser's gradient came from the accumulated one: ``r = factor * ratio * c``.

    Attributes
    ----------
    factor : float or scalar tensor
        One number for all parameters, 1.0 where nothing was done.
    ratio : list of float or tensor, or None
        By parameter, shaped like it; None where 1.0 is meant, or nobody asked for it.
    uneven : scalar tensor, or None
        Where `ratio` was not asked for: whether the factor alone is not all that was done.
    differs : scalar tensor, or None
        Whether anything was done; None where there was no copy to compare with.
    known : bool
        False where a change came unexpected and no copy was there to compare with; the factor is then 1.0.
    """

    factor: float | Tensor = 1.0
    ratio: list[float | Tensor] | None = None
    uneven: Tensor | None = None
    differs: Tensor | None = None
    known: bool = True


class Watcher:
    """Watches the gradients of parameters while they are accumulated.

    Parameters
    ----------
    parameters : mapping of str to Parameter
        The trained parameters by name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.watching = False
        self.arrived: Callable[[nn.Parameter], None] | None = None  # told of each gradient before it is noted
        self.by_element = False  # whether one number does not tell it all, or a surprise has left that open
        self.differed = True  # whether anybody has, by values, seen a change; GradScaler escapes version counters
        self.surprised = False  # whether the last step's gradients changed, and there was no copy to compare with
        self._changed = False  # whether version counters told of a change in the last step
        self._parameters = list(parameters.values())
        self._seen: dict[nn.Parameter, tuple[Tensor, int, Tensor | None]] = {}
        self._handles = [p.register_post_accumulate_grad_hook(self._accumulated) for p in self._parameters]

    @property
    def copying(self) -> bool:
        """Whether gradients are copied, to be compared."""
        return self._changed or self.differed or self.by_element

    def remove(self) -> None:
        """Take the hooks off the parameters."""
        for handle in self._handles:
            handle.remove()

    def begin(self) -> None:
        """Forget the last step."""
        self._seen.clear()
        self.watching = True

    @property
    def changed(self) -> bool:
        """Whether gradients are others than were accumulated, as far as version counters, and copies, tell."""
        return any(
            p.grad is None
            or p.grad is not gradient
            or p.grad._version != version
            or (copy is not None and not torch.equal(dense(p.grad.detach()), copy))
            for p, (gradient, version, copy) in self._seen.items()
        )

    def take_present(self) -> None:
        """Take the gradients as they are now for those that were accumulated."""
        self._seen.clear()
        for p in self._parameters:
            self._accumulated(p)

    def end(self) -> None:
        """Let go of what was held for the step."""
        self._seen.clear()
        self.watching = False
        self.arrived = None

    def compare(self, *, by_element: bool) -> Received:
        """Return what became of the gradients since they were accumulated; `by_element` asks for ratios."""
        pairs: list[tuple[Tensor, Tensor] | None] = []
        changed = False
        for p in self._parameters:
            gradient, version, copy = self._seen.pop(p, (None, 0, None))
            if p.grad is None or gradient is None:
                pairs.append(None)
                continue
            changed = changed or p.grad is not gradient or gradient._version != version
            pairs.append(None if copy is None else (dense(p.grad.detach()), copy))
        self._changed = changed
        copied = [pair for pair in pairs if pair is not None]
        self.surprised = changed and not copied
        self.by_element = self.by_element or self.surprised  # one number may not tell it, and the next step must know
        if not copied:
            return Received(known=not changed)
        differs = gathered([(received != copy).any() for received, copy in copied]).any()
        if by_element:
            scale, ratio = _by_element(pairs)
            return Received(scale, ratio, differs=differs)
        factor, uneven = _by_factor(copied)
        return Received(factor, uneven=uneven, differs=differs)

    def _accumulated(self, p: Any) -> None:
        if self.watching and self.arrived is not None:
            self.arrived(p)
        if self.watching and p.grad is not None:
            copy = dense(p.grad.detach()).clone() if self.copying else None
            self._seen[p] = (p.grad, p.grad._version, copy)


def dense(gradient: Tensor) -> Tensor:
    """Return a gradient as a dense tensor; embeddings may have sparse ones."""
    return gradient.to_dense() if gradient.is_sparse else gradient


def copies(tensors: Sequence[T]) -> list[T]:
    """Return a copy of each tensor that is one, all of them in a single launch."""
    given = [x for x in tensors if x is not None]
    made = iter(torch._foreach_mul(given, 1.0) if given else [])
    return [None if x is None else next(made) for x in tensors]


def _by_factor(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the number k that brings k c closest to r, and whether k c is not r."""
    products = [(_dot(received, copy), _dot(copy, copy)) for received, copy in pairs]
    along, square = (gathered(dots).sum() for dots in zip(*products, strict=True))
    factor = (along / square).masked_fill(square == 0, 1.0)
    rests = []
    for received, copy in pairs:
        rest = received.double() - factor.to(copy.device) * copy.double()
        rests.append(rest.norm() > 16 * torch.finfo(received.dtype).eps * received.double().norm())
    return factor, gathered(rests).any()


def _by_element(pairs: Sequence[tuple[Tensor, Tensor] | None]) -> tuple[Tensor, list[float | Tensor]]:
    """Return the ratio of r's norm and c's, and r / c in units of it, that half precision may not lose a loss scale."""
    norms = [
        [torch.linalg.vector_norm(x, dtype=torch.float64) for x in pair]  # of one device and one order each
        for pair in pairs
        if pair is not None
    ]
    received_norm, norm = (gathered(column).norm() for column in zip(*norms, strict=True))
    scale = (received_norm / norm).masked_fill(norm == 0, 1.0)
    ratio: list[float | Tensor] = []
    for pair in pairs:
        if pair is None:
            ratio.append(1.0)
            continue
        received, copy = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in pair)
        copy = copy * scale.to(copy.device)
        ratio.append((received / copy).masked_fill_(copy == 0, 1.0))
    return scale, ratio


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x.double() * y.double()).sum()
