"""Games whose Shapley values are known from elsewhere: closed forms and independent computations."""

import math

import numpy as np
from hypothesis import strategies as st
from scipy.stats import hypergeom

ANY_UTILITY = st.floats(-100, 100).map(lambda x: x if abs(x) > 1e-100 else 0.0)
"""Standard errors are made of squares, which smaller ones do not have; such games are refused."""


class Airport:
    """The runway must suit the largest aircraft of the coalition (Littlechild, Owen 1973; Castro et al. 2009, 4.3)."""

    def __init__(self, costs):
        self.costs = np.asarray(costs, dtype=float)
        self.n_players = len(self.costs)

    def __call__(self, coalitions):
        return (coalitions * self.costs).max(axis=1)

    def shapley(self):
        """All who need a stretch of runway share its cost equally."""
        order = np.argsort(self.costs)
        stretches = np.diff(self.costs[order], prepend=0.0)
        values = np.empty(self.n_players)
        values[order] = np.cumsum(stretches / np.arange(self.n_players, 0, -1))
        return values


class Gloves:
    """Pairs of a left and a right glove; the shoes game of Castro et al. 2009 is the same with as many of each."""

    def __init__(self, left, right):
        self.left, self.right = left, right
        self.n_players = left + right

    def __call__(self, coalitions):
        return np.minimum(coalitions[:, : self.left].sum(axis=1), coalitions[:, self.left :].sum(axis=1)).astype(float)

    def shapley(self):
        """A left glove adds a pair if it finds more right gloves than left ones before it."""

        def value(same):
            others = self.n_players - 1
            return np.mean(
                [
                    sum(hypergeom.pmf(i, others, same - 1, size) for i in range(size + 1) if i < size - i)
                    for size in range(others + 1)
                ]
            )

        return np.array([value(self.left)] * self.left + [value(self.right)] * self.right)


class WeightedVoting:
    """A coalition wins with at least `quota` votes."""

    def __init__(self, votes, quota):
        self.votes, self.quota = np.asarray(votes), quota
        self.n_players = len(self.votes)

    def __call__(self, coalitions):
        return (coalitions @ self.votes >= self.quota).astype(float)

    def shapley(self):
        """Shapley-Shubik index from the generating function of coalitions by size and votes (Mann, Shapley 1962)."""
        n = self.n_players
        values = []
        for player in range(n):
            # count[s][w]: coalitions of the others with s members and w votes, as Python integers
            total = int(self.votes.sum())
            count = [[0] * (total + 1) for _ in range(n)]
            count[0][0] = 1
            for other in range(n):
                if other != player:
                    votes = int(self.votes[other])
                    for size in range(n - 2, -1, -1):
                        for weight in range(total - votes, -1, -1):
                            count[size + 1][weight + votes] += count[size][weight]
            pivotal = range(max(0, self.quota - int(self.votes[player])), self.quota)
            values.append(sum(sum(count[s][w] for w in pivotal) / (n * math.comb(n - 1, s)) for s in range(n)))
        return np.array(values)


class SymmetricVoting(WeightedVoting):
    """Simple majority."""

    def __init__(self, n_players):
        super().__init__([1] * n_players, n_players // 2 + 1)

    def shapley(self):
        return np.full(self.n_players, 1 / self.n_players)


class SpanningTree:
    """Cost of the minimum spanning tree of a source and players on a circle (Castro et al. 2009, 4.5).

    Neighbours on the circle are 1 apart, each player is n + 1 from the source: a coalition pays n + 1 for each arc that
    it falls into, and 1 for each further member.
    """

    def __init__(self, n_players=100):
        self.n_players = n_players

    def __call__(self, coalitions):
        arcs = (coalitions & ~np.roll(coalitions, 1, axis=1)).sum(axis=1)
        arcs[coalitions.all(axis=1)] = 1
        return coalitions.sum(axis=1) + arcs * float(self.n_players)

    def shapley(self):
        """By symmetry all pay the same share of the n + 1 + (n - 1) that the whole tree costs."""
        return np.full(self.n_players, 2.0)


class Quadratic:
    """Linear in membership, plus interactions of pairs (symmetric, zero diagonal)."""

    def __init__(self, linear, interactions, constant=0.0):
        self.linear, self.interactions, self.constant = linear, interactions, constant
        self.n_players = len(linear)

    @classmethod
    def random(cls, n_players, seed=0):
        rng = np.random.default_rng(seed)
        upper = np.triu(rng.normal(size=(n_players, n_players)), 1)
        return cls(rng.normal(size=n_players), upper + upper.T, constant=rng.normal())

    def __call__(self, coalitions):
        x = coalitions.astype(float)
        # no BLAS, so that a utility does not depend on the rest of the batch
        return self.constant + (x * self.linear).sum(axis=1) + 0.5 * np.einsum("mi,ij,mj->m", x, self.interactions, x)

    def shapley(self):
        """Each pair shares its interaction equally."""
        return self.linear + 0.5 * self.interactions.sum(axis=1)


class Table:
    """Any game at all, from the utilities of its 2^n coalitions; player i is in number c if bit i of c is set."""

    def __init__(self, utilities):
        self.utilities = np.asarray(utilities, dtype=float)
        self.n_players = len(self.utilities).bit_length() - 1

    def __call__(self, coalitions):
        return self.utilities[coalitions @ (1 << np.arange(self.n_players))]


class Saturating:
    """Utility that soon stops growing, as that of a model does: truncation pays, and biases."""

    def __init__(self, strengths):
        self.strengths = np.asarray(strengths, dtype=float)
        self.n_players = len(self.strengths)

    def __call__(self, coalitions):
        # summed player by player, so that a utility does not depend on the rest of the batch
        return 1 - np.exp(-(coalitions * self.strengths).sum(axis=1))

    def shapley(self):
        """Mean over q of the contribution to those who join with probability q, by quadrature that is exact here."""
        nodes, weights = np.polynomial.legendre.leggauss(self.n_players // 2 + 1)
        q = (nodes[:, None] + 1) / 2
        remains = np.exp(-self.strengths)
        others = np.prod(1 - q + q * remains, axis=1, keepdims=True) / (1 - q + q * remains)
        return (1 - remains) * (weights / 2 @ others)


class Recorded:
    """A game that notes what it is asked for."""

    def __init__(self, game):
        self.game, self.n_players, self.calls = game, game.n_players, []

    def __call__(self, coalitions):
        assert coalitions.dtype == np.bool_
        self.calls.append(coalitions)
        return self.game(coalitions)

    def batch_sizes(self):
        return [len(call) for call in self.calls]

    def evaluations(self):
        return sum(self.batch_sizes())


KNOWN_GAMES = [
    Airport([1, 1, 2, 3, 5, 8, 8, 9, 10, 10]),
    Gloves(2, 3),
    Gloves(1, 6),
    Gloves(5, 5),
    SymmetricVoting(9),
    WeightedVoting([4, 3, 3, 2, 1, 1, 1], quota=8),
    SpanningTree(8),
    Quadratic.random(9),
]
