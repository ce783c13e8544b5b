r"""Beta Shapley: semivalues that look harder at small (or large) coalitions, by weighted permutations.

The Beta(:math:`\alpha, \beta`) semivalue averages marginal contributions with the size distribution
:math:`p_s` of `baselines.semivalues.beta_sizes` (Kwon, Zou: *Beta Shapley*, AISTATS 2022, arXiv 2110.14049). In a
uniformly random permutation :math:`\pi` each position :math:`s = 0, \dots, n - 1` is equally likely, so

.. math:: \phi_i = \mathbb{E}_\pi \, [n \, p_{|P_i(\pi)|} \, (v(P_i(\pi) \cup \{i\}) - v(P_i(\pi)))]:

permutation sampling with weights (equation 6 there), unbiased, one permutation for all players.

**Variance**: that of a weighted marginal contribution over the number of draws. Weights are uneven: those of Beta(16,
1) reach 16 at the start of a permutation, so that most of the information comes from a few positions.

**Cost**: :math:`2 + m (n - 1)` evaluated coalitions.

Unless it is Beta(1, 1), a Beta semivalue is not efficient: values do not add up to the total.
"""

from time import perf_counter

from baselines.convergence import StoppingRule
from baselines.draws import Rng
from baselines.game import Game, player_count
from baselines.monte_carlo import estimate_by_draws
from baselines.permutation import Permutations, permutation_limits
from baselines.semivalues import beta_sizes
from baselines.valuation import Valuation

__all__ = ["beta_shapley"]


def beta_shapley(
    game: Game,
    n_permutations: int | None = None,
    *,
    alpha: float = 4.0,
    beta: float = 1.0,
    budget: int | None = None,
    stop: StoppingRule | None = None,
    shifts: int = 1,
    rng: Rng = None,
    batch_size: int = 4096,
    progress: bool = False,
) -> Valuation:
    """Unbiased Monte Carlo estimate of Beta(alpha, beta) semivalues.

    Parameters
    ----------
    game : Game
        The game of n players.
    n_permutations : int, optional
        Number of permutations, shifts included: a multiple of `shifts`. Give at least one of this, `budget` and `stop`;
        not the first two together.
    alpha, beta : float
        Positive; Beta(1, 1) is Shapley, a larger `alpha` favours small coalitions, a larger `beta` large ones.
    budget : int, optional
        Most coalitions to evaluate, the empty and the grand coalition included.
    stop : StoppingRule, optional
        When to stop before that; see `baselines.convergence`.
    shifts : int
        Permutations that are made of each one drawn by cyclic shifts; evens out the weights. See `permutation_shapley`.
    rng : int, SeedSequence, Generator or None
        Seed; see `baselines.draws.random_permutations`. The result does not depend on `batch_size`.
    batch_size : int
        Most coalitions that the game is asked for at a time.
    progress : bool
        Whether to show a progress bar, in evaluated coalitions, on stderr.

    Returns
    -------
    Valuation
        `values` and `stderr` in units of the utility (`stderr` and `halves` are None after a single draw).

    Raises
    ------
    TypeError, ValueError
        As `permutation_shapley`, and if `alpha` or `beta` is not a positive number.

    Warns
    -----
    InterruptedEstimateWarning
        If it is interrupted, by Ctrl-C, and returns the draws made so far; see `baselines.monte_carlo`.

    References
    ----------
    Kwon, Zou, Beta Shapley, AISTATS 2022, arXiv 2110.14049.
    """
    started = perf_counter()
    n = player_count(game)
    weights = n * beta_sizes(n, alpha, beta)
    limits = permutation_limits(n_permutations, budget, stop, n_players=n, shifts=shifts)
    return estimate_by_draws(
        "beta_shapley",
        Permutations(game, rng, weights, shifts=shifts, batch_size=batch_size),
        started=started,
        limits=limits,
        stop=stop,
        progress=progress,
        parameters=lambda draws: {
            "n_permutations": draws * shifts,
            "budget": budget,
            "alpha": float(alpha),
            "beta": float(beta),
            "shifts": int(shifts),
        },
    )
