r"""Truncated Monte Carlo (TMC) Shapley: permutations that stop once the prefix is as good as everyone.

As in `baselines.permutation`, the players join in a uniformly random order and the value of a player is the mean of its
marginal contributions. In data valuation most of a permutation is spent where the model is already as good as it gets
and marginal contributions are tiny. So a permutation is truncated as soon as the utility of the prefix :math:`P` is
close to that of all players (Ghorbani, Zou: *Data Shapley: Equitable Valuation of Data for Machine Learning*, ICML
2019, arXiv 1904.02868, Algorithm 1),

.. math:: |v(N) - v(P)| < \tau \, |v(N) - v(\emptyset)|,

and those still to come get a marginal contribution of zero. The comparison is strict: with a tolerance :math:`\tau = 0`
nothing is truncated, and the result equals that of `permutation_shapley` with the same seed to the last bit.

**Bias**: truncation replaces marginal contributions by zeros, and no number of permutations makes that good. The
sum of what is cut off a permutation is smaller than :math:`\tau |v(N) - v(\emptyset)|`, so the values add up to
:math:`v(N) - v(\emptyset)` within that; but contributions of opposite signs that cancel in the sum are cut off too, so
a single value may be off by more. A utility that comes close to :math:`v(N)` by chance, or rises above it and
passes it on the way, is truncated there as well. `parameters["truncated"]` is the fraction of marginal contributions
that were cut off.

**Variance**: as for permutations, with the truncated marginal contributions. Standard errors know nothing of the bias,
and from few permutations they are too small for players whose contribution is nearly always cut off.

**Cost**: 2 evaluated coalitions (empty, grand), and one for each prefix up to and including that at which a permutation
stops, at most :math:`n - 1`. Where a game is much faster on many coalitions than on few, and permutations are few,
`lookahead` evaluates several prefixes of each at once, some of them in vain; the values are the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from baselines.arguments import real_number, whole_number
from baselines.convergence import Estimate, StoppingRule
from baselines.draws import Moments, Rng, random_permutations
from baselines.game import Game, evaluate, player_count
from baselines.monte_carlo import ends, estimate_by_draws, from_moments
from baselines.permutation import permutation_limits
from baselines.valuation import Valuation

__all__ = ["tmc_shapley"]

_LANE_CELLS = 2**24  # lanes x players: bounds the memory of the permutations under way to some 300 MB


def tmc_shapley(
    game: Game,
    n_permutations: int | None = None,
    *,
    tolerance: float = 0.01,
    budget: int | None = None,
    stop: StoppingRule | None = None,
    rng: Rng = None,
    batch_size: int = 4096,
    lookahead: int = 1,
    progress: bool = False,
) -> Valuation:
    """Monte Carlo estimate of Shapley values from truncated random permutations.

    Parameters
    ----------
    game : Game
        The game of n players.
    n_permutations : int, optional
        Number of permutations. Give at least one of this, `budget` and `stop`; not the first two together.
    tolerance : float
        A permutation stops when the utility of the prefix differs from that of all players by less than `tolerance`
        times the difference between all players and none; in [0, 1], and 0 never truncates.
    budget : int, optional
        Most coalitions to evaluate, the empty and the grand coalition included. A permutation is started if what its
        predecessors left over pays for all of it, n - 1 coalitions, wherever it will be truncated; so no evaluation
        is spent on a permutation that is then left out, and whether a permutation counts does not depend on its cost.
    stop : StoppingRule, optional
        When to stop before that; see `baselines.convergence`.
    rng : int, SeedSequence, Generator or None
        Seed; see `baselines.draws.random_permutations`. The result does not depend on `batch_size`.
    batch_size : int
        Most coalitions that the game is asked for at a time.
    lookahead : int
        Prefixes of a permutation that are evaluated at a time. What a permutation tells does not depend on it, only
        how many coalitions are evaluated for it.
    progress : bool
        Whether to show a progress bar, in evaluated coalitions, on stderr.

    Returns
    -------
    Valuation
        `values` and `stderr` in units of the utility (`stderr` and `halves` are None after a single permutation);
        `parameters["truncated"]` is the fraction of marginal contributions that were set to zero.

    Raises
    ------
    TypeError
        If a number is no integer, or `rng` is no seed.
    ValueError
        If `tolerance` is not in [0, 1], none of `n_permutations`, `budget` and `stop` is given, or the first two
        together, a number is too small, or the game returns something that is not a finite utility for each coalition.

    Warns
    -----
    InterruptedEstimateWarning
        If it is interrupted, by Ctrl-C, and returns the draws made so far; see `baselines.monte_carlo`.

    References
    ----------
    Ghorbani, Zou, Data Shapley: Equitable Valuation of Data for Machine Learning, ICML 2019, arXiv 1904.02868,
    Algorithm 1.
    """
    started = perf_counter()
    n = player_count(game)
    whole_number("batch_size", batch_size)
    whole_number("lookahead", lookahead)
    if not 0 <= real_number("tolerance", tolerance) <= 1:  # NaN fails as well
        raise ValueError(
            f"tolerance must be in [0, 1], got {tolerance}: it is a fraction of the difference between the utilities "
            "of all players and of none, so that above 1 all permutations would stop before they start"
        )
    limits = permutation_limits(n_permutations, budget, stop, n_players=n)
    if n > 1:  # truncated, a permutation may cost a single coalition, so that more may be paid for
        limits = replace(limits, draws=n_permutations or limits.evaluations - limits.fixed_cost)
    estimator = _Walks(game, rng, tolerance, limits.evaluations, batch_size, min(lookahead, batch_size))
    return estimate_by_draws(
        "tmc_shapley",
        estimator,
        started=started,
        limits=limits,
        stop=stop,
        progress=progress,
        parameters=lambda draws: {
            "n_permutations": draws,
            "budget": budget,
            "tolerance": float(tolerance),
            "truncated": estimator.truncated(),
        },
    )


@dataclass(frozen=True)
class _Walk:
    """A finished permutation: who joined before it stopped, and the utilities on the way."""

    players: NDArray[np.intp]  # [t], in the order in which they joined
    utilities: NDArray[np.float64]  # [t + 1], from the empty coalition on
    cost: int  # coalitions evaluated


@dataclass(frozen=True)
class _Done:
    """What the finished permutations add up to: one record, so that an interrupt finds them whole."""

    moments: Moments
    evaluations: int
    skipped: int  # marginal contributions that were set to zero


class _Walks:
    """Walks along permutations in lock-step, and the moments of the marginal contributions on the way."""

    least_draws = 1

    def __init__(
        self, game: Game, rng: Rng, tolerance: float, most_evaluations: float, batch_size: int, lookahead: int
    ) -> None:
        self._game = game
        self._permutations = random_permutations(rng, game.n_players)
        self._most_evaluations = most_evaluations
        self._batch_size = batch_size
        self._lookahead = lookahead
        self._empty, self._grand = ends(game)
        self._close = tolerance * abs(self._grand - self._empty)
        self._done = _Done(Moments(game.n_players), evaluations=2, skipped=0)

    def extend(self, n_draws: int) -> Iterator[int]:
        """Walk along so many permutations, or as many as are paid for."""
        n = self._game.n_players
        for walk in self._walk(n_draws) if n > 1 else self._single(n_draws):
            draw = np.zeros(n)
            draw[walk.players] = np.diff(walk.utilities)
            done = self._done
            self._done = _Done(
                done.moments.with_draw(draw), done.evaluations + walk.cost, done.skipped + n - len(walk.players)
            )
            yield walk.cost

    def estimate(self) -> Estimate:
        """Return the mean of the walks."""
        return from_moments(self._done.moments, self._done.evaluations)

    def truncated(self) -> float:
        """Fraction of the marginal contributions that were set to zero."""
        return self._done.skipped / (self._done.moments.count * self._game.n_players)

    def _single(self, n_draws: int) -> Iterator[_Walk]:
        for permutation in islice(self._permutations, n_draws):
            yield _Walk(permutation, np.array([self._empty, self._grand]), cost=0)

    def _walk(self, n_draws: int) -> Iterator[_Walk]:
        """Walks along further permutations, in the order in which they were drawn.

        Each lane carries one permutation and goes `lookahead` players further at each step; all lanes make up one call
        of the game. When a permutation stops, the next one takes over its lane, so that the calls stay full to the end.
        """
        n, lookahead = self._game.n_players, self._lookahead
        full_cost = n - 1
        n_lanes = max(1, min(n_draws, self._batch_size // lookahead, _LANE_CELLS // (n * lookahead)))
        under_way = np.zeros(n_lanes, dtype=np.bool_)
        numbers = np.zeros(n_lanes, dtype=np.intp)  # of the permutations, in the order in which they are drawn
        orders = np.empty((n_lanes, n), dtype=np.intp)
        ranks = np.empty((n_lanes, n), dtype=np.intp)  # the place of each player in the lane's order
        lengths = np.zeros(n_lanes, dtype=np.intp)  # of the longest prefix evaluated
        utilities = np.empty((n_lanes, n + 1))
        utilities[:, 0], utilities[:, n] = self._empty, self._grand

        finished: dict[int, _Walk] = {}
        started = yielded = 0
        reserved = self._done.evaluations  # those made, and those that permutations under way may still need
        while True:
            for lane in np.flatnonzero(~under_way):
                if started >= n_draws or reserved + full_cost > self._most_evaluations:
                    break
                under_way[lane], numbers[lane], lengths[lane] = True, started, 0
                orders[lane] = next(self._permutations)
                ranks[lane, orders[lane]] = np.arange(n)
                started += 1
                reserved += full_cost
            active = np.flatnonzero(under_way)
            if active.size == 0:
                return

            reached = lengths[active, None] + np.arange(1, lookahead + 1)  # prefix lengths, [active, lookahead]
            real = reached <= full_cost
            which, ahead = np.nonzero(real)
            prefixes = ranks[active[which]] < reached[which, ahead, None]
            utilities[active[which], reached[which, ahead]] = evaluate(self._game, prefixes)

            gaps = np.abs(self._grand - utilities[active[:, None], np.minimum(reached, full_cost)])
            close = real & (gaps < self._close)
            truncated = close.any(axis=1)
            stops = reached[np.arange(active.size), close.argmax(axis=1)]
            lengths[active] = np.minimum(reached[:, -1], full_cost)
            ended = truncated | (lengths[active] == full_cost)
            for lane, cut, stop in zip(active[ended], truncated[ended], stops[ended], strict=True):
                cost = int(lengths[lane])
                joined = int(stop) if cut else n  # the last one needs no evaluation, it completes the grand coalition
                finished[int(numbers[lane])] = _Walk(
                    orders[lane, :joined].copy(), utilities[lane, : joined + 1].copy(), cost
                )
                reserved -= full_cost - cost
            under_way[active[ended]] = False
            while yielded in finished:
                yield finished.pop(yielded)
                yielded += 1
