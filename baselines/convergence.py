r"""When a Monte Carlo estimate is good enough: one story for all estimators.

Every Monte Carlo estimator here grows by *draws*: independent, numbered pieces of work of the same kind (a permutation,
an antithetic pair, a coalition with its complement). At any time it can say how good it is:

- **standard errors** from the spread of the draws, one a player;
- **halves**: the estimates from the even and from the odd draws. They are independent, so their rank correlation
  (split-half reliability) tells how much of the ranking would come back in another run of half the size;
- **Gelman-Rubin**, of estimators that are means of draws, from ten chains (draw number modulo ten):
  :math:`\hat R = \sqrt{(N - 1) / N + B / (N W)}`, with :math:`N` draws a chain, :math:`W` the variance within chains
  and :math:`B / N` that of the chains' means (Gelman, Rubin: *Inference from Iterative Simulation Using Multiple
  Sequences*, Statistical Science 7, 1992). Libraries of data valuation stop at :math:`\hat R < 1.05`; as the draws are
  independent, :math:`\hat R` tends to 1 with the mere number of draws, however noisy the values still are. It is here
  for comparison; reliability and standard errors are what to trust.

A stopping rule looks at these and says whether to stop. Rules combine: ``stderr_below(1e-3) | budget(100_000)`` stops
at whichever comes first, ``rank_stability(0.99) & stderr_below(1e-3)`` when both hold. Rules are asked as
soon as the draws make an estimate, then each time these have grown by a quarter, and at the end: at numbers of draws
that depend on nothing else, so that the result stays independent of batch sizes. The rules here wait for ten draws,
since the spread of fewer says little. Stopping at the first good look favours lucky looks a little; that rules are
asked rarely keeps this small. A rule that never holds never stops: where nothing else limits an estimate, add ``|
budget(...)``.

Any callable from :class:`Estimate` to bool is a rule as well, and one that always says False can record how an
estimate converges.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from baselines.arguments import real_number, whole_number
from baselines.draws import LEAST_DRAWS_OF_CHAINS
from baselines.valuation import rank_correlation

__all__ = [
    "LEAST_DRAWS",
    "Estimate",
    "Rule",
    "StoppingRule",
    "allowance",
    "budget",
    "gelman_rubin_below",
    "name_of",
    "rank_stability",
    "stderr_below",
]


LEAST_DRAWS = 10
"""Draws below which no rule here looks at how they spread."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """What a Monte Carlo estimator knows after some draws.

    Attributes
    ----------
    draws, evaluations : int
        Independent draws made, and coalitions evaluated in all.
    values : float64 [n]
        The estimate.
    stderr : float64 [n] or None
        Standard errors; None after a single draw.
    halves : float64 [2, n] or None
        Estimates from the even and from the odd draws; None where a half does not make an estimate.
    gelman_rubin : float64 [n] or None
        Potential scale reduction of each value; None with fewer than 20 draws, or where the values are no mean of
        draws.
    """

    draws: int
    evaluations: int
    values: NDArray[np.float64]
    stderr: NDArray[np.float64] | None
    halves: NDArray[np.float64] | None
    gelman_rubin: NDArray[np.float64] | None


StoppingRule: TypeAlias = Callable[[Estimate], bool]


@dataclass(frozen=True)
class Rule:
    """A stopping rule that combines with others by ``|`` and ``&``.

    Attributes
    ----------
    text : str
        How it reads; kept in the parameters of the valuation.
    holds : callable
        Whether to stop, from an :class:`Estimate`.
    most_evaluations : float
        Coalitions beyond which the rule holds whatever has been seen; an estimator never starts a draw that would
        exceed it.
    """

    text: str
    holds: StoppingRule
    most_evaluations: float = math.inf

    def __call__(self, estimate: Estimate) -> bool:
        """Return whether to stop."""
        return self.holds(estimate)

    def __or__(self, other: StoppingRule) -> "Rule":
        return Rule(
            f"({self} | {name_of(other)})",
            lambda estimate: self(estimate) or other(estimate),
            min(self.most_evaluations, allowance(other)),
        )

    def __and__(self, other: StoppingRule) -> "Rule":
        return Rule(
            f"({self} & {name_of(other)})",
            lambda estimate: self(estimate) and other(estimate),
            max(self.most_evaluations, allowance(other)),
        )

    def __str__(self) -> str:
        return self.text


def allowance(rule: StoppingRule | None) -> float:
    """Coalitions beyond which a rule holds whatever has been seen; infinity for rules that do not count them."""
    most: float = getattr(rule, "most_evaluations", math.inf)
    return most


def name_of(rule: StoppingRule) -> str:
    """How a rule reads: the text of a :class:`Rule`, the name of a function."""
    return str(rule) if isinstance(rule, Rule) else getattr(rule, "__qualname__", type(rule).__name__)


def budget(evaluations: int) -> Rule:
    """Stop before more than `evaluations` coalitions are evaluated, the empty and the grand coalition included.

    Parameters
    ----------
    evaluations : int
        Most coalitions to evaluate.

    Returns
    -------
    Rule

    Raises
    ------
    TypeError, ValueError
        If it is no integer of at least 1.
    """
    most = whole_number("evaluations", evaluations)
    return Rule(f"budget({most})", lambda estimate: estimate.evaluations >= most, most)


def stderr_below(limit: float, share: float = 1.0) -> Rule:
    """Stop when the standard errors of a share of the players are below a limit.

    Parameters
    ----------
    limit : float
        In units of the utility; positive.
    share : float
        Share of the players for whom it must hold, in (0, 1]; 1 for all, 0.5 for the better half.

    Returns
    -------
    Rule

    Raises
    ------
    TypeError, ValueError
        If a number is none, or out of range.
    """
    if not real_number("limit", limit) > 0:
        raise ValueError(f"limit must be positive, in units of the utility, got {limit!r}")
    if not 0 < real_number("share", share) <= 1:
        raise ValueError(f"share must be in (0, 1], got {share!r}")

    def holds(estimate: Estimate) -> bool:
        if estimate.stderr is None or estimate.draws < LEAST_DRAWS:
            return False
        return float(np.mean(estimate.stderr < limit)) >= share

    return Rule(f"stderr_below({limit:g}, share={share:g})", holds)


def rank_stability(level: float) -> Rule:
    """Stop when the two halves of the draws rank the players alike.

    Parameters
    ----------
    level : float
        Least Spearman correlation of the halves, in (0, 1); 0.99 is what reference values ask for.

    Returns
    -------
    Rule

    Raises
    ------
    TypeError, ValueError
        If `level` is no number, or out of range.
    """
    if not 0 < real_number("level", level) < 1:
        raise ValueError(f"level must be in (0, 1), got {level!r}")

    def holds(estimate: Estimate) -> bool:
        if estimate.halves is None or estimate.draws < LEAST_DRAWS:
            return False
        if (np.ptp(estimate.halves, axis=1) == 0).any():  # a constant ranks nobody
            return False
        return rank_correlation(*estimate.halves) >= level

    return Rule(f"rank_stability({level:g})", holds)


def gelman_rubin_below(level: float) -> Rule:
    """Stop when the Gelman-Rubin statistic of every player is below a level; see this module's warning about it.

    Parameters
    ----------
    level : float
        Above 1; 1.05 is customary.

    Returns
    -------
    Rule
        It raises ValueError when asked about an estimator whose values are no mean of draws.

    Raises
    ------
    TypeError, ValueError
        If `level` is no number, or not above 1.
    """
    if not real_number("level", level) > 1:
        raise ValueError(f"level must be above 1, got {level!r}")

    def holds(estimate: Estimate) -> bool:
        if estimate.gelman_rubin is None:
            if estimate.draws >= LEAST_DRAWS_OF_CHAINS:
                raise ValueError("gelman_rubin_below needs values that are means of draws; use rank_stability here")
            return False
        return bool((estimate.gelman_rubin < level).all())

    return Rule(f"gelman_rubin_below({level:g})", holds)
