"""From a whole dataset to train / validation / test samples with a known share of wrong labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

__all__ = ["Split", "flip_labels", "partition", "standardise"]

Scaling = Literal["feature", "global"]


@dataclass(frozen=True)
class Split:
    """Samples of one part of a dataset: features `x` [n, ...] and class labels `y`, int64 [n]."""

    x: torch.Tensor
    y: torch.Tensor

    def __len__(self) -> int:
        return len(self.y)


def partition(labels: NDArray[np.int64], sizes: Sequence[int], seed: np.random.SeedSequence) -> list[NDArray[np.int64]]:
    """Draw disjoint index sets of the given sizes, each with the dataset's own class proportions.

    Parameters
    ----------
    labels : int64 [n]
        Class of each sample of the dataset.
    sizes : sequence of int
        Size of each part; their sum may be less than ``n``.
    seed : numpy.random.SeedSequence
        Source of the draw.

    Returns
    -------
    list of int64 arrays
        Indices into `labels`, one array a part, in random order.
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
            n_classes = len(np.unique(labels[rest]))
            stratify = labels[rest] if min(size, len(rest) - size) >= n_classes else None
            state = int(child.generate_state(1)[0])
            chosen, rest = train_test_split(rest, train_size=size, stratify=stratify, random_state=state)
        parts.append(chosen)
    return parts


def standardise(x: NDArray[np.float64], train: NDArray[np.int64], scaling: Scaling) -> NDArray[np.float64]:
    """Centre and scale features with the statistics of the training samples alone.

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
    if not 0 <= fraction <= 1:
        raise ValueError(f"the fraction of flipped labels must lie in [0, 1], got {fraction!r}")
    rng = np.random.default_rng(seed)
    flipped = np.sort(rng.choice(len(labels), size=round(fraction * len(labels)), replace=False))
    noisy = labels.copy()
    noisy[flipped] = (labels[flipped] + rng.integers(1, n_classes, size=len(flipped))) % n_classes
    return noisy, flipped
