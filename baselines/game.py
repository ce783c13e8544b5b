"""A cooperative game: players 0..n-1, and a utility for each coalition of them.

A game is always asked for a whole batch of coalitions, since whoever evaluates many at once (by training many models as
one tensor program, or on many cores) should never be asked for one at a time.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from baselines.arguments import whole_number
from baselines.real_numbers import check_unmasked, float64_utilities

__all__ = ["Game", "described", "evaluate", "evaluate_in_batches", "player_count"]

_MEMBERS_SHOWN = 10
_KEEPING = (
    "A game wrapped as CachedGame(game, UtilityStore(path)) keeps the utilities of each finished call, for a next run."
)


@runtime_checkable
class Game(Protocol):
    """Players and the utility of any coalition of them; any object with these two members is a game.

    Attributes
    ----------
    n_players : int
        Number of players, at least 1.
    """

    @property
    def n_players(self) -> int:
        """Number of players."""

    def __call__(self, coalitions: NDArray[np.bool_], /) -> NDArray[np.float64]:
        """Utilities of a batch of coalitions.

        Parameters
        ----------
        coalitions : bool [m, n_players]
            One coalition a row; True marks its members. The caller does not use the array afterwards.

        Returns
        -------
        float64 [m]
            Utilities, finite, higher is better; the same coalition has the same utility at each call.
        """


def evaluate(game: Game, coalitions: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Utilities of a batch of coalitions, checked.

    Parameters
    ----------
    game : Game
        The game to be asked.
    coalitions : bool [m, n_players]
        One coalition a row. The game is not called for m = 0.

    Returns
    -------
    float64 [m]
        Utilities.

    Raises
    ------
    ValueError
        If `coalitions` is not bool [m, n_players], or the game answers with a wrong shape, with something that is not
        real numbers, with masked ones, with integers that float64 does not hold, or with what is NaN or infinite there.
    """
    check_unmasked("coalitions", coalitions)
    if coalitions.dtype != np.bool_ or coalitions.ndim != 2 or coalitions.shape[1] != game.n_players:
        raise ValueError(
            f"coalitions must be a bool array of shape (m, {game.n_players}), "
            f"got {coalitions.dtype} of shape {coalitions.shape}"
        )
    if len(coalitions) == 0:
        return np.empty(0)
    try:
        answer: Any = game(coalitions)
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(_KEEPING)
        raise
    utilities = float64_utilities(answer, f"a game ({_name(game)})")
    if utilities.shape != (len(coalitions),):
        raise ValueError(
            f"a game must return one utility for each coalition, shape ({len(coalitions)},), "
            f"got shape {utilities.shape} from {_name(game)}"
        )
    finite = np.isfinite(utilities)
    if not finite.all():
        row = int(np.argmin(finite))
        raise ValueError(
            f"a game must return finite utilities, got {utilities[row]} from {_name(game)} for "
            f"{described(coalitions[row])}; not finite in this batch: {np.count_nonzero(~finite)} of {len(finite)}"
        )
    return utilities


def evaluate_in_batches(
    game: Game,
    n_coalitions: int,
    coalitions: Callable[[NDArray[np.intp]], NDArray[np.bool_]],
    batch_size: int,
    *,
    bar: str | None = None,
) -> NDArray[np.float64]:
    """Utilities of numbered coalitions, of which no more are made at a time than a call of the game takes.

    Parameters
    ----------
    game : Game
        The game to be asked.
    n_coalitions : int
        Number of coalitions.
    coalitions : callable
        From numbers, intp [k] within 0 to n_coalitions - 1, to those coalitions, bool [k, n_players].
    batch_size : int
        Most coalitions that the game is asked for at a time.
    bar : str, optional
        Name of a progress bar on stderr, in coalitions; without a name there is none.

    Returns
    -------
    float64 [n_coalitions]
        Utilities.

    Raises
    ------
    ValueError
        As :func:`evaluate`.
    """
    utilities = np.empty(n_coalitions)
    with tqdm(total=n_coalitions, desc=bar, unit="coalition", disable=bar is None) as shown:
        for first in range(0, n_coalitions, batch_size):
            numbers = np.arange(first, min(first + batch_size, n_coalitions))
            utilities[numbers] = evaluate(game, coalitions(numbers))
            shown.update(len(numbers))
    return utilities


def player_count(game: Game) -> int:
    """Return the number of players of a game, having checked that it is a game.

    Parameters
    ----------
    game : Game
        The game.

    Returns
    -------
    int
        `game.n_players`.

    Raises
    ------
    TypeError
        If `game` lacks `n_players` or cannot be called, or `n_players` is no integer.
    ValueError
        If `n_players` is smaller than 1.
    """
    if not isinstance(game, Game):
        raise TypeError(
            "a game has an integer n_players and can be called with coalitions (bool [m, n_players]), "
            f"got {type(game).__name__}"
        )
    return whole_number("n_players of a game", game.n_players)


def _name(game: Game) -> str:
    return type(game).__name__


def described(coalition: NDArray[np.bool_]) -> str:
    """Return what an error calls a coalition (bool [n]): its size and its first members."""
    members = np.flatnonzero(coalition)
    shown = ", ".join(map(str, members[:_MEMBERS_SHOWN]))
    more = ", ..." if len(members) > _MEMBERS_SHOWN else ""
    return f"the coalition of size {len(members)} with members [{shown}{more}]"
