"""A user's model, checked when a task is made of it, and not when it first trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tasks.objective import check_output
from tasks.task import Learner

__all__ = ["checked_model", "learner_of"]


def checked_model(
    architecture: Callable[[], nn.Module], seed: int, x: Tensor, y: Tensor, n_classes: int | None, dtype: torch.dtype
) -> nn.Module:
    """Return a model with the initial weights of a seed, having run it once on samples `x` [B, ...], in eval mode.

    Raises
    ------
    TypeError
        If there is no module, or it returns no tensor.
    ValueError
        If it cannot be made or run, has no weights to train, returns something else than the targets `y` [B, ...] take,
        or is not fresh, with the same weights for a seed, each time.
    """
    model, again = (_made(architecture, seed).to(dtype) for _ in range(2))
    if {*map(id, model.parameters())} & {*map(id, again.parameters())}:
        raise ValueError(
            "model must return a fresh nn.Module each time it is called, got the same weights twice; build it inside "
            "of the callable, or pass the model itself"
        )
    if not all(map(_same, [*model.parameters(), *model.buffers()], [*again.parameters(), *again.buffers()])):
        raise ValueError(
            "model must draw its weights from torch's global generator, got other weights from the same seed; draw "
            "them by torch.nn.init without a generator of your own, or pass a model"
        )
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            output: Any = again.eval()(x)
        except Exception as error:  # whatever a user's model raises
            raise ValueError(
                f"model must take samples x of {x.dtype} {list(x.shape)}; running it failed with "
                f"{type(error).__name__}: {error}"
            ) from error
    if not isinstance(output, Tensor):
        raise TypeError(
            f"model must return a tensor, got {type(output).__name__}; wrap it in an nn.Module whose forward returns "
            "the tensor"
        )
    check_output(output, y, n_classes)
    return model


def learner_of(model: nn.Module, x: Tensor, n_classes: int | None) -> Learner | None:
    """Return how a checked model is fitted to its optimum, if it is a linear map, with intercepts, of all features.

    `x` [B, ...] are samples on which that is tried, since hooks may have made something else of the map.
    """
    layers = [model] if type(model) is nn.Linear else list(model) if type(model) is nn.Sequential else []
    linear = [layer for layer in layers if type(layer) is not nn.Flatten]
    if len(linear) != 1 or type(linear[0]) is not nn.Linear or linear[0].bias is None:
        return None
    if linear[0].in_features != x[0].numel() or not all(weight.requires_grad for weight in model.parameters()):
        return None
    with torch.no_grad():
        mapped = nn.functional.linear(x.flatten(1), linear[0].weight, linear[0].bias)
        if not torch.allclose(model(x), mapped, equal_nan=True):
            return None
    return "ridge" if n_classes is None else "logistic"


def _made(architecture: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = architecture()
        except Exception as error:  # whatever a user's model raises
            raise ValueError(
                "model must be an nn.Module or a callable without arguments that returns a fresh one, such as "
                f"lambda: MyModel(width=10); calling it failed with {type(error).__name__}: {error}"
            ) from error
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, or a callable that returns one, got {type(model).__name__} of it")
    if any(map(is_lazy, [*model.parameters(), *model.buffers()])):
        raise ValueError(
            "model must know the shapes of its weights, got lazy layers; give them their sizes, or run the model once "
            "on a sample (in the callable, where it is one)"
        )
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ValueError(f"model must have weights that are trained, got none in {type(model).__name__}")
    return model


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
