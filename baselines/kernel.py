r"""Shapley values as a weighted least-squares fit: KernelSHAP, with paired and leverage-score sampling.

The Shapley values are the additive game closest to :math:`v` among those with the right total (Charnes, Golany, Keane,
Rousseau 1988; Lundberg, Lee: *A Unified Approach to Interpreting Model Predictions*, NeurIPS 2017, arXiv 1705.07874,
Theorem 2)

.. math:: \phi = \arg\min_{\sum_i \phi_i = v(N) - v(\emptyset)} \sum_{0 < |S| < n} \mu(S)
          \Big(v(S) - v(\emptyset) - \sum_{i \in S} \phi_i\Big)^2, \qquad \mu(S) = \frac{n - 1}{\binom{n}{s} s (n - s)}.

Here the sum is over a random sample of coalitions, each with its complement (Covert, Lee: *Improving KernelSHAP*,
AISTATS 2021, arXiv 2012.01536), reweighted by the chance of being sampled. Two ways to sample:

- ``"leverage"``: by the leverage scores of the rows of the problem. Those of the coalitions of one size add up to the
  same for each size, so all sizes are equally likely (Musco, Witter: *Provably Accurate Shapley Value Estimation via
  Leverage Score Sampling*, ICLR 2025, arXiv 2410.01917). Sizes come in rounds, each size equally often. Weights are
  :math:`1 / (s (n - s))`.
- ``"kernel"``: by :math:`\mu` itself, the original; small and large coalitions dominate, and weights are equal.

For a pair the two residuals combine into one, of :math:`(v(S) - v(N \setminus S)) / 2`: whatever is even in
complementation cancels, and with the total split evenly the fit is a regression on centred membership,
:math:`x_i = \mathbb{1}[i \in S] - s/n`, in the space of values that sum to zero.

Membership has the mean :math:`s/n` over all coalitions of a size, so whatever the size alone explains may be taken off
the targets without changing what is estimated. ``"leverage"`` does: its fit has an intercept for each size. A model's
utility is far from linear in the number of samples, and on such games this is most of the error: on logistic regression
with 60 samples, 2500 pairs, it falls from 0.9 to 0.36 standard deviations of the values.

**Bias**: a ratio estimator's, of order :math:`1/m` in the number of pairs, beside an error of order :math:`m^{-1/2}`;
games that are additive plus anything even in complementation are exact.

**Variance**: :math:`A^{-1} (\sum w^2 r^2 x x^\top / (1 - h)) A^{-1}`, with :math:`A = \sum w x x^\top`, residuals
:math:`r` and leverages :math:`h = w x^\top A^{-1} x`, plus one over the pairs of its size where sizes have intercepts
(White's heteroskedasticity-consistent "sandwich" in the form HC2 of MacKinnon, White, Journal of Econometrics 29, 1985,
which makes up for residuals being smaller than errors).

**Cost**: 2 evaluated coalitions, and 2 for each pair, at least :math:`3 n` pairs and 20; and some :math:`3 m n^2 + n^3`
operations.
"""

from time import perf_counter
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve
from scipy.linalg.lapack import dpocon, dpotrf

from baselines.arguments import whole_number
from baselines.convergence import StoppingRule
from baselines.draws import ROWS_AT_A_TIME, Rng, complementary_pairs
from baselines.game import Game, player_count
from baselines.monte_carlo import SampledCoalitions, UndeterminedError, draw_limits, ends, estimate_by_draws
from baselines.valuation import Valuation

__all__ = ["kernel_shapley"]

Sampling = Literal["leverage", "kernel"]

_LEAST_RCOND = 1e-10  # reciprocal condition number below which the problem counts as singular
_LEAST_FREEDOM = 1e-6  # of a residual: one minus the leverage of its row


