"""What the permutation estimators share: random permutations, and the moments of what is measured on them.

The Shapley value is an expectation over uniformly random permutations (Castro, Gómez, Tejada: *Polynomial calculation
of the Shapley value based on sampling*, Computers & Operations Research 36, 2009): the expected marginal contribution
of a player to those before it. Each draw has a random stream of its own, spawned from one seed and numbered, and draws
are accumulated by number. So an estimate depends on the seed and the number of draws, and to the last bit on nothing
else: neither on how many coalitions the game is asked for at a time, nor on the order in which the draws are finished.
"""

from collections.abc import Iterator
from numbers import Integral
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Moments", "Rng", "random_permutations"]

Rng: TypeAlias = int | np.random.SeedSequence | np.random.Generator | None

_STREAMS_SPAWNED_AT_ONCE = 64


def random_permutations(rng: Rng, n_players: int) -> Iterator[NDArray[np.intp]]:
    """Endless sequence of independent uniformly random permutations, each from a stream of its own.

    Parameters
    ----------
    rng : int, SeedSequence, Generator or None
        Seed. An int or a SeedSequence gives the same permutations each time (a SeedSequence is not changed); from a
        Generator a child is spawned, so that the next use of it gives others; None takes entropy from the system.
    n_players : int
        Length of a permutation.

    Returns
    -------
    Iterator of intp [n_players]
        Players in the order in which they join.

    Raises
    ------
    TypeError
        If `rng` is something else.
    ValueError
        If `rng` is a negative int.
    """
    root = _seed_sequence(rng)  # now, not when the first permutation is asked for

    def draw() -> Iterator[NDArray[np.intp]]:
        while True:
            for child in root.spawn(_STREAMS_SPAWNED_AT_ONCE):
                yield np.random.Generator(np.random.PCG64(child)).permutation(n_players)

    return draw()


class Moments:
    """Running mean and variance of draws, and the means of the even and of the odd ones.

    The update is Welford's (*Technometrics* 4, 1962), which does not lose the variance of draws with a large mean.

    Parameters
    ----------
    n_players : int
        Length of a draw.
    """

    def __init__(self, n_players: int) -> None:
        self.count = 0
        self.mean = np.zeros(n_players)
        self._squares = np.zeros(n_players)  # sum of squared deviations from the mean
        self._half_sums = np.zeros((2, n_players))

    def add(self, draw: NDArray[np.float64]) -> None:
        """Account for the next draw (float64 [n_players])."""
        self._half_sums[self.count % 2] += draw
        self.count += 1
        deviation = draw - self.mean
        self.mean += deviation / self.count
        self._squares += deviation * (draw - self.mean)

    def stderr(self) -> NDArray[np.float64] | None:
        """Standard errors of the mean (float64 [n_players]); None if there is just one draw."""
        if self.count < 2:
            return None
        stderr: NDArray[np.float64] = np.sqrt(self._squares / (self.count - 1) / self.count)
        return stderr

    def halves(self) -> NDArray[np.float64] | None:
        """Means of the draws number 0, 2, ... and 1, 3, ... (float64 [2, n_players]); None if there is just one."""
        if self.count < 2:
            return None
        counts = np.array([[(self.count + 1) // 2], [self.count // 2]])
        halves: NDArray[np.float64] = self._half_sums / counts
        return halves


def _seed_sequence(rng: Rng) -> np.random.SeedSequence:
    if rng is None:
        return np.random.SeedSequence()
    if isinstance(rng, np.random.SeedSequence):
        return np.random.SeedSequence(rng.entropy, spawn_key=rng.spawn_key, pool_size=rng.pool_size)
    if isinstance(rng, np.random.Generator):
        return _seed_sequence_of(rng)
    if isinstance(rng, Integral) and not isinstance(rng, bool):
        if rng < 0:
            raise ValueError(f"rng must not be negative, got {rng}")
        return np.random.SeedSequence(int(rng))
    raise TypeError(f"rng must be an int, a SeedSequence, a Generator or None, got {type(rng).__name__}")


def _seed_sequence_of(generator: np.random.Generator) -> np.random.SeedSequence:
    seed = generator.bit_generator.seed_seq
    if not isinstance(seed, np.random.SeedSequence):
        raise TypeError(f"rng must be a Generator that can spawn others, got one seeded by {type(seed).__name__}")
    return seed.spawn(1)[0]
