"""Some of a batch's samples: their losses are differentiated anew, and their gradient takes the batch's place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from inrun_bench.attribution.gradient_scaling import Watcher, dense
from inrun_bench.attribution.random_state import RandomState

__all__ = ["BatchLosses"]


class BatchLosses:
    """The losses of a batch's samples, made before its forward pass.

    Parameters
    ----------
    losses : callable
        Returns each sample's contribution to the loss that is differentiated, [rows].
    model : torch.nn.Module
        What it evaluates.
    parameters : mapping of str to Parameter
        The trained ones.
    watcher : Watcher
        Of their gradients.
    looking_away : callable
        Returns a context in which forward passes are not those of training.
    thorough : bool
        Whether losses are compared with what was differentiated, which takes a backward pass of all of the batch.
    """

    def __init__(
        self,
        losses: Callable[[], Tensor],
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        watcher: Watcher,
        looking_away: Callable[[], AbstractContextManager[None]],
        *,
        thorough: bool,
    ) -> None:
        self._losses, self._model, self._parameters = losses, model, parameters
        self._watcher, self._looking_away, self._thorough = watcher, looking_away, thorough
        self._random = RandomState.now(list(parameters.values()), others=True)

    def keep(self, kept: Tensor) -> None:
        """Put the gradient of the sum of the losses, each times its entry of `kept`, in the place of the batch's.

        Raises
        ------
        RuntimeError
            If gradients are no longer those that were accumulated, or the losses are not those of the batch: they draw
            other random numbers, the model is another one after each pass, or (where that is looked at) their gradient
            is another one. Gradients and buffers are then what they were.
        ValueError
            If the losses are not one a sample, or have no graph.
        """
        if self._watcher.changed:
            raise RuntimeError(
                "keep() was called after gradients had been changed (clipped, unscaled), which it would undo; call it "
                "between the backward pass and that"
            )
        before = {name: p.grad for name, p in self._parameters.items()}
        try:
            with self._looking_away(), torch.enable_grad(), _unchanged_buffers(self._model), self._same_chance():
                of_rows = self._evaluated(kept)
                if self._thorough:
                    self._expect_same(before, self._differentiated(of_rows.sum(), retain=True))
                chosen = kept > 0
                self._differentiated((of_rows[chosen] * kept[chosen].to(of_rows.dtype)).sum())
        except BaseException:
            for name, p in self._parameters.items():
                p.grad = before[name]
            self._watcher.take_present()
            raise
        for name, p in self._parameters.items():
            earlier = before[name]
            if p.grad is None and earlier is not None:  # as of a parameter that none of those kept has to do with
                p.grad = torch.zeros_like(p)
        self._watcher.take_present()

    def _evaluated(self, kept: Tensor) -> Tensor:
        of_rows = self._losses()
        if not isinstance(of_rows, Tensor):
            raise ValueError(
                f"losses must return a tensor, one loss a sample of the step, got {type(of_rows).__name__}"
            )
        if of_rows.shape != kept.shape:
            raise ValueError(
                f"losses must return one loss a sample of the step, {len(kept)} in all, "
                f"got a tensor of shape {list(of_rows.shape)}"
            )
        if not of_rows.requires_grad:
            raise ValueError("losses returned losses without a graph; compute them anew each time they are asked for")
        return of_rows

    def _differentiated(self, loss: Tensor, *, retain: bool = False) -> dict[str, Tensor | None]:
        """Have the gradient of a loss accumulated, as in training, and return it."""
        for p in self._parameters.values():
            p.grad = None
        loss.backward(retain_graph=retain)
        return {name: p.grad for name, p in self._parameters.items()}

    def _expect_same(self, before: Mapping[str, Tensor | None], now: Mapping[str, Tensor | None]) -> None:
        for name, gradient in now.items():
            then = before[name]
            one, two = (x if x is None else dense(x.detach()).double() for x in (then, gradient))
            size = max(float(x.norm()) for x in (one, two) if x is not None) if (one, two) != (None, None) else 0.0
            off = size if one is None or two is None else float((one - two).norm())
            if off > torch.finfo(self._parameters[name].dtype).eps ** 0.5 / 4 * size:
                raise RuntimeError(
                    f"losses are not those of the batch: for all rows, the gradient of {name!r} has norm "
                    f"{0.0 if two is None else float(two.norm()):.6g}, or another direction, and that of the backward "
                    f"pass {0.0 if one is None else float(one.norm()):.6g}. Each must be a row's contribution to the "
                    "loss that was differentiated: reduction, loss scale and accumulation included"
                )

    @contextmanager
    def _same_chance(self) -> Iterator[None]:
        """Draw in this block the random numbers that have been drawn since the step began."""
        if not self._random.drawn_from():
            now = RandomState.now(list(self._parameters.values()))
            yield
            drawn = now.drawn_from()
        else:
            present = RandomState.now(list(self._parameters.values()))
            with self._random.again():
                yield
                drawn = self._random.drawn_from() and present.drawn_from()
        if drawn:
            raise RuntimeError(
                "losses draw random numbers, and not those of the batch's forward pass (dropout in several parts, or "
                "something else that draws between the step's beginning and keep()), so that they are not its losses; "
                "have one forward pass of all of the batch in the step, and draw what else you need before it, or from "
                "a torch.Generator of your own"
            )


@contextmanager
def _unchanged_buffers(model: nn.Module) -> Iterator[None]:
    """Refuse what changes the model's buffers, and put them back."""
    held = [(name, buffer, buffer.clone()) for name, buffer in model.named_buffers()]
    changed = ""
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer, copy in held:
                if not torch.equal(buffer, copy):
                    buffer.copy_(copy)
                    changed = changed or name
    if changed:
        raise RuntimeError(
            f"the model changes its buffer {changed!r} in each forward pass (statistics, a spectral norm's vectors), "
            "so that losses of another pass are not those of the batch, and keep() cannot be had"
        )
