r"""Semivalues: how much a player adds to a random coalition, by how the size of that coalition is distributed.

A semivalue of player :math:`i` of a game :math:`v` with :math:`n` players averages its marginal contributions, first
over the coalitions of one size, then over sizes (Dubey, Neyman, Weber: *Value theory without efficiency*, Mathematics
of Operations Research 6, 1981)

.. math:: \phi_i = \sum_{s=0}^{n-1} p_s \binom{n-1}{s}^{-1} \sum_{S \not\ni i, |S| = s} [v(S \cup \{i\}) - v(S)],
          \qquad \sum_s p_s = 1.

All that tells one semivalue from another is the distribution :math:`p` of the size of the coalition that is joined:

- Shapley: uniform, :math:`p_s = 1/n`; the only efficient one (values add up to :math:`v(N) - v(\emptyset)`).
- Banzhaf: binomial, :math:`p_s = \binom{n-1}{s} 2^{-(n-1)}`; every coalition is equally likely.
- Beta(:math:`\alpha, \beta`): beta-binomial (Kwon, Zou: *Beta Shapley: a Unified and Noise-reduced Data Valuation
  Framework for Machine Learning*, AISTATS 2022, arXiv 2110.14049, equation 5),
  :math:`p_s = \binom{n-1}{s} B(s + \beta, n - 1 - s + \alpha) / B(\alpha, \beta)`; Beta(1, 1) is Shapley, and a larger
  :math:`\alpha` puts weight on small coalitions, where marginal contributions of training samples stand out from noise.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import betabinom, binom

from baselines.arguments import real_number, whole_number

__all__ = ["banzhaf_sizes", "beta_sizes", "shapley_sizes"]


def shapley_sizes(n_players: int) -> NDArray[np.float64]:
    """Size distribution of the Shapley value: uniform.

    Parameters
    ----------
    n_players : int
        Number of players n, at least 1.

    Returns
    -------
    float64 [n]
        Probability that the coalition joined has 0, 1, ..., n - 1 members.
    """
    n = whole_number("n_players", n_players)
    return np.full(n, 1 / n)


def banzhaf_sizes(n_players: int) -> NDArray[np.float64]:
    """Size distribution of the Banzhaf value: binomial (n - 1, 1/2).

    Parameters
    ----------
    n_players : int
        Number of players n, at least 1.

    Returns
    -------
    float64 [n]
        Probability that the coalition joined has 0, 1, ..., n - 1 members.
    """
    n = whole_number("n_players", n_players)
    return np.asarray(binom.pmf(np.arange(n), n - 1, 0.5))


def beta_sizes(n_players: int, alpha: float, beta: float) -> NDArray[np.float64]:
    """Size distribution of the Beta(alpha, beta) semivalue: beta-binomial.

    Parameters
    ----------
    n_players : int
        Number of players n.
    alpha, beta : float
        Positive; Beta(1, 1) is Shapley, a larger `alpha` favours small coalitions, a larger `beta` large ones.

    Returns
    -------
    float64 [n]
        Probability that the coalition joined has 0, 1, ..., n - 1 members.

    Raises
    ------
    ValueError
        If `alpha` or `beta` is not a positive number.

    References
    ----------
    Kwon, Zou, Beta Shapley, AISTATS 2022, arXiv 2110.14049, equation 5.
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not (math.isfinite(real_number(name, value)) and value > 0):
            raise ValueError(f"{name} must be a positive number, got {value!r}")
    n = whole_number("n_players", n_players)
    return np.asarray(betabinom.pmf(np.arange(n), n - 1, beta, alpha))  # SciPy's first parameter weighs large sizes
