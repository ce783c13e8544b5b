"""Thirty lines of Python's standard library: which of eight packages are they from? Words, logistic regression.

A sample is a piece of a package's source, its features the counts of its words, by hash, scaled to length 1. As for
:mod:`~tasks.catalog.stdlib_gpt`, the text is that of the running Python and differs a little between versions.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import HashingVectorizer
from torch import nn

from tasks.catalog.stdlib_gpt import DOMAINS, source_of
from tasks.recipe import Recipe
from tasks.task import TaskSpec

LINES = 30  # a piece
PIECES = 90  # a package
FEATURES = 256


@cache
def dataset() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return counts of words, float64 [720, 256], and the number of each piece's package, int64 [720]."""
    pieces = [piece for domain in DOMAINS for piece in _pieces(domain)]
    counted = HashingVectorizer(n_features=FEATURES, alternate_sign=False, norm="l2").transform(pieces)
    return counted.toarray(), np.repeat(np.arange(len(DOMAINS)), PIECES)


def _pieces(domain: str) -> list[str]:
    """Return pieces of a package's source, evenly spaced, which share no line."""
    lines = [line for line in source_of(domain).splitlines() if line.strip()]
    needed = PIECES * LINES
    if len(lines) < needed:
        raise ValueError(f"the source of {domain!r} has {len(lines)} lines, and stdlib-words-logreg takes {needed}")
    starts = np.linspace(0, len(lines) - LINES, PIECES).astype(int)
    return ["\n".join(lines[start : start + LINES]) for start in starts]


TASK = TaskSpec(
    dataset=dataset,
    architecture=lambda: nn.Linear(FEATURES, len(DOMAINS)),
    recipes={
        "sgd": Recipe("sgd", learning_rate=8.0, batch_size=20, epochs=5),
        "momentum": Recipe("sgd", learning_rate=0.8, batch_size=20, epochs=5, momentum=0.9),
        "adamw": Recipe("adamw", learning_rate=0.05, batch_size=20, epochs=5, weight_decay=0.01),
    },
    n_classes=len(DOMAINS),
    n_train=200,
    n_validation=200,
    n_test=200,
    scaling=None,
    summary="words of Python's standard library, logistic regression of eight packages",
    learner="logistic",
)
