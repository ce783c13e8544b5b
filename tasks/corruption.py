"""Corruptions: training samples made bad in known places, for methods of data valuation to find.

Wrong targets belong to every task (`flipped` of :func:`tasks.load`). The other kinds are made here, of a task that is
there already. Validation and test samples are never touched.

``labels``
    Targets are wrong: another label, or in regression and of sequences that of another sample.
``noise``
    Each feature is blurred by normal noise of :data:`NOISE` times its own spread over the training samples.
``outliers``
    Each feature is that of a training sample of its own, drawn at random: the spread of every feature is right, and
    what holds them together is gone, so that the sample is of no class (out of distribution). The target stays.
``copies``
    The sample is replaced by a copy of another one, features and target: nothing is wrong, and something is redundant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.data import Split
from tasks.registry import unknown_name
from tasks.task import Task

__all__ = ["CORRUPTIONS", "Corrupted", "corrupt"]

NOISE = 3.0  # times the spread of a feature
STREAM = 5  # of the task's seed


@dataclass(frozen=True)
class Corrupted:
    """A task whose training samples are bad in known places.

    Attributes
    ----------
    task : Task
        With these samples; all else as it was.
    samples : int64 [k]
        Which training samples are bad, ascending.
    originals : int64 [k]
        Which training sample each is a copy of; the sample itself, where it is none.
    """

    task: Task
    samples: NDArray[np.int64]
    originals: NDArray[np.int64]


def corrupt(task: Task, kind: str, share: float) -> Corrupted:
    """Make a share of the training samples bad.

    Parameters
    ----------
    task : Task
        From :func:`tasks.load` or :func:`tasks.from_arrays`, without wrong targets of its own where these are not what
        is asked for: ``tasks.load(name, flipped=0.0)``.
    kind : str
        One of :data:`CORRUPTIONS`; see the module's docstring.
    share : float
        Of the training samples, in (0, 1), rounded to whole samples; of copies at most a half.

    Returns
    -------
    Corrupted
        Which samples are bad, and how, follows from the seed of the task.

    Raises
    ------
    ValueError
        If the kind is unknown or does not fit (tokens have no noise, and a task put together by hand no way to make its
        targets anew), or the share makes no sample bad, or all.

    Examples
    --------
    >>> import tasks
    >>> from tasks.corruption import corrupt
    >>> found = corrupt(tasks.load("iris-logreg", flipped=0.0), "copies", 0.25)
    >>> bool((found.task.train.x[found.samples] == found.task.train.x[found.originals]).all())
    True
    """
    if kind not in CORRUPTIONS:
        raise ValueError(unknown_name("corruption", kind, list(CORRUPTIONS)))
    number = round(share * task.n_train)
    if not 0 < number < task.n_train:
        raise ValueError(f"share must make some of the {task.n_train} training samples bad, and not all, got {share!r}")
    return CORRUPTIONS[kind](task, share, np.random.default_rng([task.seed, STREAM]))


def _labels(task: Task, share: float, _rng: np.random.Generator) -> Corrupted:
    if task.spec is None:
        raise ValueError(
            f"task {task.name!r} was put together from its parts, so that its true targets are not known; tasks.load "
            "and tasks.from_arrays make tasks whose targets can be made wrong anew"
        )
    dtype = task.dtype or task.train.x.dtype
    wrong = task.spec.build(
        task.name, seed=task.seed, recipe=task.recipe_name, n_train=task.n_train, flipped=share, dtype=dtype
    )
    same = all(torch.equal(getattr(wrong, part).x, getattr(task, part).x) for part in ("train", "validation", "test"))
    if not same or task.architecture is not wrong.architecture:
        raise ValueError(
            f"the samples or the model of task {task.name!r} are no longer those that it was built of, so that its "
            "true targets are not known; make its labels wrong first, and change it then"
        )
    wrong = replace(wrong, recipe=task.recipe, run_seed=task.run_seed)
    return Corrupted(wrong, wrong.flipped, wrong.flipped)


def _noise(task: Task, share: float, rng: np.random.Generator) -> Corrupted:
    x, samples = _features(task, "noise"), _chosen(task, share, rng)
    noise = torch.from_numpy(rng.standard_normal((len(samples), *x.shape[1:]))).to(x.dtype)
    x[samples] += NOISE * task.train.x.std(dim=0, correction=0) * noise
    _check_changed(task, x, samples)
    return _with(task, Split(x, task.train.y), samples, samples)


def _outliers(task: Task, share: float, rng: np.random.Generator) -> Corrupted:
    x, samples = _features(task, "outliers"), _chosen(task, share, rng)
    of = torch.from_numpy(rng.integers(0, task.n_train, (len(samples), *x.shape[1:])))
    x[samples] = task.train.x.gather(0, of)
    _check_changed(task, x, samples)
    return _with(task, Split(x, task.train.y), samples, samples)


def _copies(task: Task, share: float, rng: np.random.Generator) -> Corrupted:
    number = round(share * task.n_train)
    if 2 * number > task.n_train:
        raise ValueError(f"share of copies must be at most 0.5, so that each has an original, got {share!r}")
    pairs = rng.permutation(task.n_train)[: 2 * number].reshape(2, number)
    samples, originals = pairs[:, np.argsort(pairs[0])]
    source = torch.arange(task.n_train)
    source[samples] = torch.from_numpy(originals)
    copied = replace(
        task,
        flipped=np.flatnonzero(np.isin(source.numpy(), task.flipped)),
        domains=None if task.domains is None else task.domains[source.numpy()],
        rows=None if task.rows is None else task.rows[source.numpy()],
    )
    return _with(copied, Split(task.train.x[source], task.train.y[source]), samples, originals)


CORRUPTIONS: dict[str, Callable[[Task, float, np.random.Generator], Corrupted]] = {
    "labels": _labels,
    "noise": _noise,
    "outliers": _outliers,
    "copies": _copies,
}
"""Kinds of bad samples, by name."""


def _features(task: Task, kind: str) -> torch.Tensor:
    """Return a copy of the training samples' features; refuse tokens."""
    if not task.train.x.dtype.is_floating_point:
        raise ValueError(
            f"corruption {kind!r} needs features that are numbers; those of task {task.name!r} are tokens "
            f"({task.train.x.dtype}); 'labels' and 'copies' take any"
        )
    return task.train.x.clone()


def _chosen(task: Task, share: float, rng: np.random.Generator) -> NDArray[np.int64]:
    return np.sort(rng.choice(task.n_train, size=round(share * task.n_train), replace=False))


def _check_changed(task: Task, x: torch.Tensor, samples: NDArray[np.int64]) -> None:
    """Refuse bad samples that are what they were: features that hardly vary leave nothing to change."""
    same = int((x[samples] == task.train.x[samples]).flatten(1).all(1).sum())
    if same:
        raise ValueError(
            f"{same} of {len(samples)} samples of task {task.name!r} stay as they are: its features hardly vary"
        )


def _with(task: Task, train: Split, samples: NDArray[np.int64], originals: NDArray[np.int64]) -> Corrupted:
    return Corrupted(replace(task, train=train), samples, originals)
