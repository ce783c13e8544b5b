"""What a task consists of, as a digest: two tasks of the same content train the same models on the same data.

It is taken before any arithmetic: of the dataset as it comes, of the numbers by which it is split, and of the model
before its first step. So it is the same on processors that round otherwise, which the bits of the standardised samples
are not (:meth:`tasks.TrajectoryGame.identity`). How a split is drawn and scaled is code, and no content.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from tasks.layer_settings import layer_settings
from tasks.task import TaskSpec

__all__ = ["content_identity"]

STEPS = (0.0, 0.5**0.5, 0.75**0.5, 1.25**0.5)  # of positions' weights, of which the first are all the same
DECIMALS = 3  # of a tensor's measures: far above rounding
LATER_FIELDS = ("classes", "held_out", "defaults")  # count where in use, so that digests of older rows stay


def content_identity(task: TaskSpec, seed: int, recipe: str) -> str:
    """Return a SHA-256 digest, as 64 hexadecimal digits, of what a task of the catalogue consists of.

    Parameters
    ----------
    task : TaskSpec
        Its dataset, sizes, scaling and architecture count; its summary does not.
    seed : int
        Of the initial weights. That of the split is known with the unit of work.
    recipe : str
        Name of one of its recipes; of any other, all of them count.

    Raises
    ------
    CodeIdentityError
        If the code of a layer cannot be seen.
    """
    digest = hashlib.sha256()
    for array in task.dataset():
        whole = np.ascontiguousarray(array)
        digest.update(f"{whole.dtype.str} {whole.shape}\n".encode())
        digest.update(whole.tobytes())
    counted = {
        field.name: getattr(task, field.name)
        for field in dataclasses.fields(task)
        if field.name not in ("dataset", "architecture", "recipes", "summary", "large")
        and not (field.name in LATER_FIELDS and not getattr(task, field.name))
    }
    recipes = {recipe: task.recipes[recipe]} if recipe in task.recipes else dict(task.recipes)
    digest.update(f"{counted} {recipes}\n".encode())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = task.architecture()
    for name, value in (*layer_settings(model), *_summaries(model)):
        digest.update(f"{name}: {value!r}\n".encode())
    return digest.hexdigest()


def _summaries(model: nn.Module) -> Iterator[tuple[str, object]]:
    """Yield of each tensor of the model what survives rounding: type, shape, norm and products with other tensors.

    In these the weight of a position is the fractional part of its number times an irrational step, so that other
    numbers, signs or places are seen; whatever changes less than a thousandth of the norm need not be.
    """
    for name, tensor in {**model.state_dict(), **dict(model.named_buffers())}.items():
        yield name, f"{tensor.dtype} {list(tensor.shape)} {' '.join(_measures(tensor))}"


def _measures(tensor: torch.Tensor) -> Iterator[str]:
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    numbers = tensor.detach().double().flatten().numpy()
    norm = float(np.linalg.norm(numbers))
    yield f"{norm:.{DECIMALS}g}"
    for step in STEPS if norm > 0 else ():
        weights = np.arange(1, len(numbers) + 1) * step % 1 - 0.5
        product = float(weights @ numbers) / norm * 12**0.5  # of chance numbers it is of the order of 1
        yield f"{product:.{DECIMALS + 1}g}" if abs(product) > 1 else f"{round(product, DECIMALS) + 0.0}"
