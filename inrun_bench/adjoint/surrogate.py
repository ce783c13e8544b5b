r"""A surrogate of the trajectory game made of Taylor expansions along the diagonal, with known Shapley values.

**Mathematics.** Around the point s 1 of the diagonal, with :math:`G(s) = \nabla U(s 1)`, a coalition S of size
:math:`k = s n` is worth about :math:`U(s 1) + \langle G(s), 1_S - s 1 \rangle`, so let

.. math::
    h(S) = c(|S|) + \sum_{i \in S} G_i(|S| / n), \qquad
    c(k) = U(\tfrac{k}{n} 1) - \tfrac{k}{n} \sum_i G_i(\tfrac{k}{n}),

with U and G interpolated in s between K differentiated runs: G by the polynomial through the nodes, U by the one that
also has the slopes :math:`\sum_i G_i` (Hermite). A constant G would make h additive: its marginal contributions would
be constants, which explain nothing of how a game varies. What h follows is the level of U by size, and which players a
coalition holds, by size.

A game of that form has its Shapley values in closed form. A coalition T of size k without i is joined by i, and the
others in it move from :math:`G(k/n)` to :math:`G((k+1)/n)`, each of the others being in T with chance k / (n - 1):

.. math:: \phi_i(h) = \frac1n \sum_{k=0}^{n-1} \Big[ c(k+1) - c(k) + G_i(\tfrac{k+1}{n})
          + \frac{k}{n-1} \sum_{j \ne i} \big( G_j(\tfrac{k+1}{n}) - G_j(\tfrac{k}{n}) \big) \Big].

**Cost**: K differentiated runs; then :math:`O(n)` arithmetic a coalition. A table of [n + 1, n] numbers is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BarycentricInterpolator, KroghInterpolator

from inrun_bench.adjoint.diagonal import gauss_legendre
from inrun_bench.adjoint.relaxed_game import RelaxedGame

__all__ = ["SizeDependentAdditiveGame", "taylor_surrogate"]


@dataclass(frozen=True, eq=False)
class SizeDependentAdditiveGame:
    """The game worth ``level[|S|] + sum of shares[|S|, i] over i in S``; a :class:`baselines.Game`.

    Attributes
    ----------
    level : float64 [n + 1]
        By size.
    shares : float64 [n + 1, n]
        By size and player.
    """

    level: NDArray[np.float64]
    shares: NDArray[np.float64]

    @property
    def n_players(self) -> int:
        """Number of players n."""
        return int(self.shares.shape[1])

    def __call__(self, coalitions: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the utility, float64 [m], of each coalition of bool [m, n]."""
        sizes = np.count_nonzero(coalitions, axis=1)
        utilities: NDArray[np.float64] = self.level[sizes] + np.sum(self.shares[sizes], axis=1, where=coalitions)
        return utilities

    def shapley(self) -> NDArray[np.float64]:
        """Return the Shapley values, float64 [n]."""
        n = self.n_players
        growth = np.diff(self.shares, axis=0)  # [n, n]
        of_others = growth.sum(axis=1, keepdims=True) - growth
        chance = np.arange(n)[:, None] / max(1, n - 1)
        joined = np.diff(self.level)[:, None] + self.shares[1:] + chance * of_others
        values: NDArray[np.float64] = joined.mean(axis=0)
        return values


def taylor_surrogate(game: RelaxedGame, points: int) -> SizeDependentAdditiveGame:
    """Return the surrogate from differentiated runs at the `points` Gauss-Legendre nodes of the diagonal."""
    nodes, areas = gauss_legendre(points)
    runs = game.along_diagonal(nodes)
    sizes = np.arange(game.n_players + 1) / game.n_players
    # barycentric weights of Legendre nodes (Wang, Huybrechs, Vandewalle 2014, arXiv 1202.0154); scipy would compute its
    # own in a random order, and so round them differently each time
    barycentric = (-1.0) ** np.arange(points) * np.sqrt(nodes * (1 - nodes) * areas)
    shares = BarycentricInterpolator(nodes, runs.gradients, wi=barycentric)(sizes)
    worths_and_slopes = np.stack([runs.utilities, runs.gradients.sum(axis=1)], axis=1).ravel()
    level = KroghInterpolator(np.repeat(nodes, 2), worths_and_slopes)(sizes) - sizes * shares.sum(axis=1)
    return SizeDependentAdditiveGame(level, shares)
