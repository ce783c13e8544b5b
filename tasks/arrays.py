"""A task of one's own: samples and a model from a script, in place of a file in the catalogue.

What could be meant in two ways is refused, and the error names the argument that tells:

- integers in `x` may be tokens or measurements: `scaling` tells;
- floats in `y` that are all whole numbers may be labels or numbers: `classification` tells.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from itertools import pairwise
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset

from baselines.arguments import flag, real_number, whole_number
from baselines.real_numbers import check_same_columns, real_numbers
from tasks.array_samples import ArraySamples, array_samples, class_numbers, classes_of
from tasks.checked_model import checked_model, learner_of
from tasks.data import HeldOut, Scaling
from tasks.learners.parameters import one_of
from tasks.recipe import Recipe
from tasks.registry import NAME
from tasks.task import Task, TaskSpec

__all__ = ["from_arrays"]

_TRIED = 2  # samples on which the model is run once


def from_arrays(
    x: Any,
    y: Any = None,
    *,
    model: Callable[[], nn.Module] | nn.Module,
    recipe: Recipe | Mapping[str, Recipe],
    validation: float | tuple[Any, Any] | Dataset[Any] = 0.2,
    test: float | tuple[Any, Any] | Dataset[Any] = 0.2,
    n_train: int | None = None,
    classification: bool | None = None,
    n_classes: int | None = None,
    scaling: Scaling | Literal["auto"] | None = "auto",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    flipped: float = 0.0,
    name: str = "mine",
) -> Task:
    """Make a task of your own samples, model and recipe; it is checked here, and not when it first trains.

    Parameters
    ----------
    x : array, data frame, tensor or map-style torch Dataset
        Features [n, ...], numbers or booleans; or token sequences, integers [n, T]. A Dataset holds pairs (x, y), each
        of which is read once: what a random transform draws then stays.
    y : array, series, data frame, tensor or list, optional
        Targets [n] or [n, 1]; left out with a Dataset. Strings, booleans, integers and pandas' categories are labels,
        floats are numbers (regression). Floats that are all whole numbers are refused unless `classification` is given.
        Integers [n, T], with `n_classes`, are sequences of labels.
    model : callable or torch.nn.Module
        A callable without arguments, such as a class, that returns a fresh model whose weights are drawn from torch's
        global generator: other ones for each seed. Or a model: a copy of it as it is now, the same initial weights for
        every seed. It returns a number for each class, [B, K] (of sequences [B, T, K]), or in regression [B] or [B, 1].
    recipe : Recipe, or mapping of str to Recipe
        How it is trained. The first of a mapping is in use; :meth:`Task.rebuilt` takes another. A single one is called
        by its optimiser.
    validation, test : float, int, pair (x, y) or Dataset
        The samples that judge, and those that no method sees: a share of the samples in (0, 1), a number of them, or
        samples of their own. They are drawn in the proportions of the labels. Where neither is drawn, training samples
        keep the order of `x`.
    n_train : int, optional
        Number of training samples; all that are left where None.
    classification : bool, optional
        Whether `y` holds labels. Follows from their type where None.
    n_classes : int, optional
        Number of classes. Of sequences it must be given (labels lie in ``0 .. n_classes - 1``); elsewhere it is that
        of distinct labels, and another one is refused. Makes the task a classification.
    scaling : {"auto", "feature", "global"} or None
        How features are standardised, by training samples alone: each by itself, or all by one number (pixels).
        ``"auto"`` is ``"feature"`` of floats and booleans, and refuses integers. None leaves features as they are, and
        integers are then tokens. Numbers in `y` are always standardised.
    dtype : torch.dtype
        Of features and weights, a floating one.
    seed : int
        Source of the split, the wrong targets, the initial weights and the batch order; not negative.
    flipped : float
        Share of training samples whose target is made wrong, as in :func:`tasks.load`.
    name : str
        Letters, digits, dashes and underscores.

    Returns
    -------
    Task
        Training sample i is ``x[task.rows[i]]``, and so is value i of a valuation. Label k stands for
        ``task.classes[k]``: pandas' categories in their order, other labels sorted. Nothing of it changes when your
        arrays or your model do.

    Raises
    ------
    TypeError
        If an argument is of another type, or a feature no number.
    ValueError
        If something is missing, infinite, ambiguous or does not fit: lengths, shapes, columns, sizes of the parts, a
        label that does not occur in training, what the model returns.

    Examples
    --------
    >>> import numpy as np, tasks
    >>> x = np.random.default_rng(0).normal(size=(100, 3))
    >>> y = np.where(x[:, 0] > 0, "yes", "no")
    >>> sgd = tasks.Recipe("sgd", learning_rate=0.1, batch_size=10, epochs=5)
    >>> task = tasks.from_arrays(x, y, model=lambda: nn.Linear(3, 2), recipe=sgd)
    >>> task.n_train, task.classes
    (60, ('no', 'yes'))
    >>> bool((np.array(task.classes)[task.train.y] == y[task.rows]).all())
    True
    """
    _check_options(scaling, dtype, name)
    samples = array_samples(("x", "y"), x, y)
    given = {
        part: _held_out(part, held_out, samples, x)
        for part, held_out in (("validation", validation), ("test", test))
        if isinstance(held_out, tuple | Dataset)
    }
    whole = [samples, *given.values()]
    features, scaling = _features(whole, scaling)
    classes = _classes(samples, classification, n_classes)
    targets = np.concatenate([_targets(part, samples, classes, n_classes) for part in whole])
    sizes = _sizes(len(samples), n_train, {"validation": validation, "test": test}, given)
    if classes is not None and sizes["train"] < len(samples):
        _check_frequencies(targets[: len(samples)], classes, samples, classification)
    recipes: Mapping[str, Recipe] = {recipe.optimizer: recipe} if isinstance(recipe, Recipe) else recipe
    _check_recipes(recipes)
    seed = whole_number("seed", seed, minimum=0)
    flipped = real_number("flipped", flipped)
    n_classes = n_classes if classes is None else len(classes)
    architecture = partial(deepcopy, deepcopy(model).cpu()) if isinstance(model, nn.Module) else model
    few = (torch.from_numpy(array[:_TRIED]) for array in (features, targets))
    few_x, few_y = (array.to(dtype) if array.is_floating_point() else array for array in few)
    model = checked_model(architecture, seed, few_x, few_y, n_classes, dtype)
    ends = np.cumsum([len(part) for part in whole]).tolist()
    spec = TaskSpec(
        dataset=partial(_as_given, features, targets),
        architecture=architecture,
        recipes=dict(recipes),
        n_classes=n_classes,
        n_train=sizes["train"],
        n_validation=sizes["validation"],
        n_test=sizes["test"],
        scaling=scaling,
        summary="made by tasks.from_arrays",
        learner=learner_of(model, few_x, n_classes),
        classes=classes,
        defaults={"recipe": next(iter(recipes)), "flipped": flipped, "dtype": dtype},
        held_out={cast(HeldOut, part): range(*each) for part, each in zip(given, pairwise(ends), strict=True)},
    )
    task = spec.build(name, seed=seed, recipe=next(iter(recipes)), n_train=None, flipped=flipped, dtype=dtype)
    _check_numbers(task)
    return task


def _check_options(scaling: object, dtype: object, name: object) -> None:
    one_of("scaling", scaling, ("auto", "feature", "global", None))
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating one, such as torch.float32 or torch.float64, got {dtype!r}")
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise ValueError(f"name must be of letters, digits, dashes and underscores alone, got {name!r}")


def _held_out(part: str, given: Any, samples: ArraySamples, x: Any) -> ArraySamples:
    """Return the samples of a part that the user has chosen, having checked that they are like those of `x`."""
    pair = given if isinstance(given, tuple) else (given, None)
    if len(pair) != 2:
        raise ValueError(f"{part} must be a pair (x, y), got a tuple of {len(pair)}")
    check_same_columns("x", x, f"x of {part}", pair[0])
    found = array_samples((f"x of {part}", f"y of {part}"), *pair)
    for name, one, other in (("x", found.x, samples.x), ("y", found.y, samples.y)):
        if one.shape[1:] != other.shape[1:]:
            raise ValueError(
                f"{name} of {part} must have samples of the shape that those of {name} have, {list(other.shape[1:])}, "
                f"got {list(one.shape[1:])}"
            )
    return found


def _features(whole: list[ArraySamples], scaling: Any) -> tuple[NDArray[Any], Scaling | None]:
    """Return the features of all samples, float64 or, of tokens, int64 [n, ...], and how they are standardised."""
    integers = [part.x.dtype.kind == "i" for part in whole]
    if scaling == "auto":
        if integers[0]:
            raise ValueError(
                "x holds integers, which may be tokens or measurements: say scaling=None for tokens, which stay "
                "integers, or scaling='feature' or 'global' for measurements, which are standardised (or pass floats)"
            )
        scaling = "feature"
    tokens = scaling is None and integers[0]
    if tokens and not all(integers):
        wrong = whole[integers.index(False)]
        raise TypeError(f"{wrong.names[0]} must be integers (tokens), as x is, got floats or booleans")
    return np.concatenate([part.x if tokens else part.x.astype(np.float64) for part in whole]), scaling


def _classes(samples: ArraySamples, classification: Any, n_classes: Any) -> tuple[Any, ...] | None:
    """Return what the labels of `y` [n] stand for; None of numbers, and of sequences, whose labels are numbers."""
    y = samples.y
    if n_classes is not None:
        whole_number("n_classes", n_classes, minimum=2)
        if classification is False:
            raise ValueError(f"n_classes must be left out with classification=False, got {n_classes}")
    if classification is None:
        labels = n_classes is not None or y.dtype.kind != "f"
        if not labels and y.ndim == 1 and (y == np.round(y)).all():
            raise ValueError(
                f"y holds floats that are all whole numbers ({len(np.unique(y))} distinct ones), which may be labels "
                "or numbers: say classification=True or classification=False"
            )
    else:
        labels = flag("classification", classification)
    if y.ndim == 2 and (not labels or n_classes is None or y.dtype.kind not in "iu"):
        raise ValueError(
            "y must be one target a sample, [n] or [n, 1], or sequences of integer labels [n, T] with n_classes "
            f"given, got {y.dtype} {list(y.shape)} with n_classes={n_classes}; of one-hot rows take y.argmax(1)"
        )
    if not labels or y.ndim == 2:
        return None
    classes = classes_of(samples)
    if len(classes) < 2:
        raise ValueError(f"y must have at least two classes, got only {classes[0]!r}; are the samples sorted by label?")
    if n_classes not in (None, len(classes)):
        raise ValueError(
            f"n_classes must be the number of distinct labels in y, {len(classes)}, got {n_classes}; leave it out, and "
            "let the model return a number for each class that occurs"
        )
    return classes


def _targets(
    part: ArraySamples, samples: ArraySamples, classes: tuple[Any, ...] | None, n_classes: int | None
) -> NDArray[Any]:
    """Return labels int64 [n], of sequences [n, T], or numbers float64 [n]."""
    if classes is not None:
        return class_numbers(part, classes, samples.names[1])
    if n_classes is None:
        numbers = real_numbers(part.names[1], part.y)
        return numbers.astype(np.float64)
    if part.y.dtype.kind not in "iu" or not 0 <= int(part.y.min()) <= int(part.y.max()) < n_classes:
        raise ValueError(
            f"{part.names[1]} must be integers in 0 .. {n_classes - 1}, since n_classes = {n_classes}, got "
            f"{part.y.dtype} in {part.y.min()} .. {part.y.max()}"
        )
    return part.y.astype(np.int64)


def _sizes(n: int, n_train: Any, held_out: Mapping[str, Any], given: Mapping[str, ArraySamples]) -> dict[str, int]:
    """Return how many samples each part has."""
    drawn = {part: _size(part, size, n) for part, size in held_out.items() if part not in given}
    left = n - sum(drawn.values())
    size = left if n_train is None else whole_number("n_train", n_train)
    if size > left or left < 1:
        taken = "".join(f", {part} {number}" for part, number in drawn.items())
        raise ValueError(
            f"n_train, validation and test must share the {n} samples of x, at least one each, got n_train "
            f"{n_train}{taken}; take less for one of them, or hold out samples of their own as pairs (x, y)"
        )
    return {"train": size, **{part: drawn.get(part) or len(given[part]) for part in held_out}}


def _size(part: str, size: Any, n: int) -> int:
    """Return a share of `n` samples, or a number of them, as a number."""
    if isinstance(size, float | np.floating):
        if not 0 < size < 1:
            raise ValueError(f"{part} must be a share of the samples in (0, 1), or an int, got {size}")
        if round(size * n) < 1:
            raise ValueError(f"{part} must be at least one sample, got {size} of {n}; raise the share, or give an int")
        return round(size * n)
    try:
        return whole_number(part, size)
    except TypeError as error:
        raise TypeError(
            f"{part} must be a share of the samples in (0, 1), a number of them, a pair (x, y) or a Dataset, got "
            f"{reprlib.repr(size)} ({type(size).__name__})"
        ) from error


def _check_frequencies(
    labels: NDArray[np.int64], classes: tuple[Any, ...], samples: ArraySamples, classification: Any
) -> None:
    """Refuse a class of a single sample, which cannot be among those that train and those that judge."""
    counts = np.bincount(labels, minlength=len(classes))
    if counts.min() >= 2:
        return
    numbers = classification is None and samples.y.dtype.kind in "iu"
    raise ValueError(
        f"each class of y must have at least two samples, got one of {classes[np.argmin(counts)]!r} (and "
        f"{np.count_nonzero(counts < 2) - 1} other such classes); leave such samples out, or merge classes"
        + ("; say classification=False if y holds numbers, and not labels" if numbers else "")
    )


def _check_recipes(recipes: Any) -> None:
    fits = isinstance(recipes, Mapping) and recipes
    if not fits or not all(isinstance(k, str) and isinstance(v, Recipe) for k, v in recipes.items()):
        kinds = {type(each).__name__ for each in recipes.values()} if fits else {type(recipes).__name__}
        raise TypeError(
            "recipe must be a tasks.Recipe, or a mapping of names to at least one of them, got "
            f"{'a mapping to ' if fits else ''}{' and '.join(sorted(kinds))}"
        )


def _as_given(x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    return x, y


def _check_numbers(task: Task) -> None:
    """Refuse numbers that became infinite in the task's dtype."""
    for part in ("train", "validation", "test"):
        for name in ("x", "y"):
            if not torch.isfinite(getattr(getattr(task, part), name)).all():
                raise ValueError(
                    f"{name} of the {part} set has numbers that {task.train.x.dtype} does not hold; scale them, or "
                    "take another dtype or scaling"
                )
