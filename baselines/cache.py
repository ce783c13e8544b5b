"""A game that remembers: no coalition is evaluated twice, by any estimator, in any run.

The game inside is asked only for coalitions whose utilities the store lacks. An estimator notices nothing but the time:
its result is the same to the bit, provided that the utility of a coalition does not depend on the rest of its batch.
Where one evaluation gives several utilities (a trained model has a loss and an accuracy), all are stored, so that the
game with the other utility is answered from the same trainings.

**Cost**: that of the store, see `baselines.store`.
"""

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from baselines.game import Game, described, player_count
from baselines.real_numbers import check_unmasked
from baselines.store import UtilityStore

__all__ = ["CachedGame", "MeasuredGame"]


@runtime_checkable
class MeasuredGame(Game, Protocol):
    """A game that measures several utilities of a coalition at once, and plays for one of them.

    Attributes
    ----------
    measures : tuple of str
        Names of the k utilities that an evaluation gives.
    utility : str
        That of `measures` which a call returns.
    """

    measures: tuple[str, ...]
    utility: str

    def measure(self, coalitions: NDArray[np.bool_], /) -> NDArray[np.float64]:
        """Return all utilities, float64 [m, k], of each coalition of bool [m, n_players]."""


class CachedGame:
    """A game whose utilities are taken from a store where it has them, else evaluated and stored.

    Parameters
    ----------
    game : Game
        The game. If it is a `MeasuredGame`, all its measures are stored.
    store : UtilityStore
        Where utilities are kept.
    identity : str, optional
        What the game is known by in the store: whatever changes a utility must change it. By default what
        ``game.identity()`` returns, for games that have that method.
    replay_only : bool
        Whether a coalition that the store lacks is an error, rather than evaluated.

    Attributes
    ----------
    n_players : int
        Number of players.
    measures, utility
        As of a `MeasuredGame`; ``("utility",)`` and ``"utility"`` if the game is none.
    misses : int
        Coalitions that the game was asked for, by this object.
    hits : int
        Coalitions that it was not asked for: evaluations saved.

    Raises
    ------
    TypeError
        If `game` is not a game, or neither it nor the caller says what it is known by.
    ValueError
        If the game's `utility` is not one of its `measures`.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from baselines import permutation_shapley, tmc_shapley
    >>> class Sizes:
    ...     n_players = 5
    ...     def __call__(self, coalitions):
    ...         return np.sqrt(coalitions.sum(axis=1))
    >>> folder = tempfile.TemporaryDirectory()
    >>> game = CachedGame(Sizes(), UtilityStore(folder.name + "/utilities.db"), identity="sizes of 5")
    >>> valuation = permutation_shapley(game, 100, rng=0)
    >>> evaluated = game.misses
    >>> valuation = tmc_shapley(game, 100, rng=0)
    >>> game.misses == evaluated  # the same permutations, so the same coalitions
    True
    >>> folder.cleanup()
    """

    def __init__(
        self, game: Game, store: UtilityStore, identity: str | None = None, *, replay_only: bool = False
    ) -> None:
        self.n_players = player_count(game)
        self.game, self.store, self.replay_only = game, store, replay_only
        if identity is None and not hasattr(game, "identity"):
            raise TypeError(
                f"identity must be given, since {type(game).__name__} has no method identity(): a string that changes "
                "with whatever changes a utility"
            )
        self._identity: str = game.identity() if identity is None else identity  # type: ignore[attr-defined]
        self.measures: tuple[str, ...] = ("utility",)
        self.utility = "utility"
        if isinstance(game, MeasuredGame):
            self.measures, self.utility = tuple(game.measures), game.utility
        if self.utility not in self.measures:
            raise ValueError(f"utility of a game must be one of its measures {self.measures}, got {self.utility!r}")
        self.hits = self.misses = 0

    def identity(self) -> str:
        """Return what the game is known by."""
        return self._identity

    def __call__(self, coalitions: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the utility, float64 [m], of each coalition of bool [m, n_players].

        Raises
        ------
        LookupError
            If `replay_only`, and the store lacks a coalition.
        ValueError, StoreError
            As `UtilityStore.evaluate`.
        """
        return np.ascontiguousarray(self.measure(coalitions)[:, self.measures.index(self.utility)])

    def measure(self, coalitions: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return all utilities, float64 [m, k], of each coalition of bool [m, n_players]; raises as a call does."""
        if coalitions.ndim != 2 or coalitions.shape[1] != self.n_players:  # the store learns the number from a batch
            raise ValueError(
                f"coalitions must be a bool array of shape (m, {self.n_players}), "
                f"got {coalitions.dtype} of shape {coalitions.shape}"
            )
        before = self.misses
        utilities = self.store.evaluate(self._identity, coalitions, self._evaluate, self.measures)
        self.hits += len(coalitions) - (self.misses - before)
        return utilities

    def _evaluate(self, missing: NDArray[np.bool_]) -> NDArray[np.float64]:
        if self.replay_only:
            raise LookupError(
                f"the store {str(self.store.path)!r} lacks {len(missing)} coalitions of the game {self._identity!r} "
                f"that it was asked for, first {described(missing[0])}; without replay_only they are evaluated"
            )
        self.misses += len(missing)
        if isinstance(self.game, MeasuredGame):
            return self.game.measure(missing)
        answer = self.game(missing)
        check_unmasked(f"what a game ({type(self.game).__name__}) returns", answer)
        return np.asarray(answer)[..., None]
