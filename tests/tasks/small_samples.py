"""Samples and coalitions for learners, without torch, which workers would have to import."""

import numpy as np


def samples(n=24, d=4, n_classes=2, v=30, seed=0):
    """Draw overlapping Gaussian classes; every class is among the first players."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(n_classes), rng.integers(n_classes, size=n + v - n_classes)])
    x = rng.normal(size=(n + v, d)) + 1.5 * rng.normal(size=(n_classes, d))[labels]
    return x[:n], labels[:n], x[n:], labels[n:]


def regression(n=24, d=4, v=30, seed=0):
    """Draw a linear model with noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n + v, d))
    y = x @ rng.normal(size=d) + 0.5 + 0.3 * rng.normal(size=n + v)
    return x[:n], y[:n], x[n:], y[n:]


def random_coalitions(n, m=20, seed=0):
    """Draw the empty coalition, that of all, and m of random sizes."""
    rng = np.random.default_rng(seed)
    return np.concatenate([np.zeros((1, n), bool), np.ones((1, n), bool), rng.random((m, n)) < rng.random((m, 1))])


def with_constant(x):
    """Return x with a column of ones."""
    return np.hstack([x, np.ones((len(x), 1))])
