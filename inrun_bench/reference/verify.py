"""Reference values are proved: replayed from stored utilities, some of which are trained again; or made anew.

Of most references the utilities of a few blocks are stored, which take a hundred times the space of values. These
blocks are replayed, and random coalitions of theirs retrained. A block without utilities can be made anew from its
number, as any can; :func:`verify` does so with a few that it draws among those that do not take long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import tasks
from inrun_bench.reference.blocks import blocks, read
from inrun_bench.reference.estimate import Replay, estimate, measure
from inrun_bench.runs.store import Overlay, Store
from inrun_bench.runs.unit import DEFAULT_RECIPE, Unit

__all__ = ["Proof", "verify"]

REPLAYED = 1e-9  # largest error of values from stored utilities: rounding
RETRAINED = 1e-3  # of a utility: float32 training on another processor rounds otherwise
TOLERANCES = {"accuracy": 0.01}  # where a sample near the boundary counts in full
REMADE = {"loss": 1e-3, "accuracy": 0.1}  # largest error of values made anew, in units of their spread, likewise
REMADE_SECONDS = 30  # of the blocks that are drawn to be made anew, as long as they took at most


@dataclass(frozen=True)
class Proof:
    """What verification found.

    Attributes
    ----------
    task, recipe : str
        Names of the task and of the recipe by which it is trained.
    seed : int
        The task's.
    same_game : bool
        Whether data, initial weights and batch order are the same to the bit; on another processor they may not be.
    blocks, replayed : int
        Blocks that there are, and those of which the utilities are stored.
    replay_error : float
        Largest difference between values and those that the stored utilities give, relative to the spread.
    retrained : int
        Coalitions trained again.
    errors : mapping of str to float
        Largest difference between a stored and a retrained utility, by utility; relative for the loss.
    remade : tuple of int
        Numbers of the blocks made anew.
    remade_errors : mapping of str to float
        Largest difference between stored values and those of blocks made anew, by utility, relative to the spread.
    """

    task: str
    seed: int
    recipe: str
    same_game: bool
    blocks: int
    replayed: int
    replay_error: float
    retrained: int
    errors: Mapping[str, float]
    remade: tuple[int, ...]
    remade_errors: Mapping[str, float]

    @property
    def looked(self) -> bool:
        """Whether anything was looked at: a coalition was trained again, or a block made anew."""
        return self.retrained > 0 or bool(self.remade)

    @property
    def holds(self) -> bool:
        """Whether the reference is what it claims to be, as far as was looked."""
        retrained = all(error <= TOLERANCES.get(utility, RETRAINED) for utility, error in self.errors.items())
        remade = all(error <= REMADE.get(utility, RETRAINED) for utility, error in self.remade_errors.items())
        return self.replay_error <= REPLAYED and retrained and remade


def verify(
    store: Store | Overlay,
    task: str,
    seed: int = 0,
    *,
    recipe: str = DEFAULT_RECIPE,
    coalitions: int = 64,
    remake: int | None = None,
    rng: int | None = None,
) -> Proof:
    """Replay the estimator on the stored utilities, retrain random coalitions among theirs, and make blocks anew.

    Parameters
    ----------
    store : Store or Overlay
        Where the reference is.
    task, seed, recipe
        What it is of.
    coalitions : int
        How many are trained again.
    remake : int, optional
        How many of the blocks without utilities are made anew. Where None, one, if there is one that takes no longer
        than half a minute.
    rng : int, optional
        Which; other ones each time where None.

    Returns
    -------
    Proof

    Raises
    ------
    ValueError
        If there is no such task, it has no such recipe, or there is no reference for them.
    """
    game = tasks.load(task, seed, recipe=recipe).trajectory_game()
    reference = read(store, task, seed, recipe)
    random = np.random.default_rng(rng)
    everything = blocks(store, task, seed, recipe)
    replayed = [(unit, rows) for unit, rows in everything if _utilities(rows)]
    others = [(unit, rows) for unit, rows in everything if not _utilities(rows)]
    replay_error, drawn, stored = _replay(replayed, game, coalitions, random)
    difference = np.abs(game.measure(drawn) - stored)
    loss = game.measures.index("loss")
    difference[:, loss] /= np.abs(stored[:, loss])
    if remake is None:
        others, remake = [(unit, rows) for unit, rows in others if _seconds(rows) <= REMADE_SECONDS], 1
    chosen = random.permutation(len(others))[:remake]
    remade = [_remake(*others[number]) for number in chosen]
    return Proof(
        task=task,
        seed=seed,
        recipe=recipe,
        same_game=game.identity() == reference.identity,
        blocks=len(everything),
        replayed=len(replayed),
        replay_error=replay_error,
        retrained=len(drawn),
        errors=dict(zip(game.measures, difference.max(axis=0, initial=0.0).tolist(), strict=True)),
        remade=tuple(int(others[number][0].settings["block"]) for number in chosen),
        remade_errors={u: _most([errors[u] for errors in remade]) for u in game.measures} if remade else {},
    )


def _replay(
    replayed: Sequence[tuple[Unit, pd.DataFrame]],
    game: tasks.TrajectoryGame,
    coalitions: int,
    random: np.random.Generator,
) -> tuple[float, NDArray[np.bool_], NDArray[np.float64]]:
    """Return the largest error of values, coalitions drawn at random, bool [m, n], and their utilities, [m, k]."""
    sizes = [len(_utilities(rows)["loss"]) for _, rows in replayed]
    positions = random.integers(sum(sizes), size=coalitions if sizes else 0)
    errors, first = [0.0], 0
    drawn, stored = [np.empty((0, game.n_players), dtype=bool)], []
    for (unit, rows), size in zip(replayed, sizes, strict=True):
        watched = frozenset((positions[(positions >= first) & (positions < first + size)] - first).tolist())
        of_utility = _utilities(rows)
        for utility, utilities in of_utility.items():
            replay = Replay(game.n_players, utilities, watched)
            errors.append(_largest(estimate(replay, unit).values, _values(rows, utility)))
        drawn += [replay.seen[position][None] for position in sorted(watched)]
        stored += [[of_utility[measure][position] for measure in game.measures] for position in sorted(watched)]
        first += size
    return _most(errors), np.concatenate(drawn), np.array(stored).reshape(-1, len(game.measures))


def _remake(unit: Unit, rows: pd.DataFrame) -> dict[str, float]:
    """Make a block anew, and return the largest error of its values, by utility."""
    anew = pd.DataFrame(measure(unit, {}))
    return {str(u): _largest(_values(anew, str(u)), _values(rows, str(u))) for u in anew["utility"].unique()}


def _largest(values: NDArray[np.float64], kept: NDArray[np.float64]) -> float:
    return float(np.abs(values - kept).max()) / (float(kept.std()) or 1.0)


def _most(errors: Sequence[float]) -> float:
    return float(np.max(errors))  # NaN where one is: Python's own max may pass over it


def _values(rows: pd.DataFrame, utility: str) -> NDArray[np.float64]:
    own = rows[(rows["metric"] == "value") & (rows["utility"] == utility)].sort_values("sample")
    return np.asarray(own["value"], dtype=np.float64)


def _utilities(rows: pd.DataFrame) -> dict[str, NDArray[np.float64]]:
    """Return the utilities of a block, in the order in which the estimator asked for them; none where not stored."""
    if "utilities" not in rows:
        return {}
    kept = rows[rows["metric"] == "utilities"].set_index("utility")["utilities"].dropna()
    return {str(utility): np.asarray(numbers, dtype=np.float64) for utility, numbers in kept.items()}


def _seconds(rows: pd.DataFrame) -> float:
    return float(rows.loc[rows["metric"] == "utilities", "seconds"].max())
