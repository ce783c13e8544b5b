"""Games of nearest neighbours in plain Python, one test point, coalition and distance at a time; and their data."""

import math

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from baselines import knn_shapley
from baselines.knn import (
    knn_regression_shapley,
    soft_knn_shapley,
    threshold_knn_shapley,
    weighted_knn_shapley,
)

RADIUS = 2.5  # a sixth of the pairs of `dataset` is nearer
BITS = 3


def dataset(n=300, t=50, d=6, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(n, d)),
        rng.integers(0, classes, n),
        rng.normal(size=(t, d)),
        rng.integers(0, classes, t),
    )


@st.composite
def small_datasets(draw):
    """Integer features on a small grid: plenty of ties and duplicates."""
    n, t, d = draw(st.integers(1, 7)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    features = st.integers(-2, 2)
    labels = st.integers(0, 2)
    return (
        draw(arrays(np.int64, (n, d), elements=features)),
        draw(arrays(np.int64, n, elements=labels)),
        draw(arrays(np.int64, (t, d), elements=features)),
        draw(arrays(np.int64, t, elements=labels)),
        draw(st.integers(1, n)),
    )


class NearestNeighbours:
    """What the members of a coalition, from near to far, are worth; the mean over the test points.

    `worth(near, label, k, all_distances)` takes them as (distance, label) and the distances of all training points.
    """

    def __init__(self, worth, x_train, y_train, x_test, y_test, k):
        self.n_players, self.k, self.worth = len(x_train), k, worth
        self.labels, self.tests = y_train, y_test
        self.squares = [
            [sum((a - b) ** 2 for a, b in zip(point, test, strict=True)) for point in x_train] for test in x_test
        ]

    def utility(self, coalition):
        members = [i for i in range(self.n_players) if coalition[i]]
        total = 0.0
        for squares, label in zip(self.squares, self.tests, strict=True):
            members.sort(key=lambda i: (squares[i], i))
            near = [(math.sqrt(squares[i]), self.labels[i]) for i in members]
            total += self.worth(near, label, self.k, [math.sqrt(square) for square in squares])
        return total / len(self.tests)

    def __call__(self, coalitions):
        return np.array([self.utility(coalition) for coalition in coalitions])

    def grand_less_empty(self):
        everyone = np.ones(self.n_players, dtype=bool)
        return self.utility(everyone) - self.utility(~everyone)


def hard(near, label, k, _all):
    return sum(y == label for _, y in near[:k]) / k


def soft(n_classes):
    def worth(near, label, k, _all):
        votes = [y == label for _, y in near[:k]]
        return sum(votes) / len(votes) if votes else 1 / n_classes

    return worth


def threshold(n_classes, radius):
    def worth(near, label, _k, _all):
        votes = [y == label for distance, y in near if distance <= radius]
        return sum(votes) / len(votes) if votes else 1 / n_classes

    return worth


def regression(near, label, k, _all):
    return -((sum(y for _, y in near[:k]) / k - label) ** 2)


def weighted(near, label, k, all_distances):
    """Inverse distances, in units of the seventh part of the largest; a point at distance 0 beats all others."""
    largest, nearest = 2**BITS - 1, min(all_distances)

    def vote(distance):
        if distance == nearest:
            return largest
        return max(1, math.floor(nearest / distance * largest + 0.5 + 1e-9))

    balance = sum(vote(distance) if y == label else -vote(distance) for distance, y in near[:k])
    return 0.5 if balance == 0 else float(balance > 0)


class Case:
    """An estimator of the family, and the game that it solves."""

    def __init__(self, estimate, worth_of_classes, second=None):
        self.estimate, self.worth_of_classes, self.second = estimate, worth_of_classes, second
        self.__name__ = estimate.__name__

    def arguments(self, k):
        """What comes after the data: k, or the radius."""
        return k if self.second is None else self.second

    def values(self, *data, k=5, **options):
        return self.estimate(*data, self.arguments(k), **options).values

    def game(self, x_train, y_train, x_test, y_test, k=5):
        classes = len(set(np.asarray(y_train).tolist()) | set(np.asarray(y_test).tolist()))
        return NearestNeighbours(self.worth_of_classes(classes), x_train, y_train, x_test, y_test, k)


HARD = Case(knn_shapley, lambda _: hard)
SOFT = Case(soft_knn_shapley, soft)
WEIGHTED = Case(weighted_knn_shapley, lambda _: weighted)
THRESHOLD = Case(threshold_knn_shapley, lambda classes: threshold(classes, RADIUS), RADIUS)
REGRESSION = Case(knn_regression_shapley, lambda _: regression)
FAMILY = [HARD, SOFT, WEIGHTED, THRESHOLD, REGRESSION]
