"""From a whole dataset to train / validation / test samples with a known share of wrong targets."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

__all__ = ["HeldOut", "Split", "exchange_targets", "flip_labels", "partition", "standardise"]

Scaling = Literal["feature", "global"]

HeldOut = Literal["validation", "test"]
"""Names of the parts of a dataset that judge a trained model."""

Number = TypeVar("Number", np.int64, np.float64)


@dataclass(frozen=True)
class Split:
    """Samples of one part of a dataset: features `x` [n, ...] and targets `y`.

    Targets are class labels, int64 [n] (of sequences: [n, T]), or, in regression, numbers in the dtype of `x`, [n].
    Tokens are inputs as they are, int64 [n, T].

    Raises
    ------
    TypeError
        If one of them is no tensor.
    ValueError
        If they are not of the same number of samples.
    """

    x: torch.Tensor
    y: torch.Tensor

    def __post_init__(self) -> None:
        for name in ("x", "y"):
            if not isinstance(getattr(self, name), torch.Tensor):
                raise TypeError(
                    f"{name} of a Split must be a tensor, got {type(getattr(self, name)).__name__}; "
                    "torch.from_numpy makes one of an array"
                )
        if self.x.ndim == 0 or self.y.ndim == 0 or len(self.x) != len(self.y):
            raise ValueError(
                f"x and y of a Split must have as many samples as each other, got shapes {list(self.x.shape)} and "
                f"{list(self.y.shape)}"
            )

    def __len__(self) -> int:
        return len(self.y)


def partition(
    labels: NDArray[np.int64],
    sizes: Sequence[int],
    seed: np.random.SeedSequence,
    names: Sequence[Hashable] | None = None,
) -> list[NDArray[np.int64]]:
    """Draw disjoint index sets of the given sizes, each with the dataset's own proportions of classes, or of domains.

    Parameters
    ----------
    labels : int64 [n]
        Class, or domain, of each sample of the dataset; where there are none, the same number for all.
    sizes : sequence of int
        Size of each part; their sum may be less than ``n``.
    seed : numpy.random.SeedSequence
        Source of the draw.
    names : sequence, optional
        What errors are to call the classes.

    Returns
    -------
    list of int64 arrays
        Indices into `labels`, one array a part, in random order.

    Raises
    ------
    ValueError
        If there are too few samples, or a single one of a class is left to be divided in proportion.
    """
    if sum(sizes) > len(labels):
        raise ValueError(
            f"the parts need {' + '.join(map(str, sizes))} = {sum(sizes)} samples, but the dataset has {len(labels)}"
        )
    rest = np.arange(len(labels))
    parts = []
    for size, child in zip(sizes, seed.spawn(len(sizes)), strict=True):
        if size == len(rest):
            chosen, rest = np.random.default_rng(child).permutation(rest), rest[:0]
        else:
            classes, counts = np.unique(labels[rest], return_counts=True)
            n_classes = len(classes)
            stratify = labels[rest] if min(size, len(rest) - size) >= n_classes else None
            if stratify is not None and counts.min() < 2:
                single = int(classes[np.argmin(counts)])
                raise ValueError(
                    f"class {single if names is None else names[single]!r} has a single sample among the {len(rest)} "
                    "from which the next part is drawn, which cannot be divided in proportion; leave out or merge "
                    "classes as rare as that, or hold out samples of your own choice"
                )
            state = int(child.generate_state(1)[0])
            chosen, rest = train_test_split(rest, train_size=size, stratify=stratify, random_state=state)
        parts.append(chosen)
    return parts


def standardise(x: NDArray[np.float64], train: NDArray[np.int64], scaling: Scaling) -> NDArray[np.float64]:
    """Centre and scale features [n, ...], or targets [n], with the statistics of the training samples alone.

    ``"feature"`` divides each feature by its own standard deviation (measurements in different units); ``"global"``
    divides all by one number (pixels, where a nearly constant corner must not be blown up).
    """
    centred = x - x[train].mean(axis=0)
    deviation = centred[train].std(axis=0) if scaling == "feature" else centred[train].std()
    scaled: NDArray[np.float64] = centred / np.where(deviation > 0, deviation, 1.0)
    return scaled


def flip_labels(
    labels: NDArray[np.int64], n_classes: int, fraction: float, seed: np.random.SeedSequence
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give a share of the samples a wrong label, drawn evenly from the other classes.

    Parameters
    ----------
    labels : int64 [n]
        True classes, in ``0 .. n_classes - 1``.
    n_classes : int
        Number of classes, at least 2.
    fraction : float
        Share of samples to flip, in [0, 1]; rounded to whole samples.
    seed : numpy.random.SeedSequence
        Source of the draw.

    Returns
    -------
    labels : int64 [n]
        Labels after flipping.
    flipped : int64 [k]
        Indices of the flipped samples, ascending.
    """
    rng = np.random.default_rng(seed)
    flipped = _choose(len(labels), fraction, rng)
    noisy = labels.copy()
    noisy[flipped] = (labels[flipped] + rng.integers(1, n_classes, size=len(flipped))) % n_classes
    return noisy, flipped


def exchange_targets(
    targets: NDArray[Number], fraction: float, seed: np.random.SeedSequence
) -> tuple[NDArray[Number], NDArray[np.int64]]:
    """Give a share of the samples the target of another one, drawn evenly from those whose target differs.

    That is to regression, and to sequences, what :func:`flip_labels` is to classification: each chosen target is wrong,
    and none stands out by itself.

    Parameters
    ----------
    targets : [n] or [n, T]
        True targets: numbers, or sequences of labels.
    fraction : float
        Share of samples to change, in [0, 1]; rounded to whole samples.
    seed : numpy.random.SeedSequence
        Source of the draw.

    Returns
    -------
    targets : [n] or [n, T]
        Targets after the exchange.
    exchanged : int64 [k]
        Indices of the changed samples, ascending.

    Raises
    ------
    ValueError
        If the fraction lies outside [0, 1], or samples are to change but all targets are the same.
    """
    rng = np.random.default_rng(seed)
    exchanged = _choose(len(targets), fraction, rng)
    if len(exchanged) and (targets == targets[0]).all():
        raise ValueError(f"all {len(targets)} training targets are {targets[0].tolist()!r}: none can be made wrong")
    noisy = targets.copy()
    for sample in exchanged:
        others = (targets != targets[sample]).reshape(len(targets), -1).any(axis=1)
        noisy[sample] = rng.choice(targets[others])
    return noisy, exchanged


def _choose(n: int, fraction: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the samples whose target is made wrong, ascending."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"flipped, the share of wrong training targets, must lie in [0, 1], got {fraction!r}")
    return np.sort(rng.choice(n, size=round(fraction * n), replace=False))
