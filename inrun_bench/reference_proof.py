"""Reference values are proved: replayed from the stored utilities, some of which are trained again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

import tasks
from inrun_bench.experiments.reference import Replay, estimate
from inrun_bench.reference import blocks, read
from inrun_bench.store import Store
from inrun_bench.unit import DEFAULT_RECIPE

__all__ = ["Proof", "verify"]

REPLAYED = 1e-9  # largest error of values from stored utilities: rounding
RETRAINED = 1e-3  # of a utility: float32 training on another processor rounds otherwise
TOLERANCES = {"accuracy": 0.01}  # where a sample near the boundary counts in full


@dataclass(frozen=True)
class Proof:
    """What verification found.

    Attributes
    ----------
    task, recipe : str
        Names of the task and of the recipe by which it is trained.
    same_game : bool
        Whether data, initial weights and batch order are the same to the bit; on another processor they may not be.
    retrained : int
        Coalitions trained again.
    replay_error : float
        Largest difference between stored values and those that the stored utilities give, relative to the spread.
    errors : mapping of str to float
        Largest difference between a stored and a retrained utility, by utility; relative for the loss.
    """

    task: str
    recipe: str
    same_game: bool
    retrained: int
    replay_error: float
    errors: Mapping[str, float]

    @property
    def holds(self) -> bool:
        """Whether the reference is what it claims to be."""
        retrained = all(error <= TOLERANCES.get(utility, RETRAINED) for utility, error in self.errors.items())
        return self.replay_error <= REPLAYED and retrained


def verify(
    store: Store,
    task: str,
    seed: int = 0,
    *,
    recipe: str = DEFAULT_RECIPE,
    coalitions: int = 64,
    rng: int | None = None,
) -> Proof:
    """Replay the estimator on the stored utilities, and retrain random coalitions among those that they belong to.

    Parameters
    ----------
    store : Store
        Where the reference is.
    task, seed, recipe
        What it is of.
    coalitions : int
        How many are trained again.
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
    positions = np.random.default_rng(rng).integers(reference.valuations["loss"].evaluations, size=coalitions)
    replay_error, first = 0.0, 0
    drawn, stored = [], []
    for unit, rows in blocks(store, task, seed, recipe):
        of_utility = {
            u: np.asarray(v) for u, v in rows[rows["metric"] == "utilities"].set_index("utility")["utilities"].items()
        }
        m = len(of_utility["loss"])
        watched = frozenset((positions[(positions >= first) & (positions < first + m)] - first).tolist())
        for utility, utilities in of_utility.items():
            replay = Replay(game.n_players, utilities, watched)
            values = estimate(replay, unit).values
            kept = rows[(rows["metric"] == "value") & (rows["utility"] == utility)].sort_values("sample")["value"]
            spread = float(kept.std()) or 1.0
            replay_error = max(replay_error, float(np.abs(values - kept.to_numpy()).max()) / spread)
        drawn += [replay.seen[p] for p in sorted(watched)]
        stored += [[of_utility[u][p] for u in game.measures] for p in sorted(watched)]
        first += m
    kept_utilities = np.array(stored)
    difference = np.abs(game.measure(np.array(drawn)) - kept_utilities)
    loss = game.measures.index("loss")
    difference[:, loss] /= np.abs(kept_utilities[:, loss])
    return Proof(
        task=task,
        recipe=recipe,
        same_game=game.identity() == reference.identity,
        retrained=len(drawn),
        replay_error=replay_error,
        errors=dict(zip(game.measures, difference.max(axis=0).tolist(), strict=True)),
    )
