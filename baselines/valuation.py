"""What an estimator returns: the values, how sure they are, and what they cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

__all__ = ["Valuation"]


@dataclass(frozen=True, eq=False, repr=False)
class Valuation:
    """Values of the players of a game.

    Attributes
    ----------
    values : float64 [n]
        One value a player, in units of the utility; positive if the player helps.
    stderr : float64 [n] or None
        Standard error of each value; None where the estimator has none (exact methods, or a single draw).
    evaluations : int
        Number of coalitions evaluated.
    seconds : float
        Wall-clock time.
    method : str
        Name of the estimator.
    parameters : Mapping
        What the estimator was told, and what it has to report.
    halves : float64 [2, n] or None
        What a Monte Carlo estimator makes of the even and of the odd draws: two independent estimates. None where half
        of the draws are too few for one.
    """

    values: NDArray[np.float64]
    stderr: NDArray[np.float64] | None
    evaluations: int
    seconds: float
    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    halves: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 1:
            raise ValueError(f"values must have shape (n,), got {self.values.shape}")
        n = len(self.values)
        if self.stderr is not None and self.stderr.shape != (n,):
            raise ValueError(f"stderr must have the shape of values, ({n},), got {self.stderr.shape}")
        if self.halves is not None and self.halves.shape != (2, n):
            raise ValueError(f"halves must have shape (2, {n}), got {self.halves.shape}")

    def __repr__(self) -> str:
        return (
            f"Valuation({self.method}: {len(self.values)} players in [{self.values.min():.3g}, "
            f"{self.values.max():.3g}], {self.evaluations} evaluations, {self.seconds:.3g} s)"
        )

    def reliability(self) -> float:
        """Spearman correlation between the two halves of the draws.

        It is the noise ceiling of half the draws: no method can be expected to agree better than this with an estimate
        of half the size, however right it is. The estimate from all draws is more reliable than that.

        Returns
        -------
        float
            Rank correlation, between -1 and 1; equal values share their mean rank.

        Raises
        ------
        ValueError
            If there are no halves, or one of them is constant, so that it ranks nobody.
        """
        if self.halves is None:
            raise ValueError(
                f"{self.method} has no halves to correlate: they come from a Monte Carlo estimator with draws enough "
                "for two estimates"
            )
        if not np.ptp(self.halves, axis=1).all():
            raise ValueError(f"the values of all {len(self.values)} players are equal in one half: there is no ranking")
        return rank_correlation(*self.halves)


def rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Spearman correlation of two rankings (float64 [n] each, neither constant); equal values share their mean rank."""
    ranks = rankdata([a, b], axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    spread = np.linalg.norm(ranks, axis=1)
    return float(ranks[0] @ ranks[1] / (spread[0] * spread[1]))