def kernel_shapley(
    game: Game,
    *,
    budget: int | None = None,
    stop: StoppingRule | None = None,
    sampling: Sampling = "leverage",
    rng: Rng = None,
    batch_size: int = 4096,
    progress: bool = False,
) -> Valuation:
    """Estimate of Shapley values by weighted least squares on pairs of complementary coalitions.

    Parameters
    ----------
    game : Game
        The game of n players, at least 2.
    budget : int, optional
        Most coalitions to evaluate, the empty and the grand coalition included; at least 2 + 6 n, and 42.
    stop : StoppingRule, optional
        When to stop before the budget is spent; see `baselines.convergence`.
    sampling : {"leverage", "kernel"}
        How sizes are drawn: evenly, with an intercept for each in the fit, or by the Shapley kernel, without.
    rng : int, SeedSequence, Generator or None
        Seed; see `baselines.draws.random_permutations`. The result does not depend on `batch_size`.
    batch_size : int
        Most coalitions that the game is asked for at a time.
    progress : bool
        Whether to show a progress bar, in evaluated coalitions, on stderr.

    Returns
    -------
    Valuation
        `values` and `stderr` in units of the utility; values add up to the difference between all players and none.

    Raises
    ------
    TypeError, ValueError
        If a number is no integer or too small, `sampling` is unknown, there is one player alone, the game returns
        something that is not a finite utility for each coalition, or the sample happens not to determine the values
        (which is rare, and then more pairs are needed).

    Warns
    -----
    InterruptedEstimateWarning
        If it is interrupted, by Ctrl-C, and returns the draws made so far; see `baselines.monte_carlo`.

    References
    ----------
    Lundberg, Lee, NeurIPS 2017, arXiv 1705.07874. Covert, Lee, AISTATS 2021, arXiv 2012.01536. Musco, Witter, ICLR
    2025, arXiv 2410.01917.
    """
    started = perf_counter()
    n = player_count(game)
    whole_number("n_players of a game with complementary coalitions", n, minimum=2)
    whole_number("batch_size", batch_size)
    if sampling not in get_args(Sampling):
        raise ValueError(f"sampling must be one of {', '.join(map(repr, get_args(Sampling)))}, got {sampling!r}")
    least_draws = max(3 * n, 20)  # with few players, enough to have met the few coalitions that there are
    limits = draw_limits(budget, stop, fixed_cost=2, draw_cost=2, least_draws=least_draws)
    chance_of_size = None
    if sampling == "kernel":
        sizes = np.arange(1, n // 2 + 1)
        chance_of_size = np.where(2 * sizes == n, 0.5, 1.0) / (sizes * (n - sizes))  # of both sizes of a pair
        chance_of_size /= chance_of_size.sum()
    pairs = complementary_pairs(rng, n, chance_of_size)
    empty, grand = ends(game)

    def formula(
        members: NDArray[np.bool_], utilities: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        sizes = np.count_nonzero(members, axis=1)
        targets = (utilities[:, 0] - utilities[:, 1]) / 2 + (grand - empty) * (0.5 - sizes / n)
        weights = np.ones(len(members))
        if sampling == "leverage":  # rounds hold the size n/2 as often as others, though it makes half as many pairs
            weights = np.where(2 * sizes == n, 0.5, 1.0) / (sizes * (n - sizes))
        deviations, stderr = _fit(members, sizes, targets, weights, stratified=sampling == "leverage")
        return (grand - empty) / n + deviations, stderr

    return estimate_by_draws(
        "kernel_shapley",
        SampledCoalitions(
            game, pairs, formula, fixed_cost=limits.fixed_cost, least_draws=least_draws, batch_size=batch_size
        ),
        started=started,
        limits=limits,
        stop=stop,
        progress=progress,
        parameters=lambda draws: {"budget": budget, "pairs": draws, "sampling": sampling},
    )


def _fit(
    members: NDArray[np.bool_],
    sizes: NDArray[np.intp],
    targets: NDArray[np.float64],
    weights: NDArray[np.float64],
    *,
    stratified: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Least-squares deviations from the mean value (they sum to zero), and their standard errors (float64 [n] each).

    If `stratified`, each size has an intercept of its own: means over the size are taken off membership and targets.
    """
    m, n = members.shape
    centres = np.tile(np.arange(n + 1)[:, None] / n, n)  # [size, player]: mean membership of all coalitions of a size
    levels, shares = np.zeros(n + 1), np.zeros(n + 1)  # of a size: mean target, and what it takes of the freedom
    for size in np.unique(sizes) if stratified else []:
        drawn = np.flatnonzero(sizes == size)
        centres[size], levels[size], shares[size] = members[drawn].mean(axis=0), targets[drawn].mean(), 1 / len(drawn)
    parts = [slice(first, first + ROWS_AT_A_TIME) for first in range(0, m, ROWS_AT_A_TIME)]

    def centred(part: slice) -> NDArray[np.float64]:
        x: NDArray[np.float64] = members[part] - centres[sizes[part]]
        return x

    responses = targets - levels[sizes]
    gram, moment = np.zeros((n, n)), np.zeros(n)
    for part in parts:
        x = centred(part)
        gram += (x.T * weights[part]) @ x
        moment += (weights[part] * responses[part]) @ x
    # All x are orthogonal to (1, ..., 1), so that the gram matrix is singular there and nowhere else; filling that one
    # direction makes it regular and, since the moment has no part in it, changes nothing in the solution.
    filled = gram + np.trace(gram) / n**2
    factor, not_positive = dpotrf(filled)
    if not_positive or dpocon(factor, np.linalg.norm(filled, 1))[0] < _LEAST_RCOND:
        raise UndeterminedError(
            f"{m} pairs of coalitions do not determine the values of {n} players; give a larger budget, or another rng"
        )
    deviations: NDArray[np.float64] = cho_solve((factor, False), moment)
    inverse = cho_solve((factor, False), np.eye(n))
    variance = np.zeros(n)
    for part in parts:
        x = centred(part)
        influence = x @ inverse  # [rows, n]: of a row's weighted residual on each value
        leverages = weights[part] * np.einsum("ij,ij->i", influence, x) + shares[sizes[part]]
        residuals = weights[part] * (responses[part] - x @ deviations)
        variance += (residuals**2 / np.maximum(1 - leverages, _LEAST_FREEDOM)) @ influence**2
    return deviations, np.sqrt(variance)
