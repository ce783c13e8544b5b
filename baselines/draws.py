"""What Monte Carlo estimators share: numbered random streams, what is drawn from them, and moments of what is measured.

The Shapley value is an expectation over uniformly random permutations (Castro, Gómez, Tejada: *Polynomial calculation
of the Shapley value based on sampling*, Computers & Operations Research 36, 2009): the expected marginal contribution
of a player to those before it. Each draw has a random stream of its own, spawned from one seed and numbered, and draws
are accumulated by number. So an estimate depends on the seed and the number of draws, and to the last bit on nothing
else: neither on how many coalitions the game is asked for at a time, nor on the order in which the draws are finished.
"""

from collections.abc import Iterator
from copy import copy
from numbers import Integral
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DRAWS_A_STREAM",
    "LEAST_DRAWS_OF_CHAINS",
    "ROWS_AT_A_TIME",
    "Moments",
    "Rng",
    "complementary_pairs",
    "random_coalitions",
    "random_permutations",
    "random_streams",
    "weighted_sums",
]

Rng: TypeAlias = int | np.random.SeedSequence | np.random.Generator | None

_STREAMS_SPAWNED_AT_ONCE = 64
_CHAINS = 10  # even, so that a half is made of whole chains
_ROUNDING = 1e-9  # draws that differ by less, relative to the largest mean, are taken to be equal
DRAWS_A_STREAM = 64  # where draws are too small to pay for a random stream each
ROWS_AT_A_TIME = 2**14  # coalitions that are turned into numbers at a time
LEAST_DRAWS_OF_CHAINS = 2 * _CHAINS


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
    return (stream.permutation(n_players) for stream in random_streams(rng))


def random_streams(rng: Rng) -> Iterator[np.random.Generator]:
    """Endless sequence of independent random generators, one a draw; see :func:`random_permutations` for `rng`."""
    root = _seed_sequence(rng)  # now, not when the first stream is asked for

    def spawn() -> Iterator[np.random.Generator]:
        while True:
            for child in root.spawn(_STREAMS_SPAWNED_AT_ONCE):
                yield np.random.Generator(np.random.PCG64(child))

    return spawn()


def random_coalitions(stream: np.random.Generator, sizes: NDArray[np.intp], n_players: int) -> NDArray[np.bool_]:
    """Return a uniformly random coalition of each of the `sizes` [m]: bool [m, n_players]."""
    return stream.permuted(np.arange(n_players) < sizes[:, None], axis=1)


def complementary_pairs(
    rng: Rng, n_players: int, chance_of_size: NDArray[np.float64] | None = None
) -> Iterator[NDArray[np.bool_]]:
    """Endless sequence of blocks of random coalitions of at most half the players, each with its complement.

    Parameters
    ----------
    rng : int, SeedSequence, Generator or None
        Seed; see :func:`random_permutations`.
    n_players : int
        Number of players n, at least 2.
    chance_of_size : float64 [n // 2], optional
        Probability of the sizes 1 to n // 2 of the coalition; where None, sizes come in rounds. In a round two draws
        in a row have the same size, and each size comes once, in a random order: so any number of draws, and either of
        its halves (even and odd draws), holds all sizes equally often, within a round.

    Returns
    -------
    Iterator of bool [pairs, 2, n]
    """
    streams = random_streams(rng)  # now: a seed that is none is refused here
    largest = n_players // 2

    def blocks() -> Iterator[NDArray[np.bool_]]:
        rounds = _sizes_in_rounds(next(streams), largest)
        for stream in streams:
            if chance_of_size is None:
                sizes = np.fromiter(rounds, np.intp, DRAWS_A_STREAM)
            else:
                sizes = 1 + stream.choice(largest, size=DRAWS_A_STREAM, p=chance_of_size)
            members = random_coalitions(stream, sizes, n_players)
            yield np.stack([members, ~members], axis=1)

    return blocks()


def _sizes_in_rounds(stream: np.random.Generator, largest: int) -> Iterator[int]:
    while True:
        yield from np.repeat(1 + stream.permutation(largest), 2).tolist()


def weighted_sums(weights: NDArray[np.float64], members: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return ``weights @ members`` for weights [k, m] and members [m, n], without a copy of members in numbers."""
    sums = np.zeros((len(weights), members.shape[1]))
    for first in range(0, len(members), ROWS_AT_A_TIME):
        part = slice(first, first + ROWS_AT_A_TIME)
        sums += weights[:, part] @ members[part].astype(np.float64)
    return sums


class Moments:
    """Mean and variance of draws, as a whole and in ten chains (the number of the draw modulo ten).

    The update is Welford's (*Technometrics* 4, 1962), which does not lose the variance of draws with a large mean. It
    makes another record, so that whoever is interrupted still has that of whole draws.

    Parameters
    ----------
    n_players : int
        Length of a draw.

    Attributes
    ----------
    count : int
        Number of draws.
    mean : float64 [n_players]
        Their mean.
    """

    def __init__(self, n_players: int) -> None:
        self.count = 0
        self.mean = np.zeros(n_players)
        self._squares = np.zeros(n_players)  # sum of squared deviations from the mean
        self._chain_sums = [np.zeros(n_players)] * _CHAINS

    def with_draw(self, draw: NDArray[np.float64]) -> "Moments":
        """Return the moments with the next draw (float64 [n_players]) added; these here stay as they are."""
        longer = copy(self)
        longer._chain_sums = self._chain_sums.copy()
        longer._chain_sums[self.count % _CHAINS] = self._chain_sums[self.count % _CHAINS] + draw
        longer.count = self.count + 1
        deviation = draw - self.mean
        longer.mean = self.mean + deviation / longer.count
        longer._squares = self._squares + deviation * (draw - longer.mean)
        return longer

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
        sums = np.array([np.sum(self._chain_sums[half::2], axis=0) for half in (0, 1)])
        halves: NDArray[np.float64] = sums / np.array([[(self.count + 1) // 2], [self.count // 2]])
        return halves

    def gelman_rubin(self) -> NDArray[np.float64] | None:
        """Potential scale reduction of each mean (float64 [n_players]); None with less than two draws in a chain.

        Draws that differ by no more than rounding, such as contributions to an additive game, count as converged.
        """
        if self.count < LEAST_DRAWS_OF_CHAINS:
            return None
        lengths = (self.count - np.arange(_CHAINS) + _CHAINS - 1) // _CHAINS
        means = np.array(self._chain_sums) / lengths[:, None]
        between = np.var(means, axis=0, ddof=1)  # B / N
        within = self._squares - lengths @ (means - self.mean) ** 2
        within /= self.count - _CHAINS
        length = self.count / _CHAINS
        varies = within > (_ROUNDING * np.abs(self.mean).max()) ** 2
        ratio = np.divide(between, within, out=np.zeros_like(between), where=varies)
        scale: NDArray[np.float64] = np.sqrt((length - 1) / length + ratio)
        return scale


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
