r"""Leave-one-out values: what the grand coalition loses without each player.

.. math:: \phi_i = v(N) - v(N \setminus \{i\})

The semivalue that looks at coalitions of :math:`n - 1` members alone (Cook: *Detection of Influential Observation in
Linear Regression*, Technometrics 19, 1977). In data valuation one sample among many changes a model by less than the
noise of training, which is why Shapley values look at smaller coalitions too.

**Variance**: none.

**Cost**: :math:`n + 1` evaluated coalitions. All of them are needed: Ctrl-C raises KeyboardInterrupt, and what was
evaluated is lost unless the game keeps it (`baselines.CachedGame`).
"""

from time import perf_counter

import numpy as np

from baselines.arguments import whole_number
from baselines.game import Game, evaluate_in_batches, player_count
from baselines.valuation import Valuation

__all__ = ["leave_one_out"]


def leave_one_out(game: Game, *, batch_size: int = 4096, progress: bool = False) -> Valuation:
    """Leave-one-out values.

    Parameters
    ----------
    game : Game
        The game of n players.
    batch_size : int
        Most coalitions that the game is asked for at a time.
    progress : bool
        Whether to show a progress bar, in evaluated coalitions, on stderr.

    Returns
    -------
    Valuation
        `values` in units of the utility; no standard errors.

    Raises
    ------
    TypeError, ValueError
        If `batch_size` is no positive integer, or the game returns something that is not a finite utility for each
        coalition.

    References
    ----------
    Cook, Detection of Influential Observation in Linear Regression, Technometrics 19, 1977.
    """
    start = perf_counter()
    n = player_count(game)
    whole_number("batch_size", batch_size)
    players = np.arange(n)
    utilities = evaluate_in_batches(
        game,
        n + 1,
        lambda left_out: left_out[:, None] != players,  # number n leaves nobody out
        batch_size,
        bar="leave_one_out" if progress else None,
    )
    return Valuation(
        values=utilities[n] - utilities[:n],
        stderr=None,
        evaluations=n + 1,
        seconds=perf_counter() - start,
        method="leave_one_out",
    )
