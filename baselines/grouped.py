r"""Groups of players as players: domains, classes, or duplicates of samples, which come and go together.

The grouped game of :math:`v` and a partition of its players into groups :math:`G_1, \dots, G_k` is worth
:math:`w(T) = v(\bigcup_{j \in T} G_j)`, the "quotient game" (Owen: *Values of Games with a Priori Unions*, Essays in
Mathematical Economics and Game Theory, 1977). Its Shapley values are a group's own worth. They add up to
:math:`v(N) - v(\emptyset)`, as the members' values do, but a group's value is the sum of its members' where the game is
additive, and in general not otherwise: two duplicates that are one player share nothing.

Of few groups all coalitions can be enumerated (`baselines.exact_shapley`), whatever the number of samples.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from baselines.game import Game, player_count
from baselines.real_numbers import check_unmasked

__all__ = ["GroupedGame", "numbered_groups"]


class GroupedGame:
    """A game of groups of another game's players.

    Parameters
    ----------
    game : Game
        The game of single players. To keep utilities, wrap it before: ``GroupedGame(CachedGame(game, store), groups)``.
    groups : int [game.n_players]
        Number of the group of each player; all of 0 .. k - 1 must occur.

    Attributes
    ----------
    n_players : int
        Number of groups k.
    groups : int64 [game.n_players]
        As given.

    Raises
    ------
    TypeError
        If `game` is not a game.
    ValueError
        If the groups are not numbered that way. When called: if `coalitions` is not bool [m, n_players].

    Examples
    --------
    >>> import numpy as np
    >>> from baselines import exact_shapley
    >>> class Vote:  # three of five win
    ...     n_players = 5
    ...     def __call__(self, coalitions):
    ...         return (coalitions.sum(axis=1) >= 3).astype(float)
    >>> exact_shapley(GroupedGame(Vote(), [0, 0, 0, 1, 2])).values  # a party of three decides alone
    array([1., 0., 0.])
    """

    def __init__(self, game: Game, groups: ArrayLike) -> None:
        self.game = game
        self.groups = numbered_groups(groups, player_count(game))
        self.n_players = int(self.groups.max()) + 1

    def __call__(self, coalitions: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the utility, float64 [m], of each coalition of groups, bool [m, n_players]."""
        coalitions = np.asarray(coalitions)
        if coalitions.dtype != np.bool_ or coalitions.ndim != 2 or coalitions.shape[1] != self.n_players:
            raise ValueError(
                f"coalitions must be a bool array of shape (m, {self.n_players}), a column for each group, "
                f"got {coalitions.dtype} of shape {coalitions.shape}"
            )
        return self.game(coalitions[:, self.groups])


def numbered_groups(groups: ArrayLike, n: int) -> NDArray[np.int64]:
    """Return `groups`, int64 [n], having checked that they number the groups of n players from 0 on, none empty.

    Raises
    ------
    ValueError
        If they do not.
    """
    check_unmasked("groups", groups)
    numbers = np.asarray(groups)
    if numbers.shape != (n,) or numbers.dtype.kind not in "iu":
        raise ValueError(f"groups must be integers of shape [{n}], got {numbers.dtype} of shape {list(numbers.shape)}")
    used = np.unique(numbers)
    if not np.array_equal(used, np.arange(len(used))):
        raise ValueError(f"groups must use all numbers from 0 on, got {len(used)} numbers, {used[0]} to {used[-1]}")
    return numbers.astype(np.int64)
