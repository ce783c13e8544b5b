"""Reference values: made until they are reliable, read back, and proved by retraining.

A reference is the mean of independent blocks (:mod:`inrun_bench.experiments.reference`). How far it can be trusted is
the Spearman correlation between the mean of all even draws and that of all odd ones: its split-half reliability.

>>> from inrun_bench.reference import FOLDER, read  # doctest: +SKIP
>>> read(Store(FOLDER), "digits-mlp").of("loss").values  # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import cpu_count

import tasks
from baselines import Valuation
from inrun_bench.experiments.reference import MOST_ENUMERATED, Replay, block, estimate
from inrun_bench.runner import run
from inrun_bench.store import Store
from inrun_bench.unit import Unit

__all__ = ["FOLDER", "Proof", "Reference", "exists", "extend", "read", "verify"]

FOLDER = Path("results", "reference")

REPLAYED = 1e-9  # largest error of values from stored utilities: rounding
RETRAINED = 1e-3  # of a utility: float32 training on another processor rounds otherwise
TOLERANCES = {"accuracy": 0.01}  # where a sample near the boundary counts in full


@dataclass(frozen=True)
class Reference:
    """The reference of a task: one valuation a utility, from the same trainings.

    Attributes
    ----------
    task : str
        Name of the task.
    seed : int
        Its seed.
    valuations : mapping of str to Valuation
        By utility, ``"loss"`` first; `halves` are the means of the even and the odd draws, and `evaluations` counts
        trainings. Enumerated values have standard errors of zero.
    identity : str
        SHA-256 of what defines the game, see `TrajectoryGame.identity`.
    blocks : int
        Independent parts.
    """

    task: str
    seed: int
    valuations: Mapping[str, Valuation]
    identity: str
    blocks: int

    @property
    def exact(self) -> bool:
        """Whether the values were enumerated rather than sampled."""
        return all(v.stderr is not None and not v.stderr.any() for v in self.valuations.values())

    @property
    def evaluations(self) -> int:
        """Trainings behind the values."""
        return next(iter(self.valuations.values())).evaluations

    @property
    def seconds(self) -> float:
        """Time that they took, of one core."""
        return next(iter(self.valuations.values())).seconds

    def reliability(self) -> dict[str, float]:
        """Return the split-half Spearman correlation by utility."""
        return {utility: valuation.reliability() for utility, valuation in self.valuations.items()}

    def digest(self) -> str:
        """Return a short hash of the values, which tells references apart."""
        values = np.stack([valuation.values for valuation in self.valuations.values()])
        return hashlib.sha256(values.tobytes()).hexdigest()[:12]


def read(store: Store, task: str, seed: int = 0) -> Reference:
    """Return the reference of a task from all of its blocks.

    Parameters
    ----------
    store : Store
        Where 'inrun-bench reference' put it.
    task : str
        Name of the task.
    seed : int
        Its seed.

    Returns
    -------
    Reference

    Raises
    ------
    ValueError
        If there is none.
    """
    blocks = [rows for _, rows in _blocks(store, task, seed)]
    if not blocks:
        raise ValueError(
            f"there is no reference for task {task!r}, seed {seed}, in {str(store.root)!r}; "
            f"make it with 'inrun-bench reference --task {task} --seed {seed}'"
        )
    rows = pd.concat(blocks)
    cost = rows[rows["metric"] == "utilities"].groupby("utility")[["evaluations", "seconds"]].sum()
    values = rows[rows["metric"] == "value"]
    valuations = {}
    for utility in values["utility"].unique():
        own = values[values["utility"] == utility].groupby("sample")
        means = own[["value", "even", "odd"]].mean()
        valuations[str(utility)] = Valuation(
            values=means["value"].to_numpy(),
            stderr=np.sqrt(own["stderr"].agg(lambda e: np.square(e).sum())).to_numpy() / len(blocks),
            evaluations=int(cost["evaluations"][utility]),
            seconds=float(cost["seconds"][utility]),
            method="reference",
            halves=means[["even", "odd"]].to_numpy().T,
        )
    return Reference(task, seed, valuations, str(values["identity"].iloc[0]), len(blocks))


def exists(store: Store, task: str, seed: int = 0) -> bool:
    """Return whether there is a reference of the task."""
    return store.has(block(task, seed, 0))


def extend(
    store: Store,
    task: str,
    seed: int = 0,
    *,
    reliability: float = 0.99,
    seconds: float = 3600.0,
    jobs: int = -1,
    backend: str = "local",
    scheduler: str | None = None,
) -> Reference:
    """Add blocks to the reference of a task until it is reliable for all utilities, or the time is up.

    Parameters
    ----------
    store : Store
        Where the blocks are, and go.
    task, seed
        What the values are of.
    reliability : float
        Split-half Spearman correlation to be reached.
    seconds : float
        When to stop all the same: no block is started after that.
    jobs, backend, scheduler
        As in :func:`inrun_bench.runner.run`; a round makes one block a process, and twice as many as there are when
        they are far from enough.

    Returns
    -------
    Reference

    Raises
    ------
    RuntimeError
        If a block fails; those before it are kept.
    """
    start = time.perf_counter()
    at_once = cpu_count() if jobs == -1 else jobs
    while True:
        made = len(_blocks(store, task, seed))
        if made:
            reference = read(store, task, seed)
            reached = min(reference.reliability().values())
            late = time.perf_counter() - start > seconds
            if reference.exact or reached >= reliability or late:
                return reference
        wanted = made + (1 if _is_enumerated(task, seed) else at_once)
        outcome = run(
            [block(task, seed, number) for number in range(made, wanted)],
            store,
            jobs=jobs,
            backend=backend,
            scheduler=scheduler,
        )
        if outcome.failed:
            unit, message = outcome.failed[0]
            raise RuntimeError(f"{unit} failed: {message}")


@dataclass(frozen=True)
class Proof:
    """What verification found.

    Attributes
    ----------
    task : str
        Name of the task.
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
    same_game: bool
    retrained: int
    replay_error: float
    errors: Mapping[str, float]

    @property
    def holds(self) -> bool:
        """Whether the reference is what it claims to be."""
        retrained = all(error <= TOLERANCES.get(utility, RETRAINED) for utility, error in self.errors.items())
        return self.replay_error <= REPLAYED and retrained


def verify(store: Store, task: str, seed: int = 0, *, coalitions: int = 64, rng: int | None = None) -> Proof:
    """Replay the estimator on the stored utilities, and retrain random coalitions among those that they belong to.

    Parameters
    ----------
    store : Store
        Where the reference is.
    task, seed
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
        If there is no reference for the task.
    """
    reference = read(store, task, seed)
    game = tasks.load(task, seed).trajectory_game()
    blocks = _blocks(store, task, seed)
    positions = np.random.default_rng(rng).integers(reference.valuations["loss"].evaluations, size=coalitions)
    replay_error, first = 0.0, 0
    drawn, stored = [], []
    for unit, rows in blocks:
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
        same_game=game.identity() == reference.identity,
        retrained=len(drawn),
        replay_error=replay_error,
        errors=dict(zip(game.measures, difference.max(axis=0).tolist(), strict=True)),
    )


def _blocks(store: Store, task: str, seed: int) -> list[tuple[Unit, pd.DataFrame]]:
    """The blocks that are there, from number 0 on."""
    found: list[tuple[Unit, pd.DataFrame]] = []
    while store.has(unit := block(task, seed, len(found))):
        found.append((unit, store.read(unit)))
    return found


def _is_enumerated(task: str, seed: int) -> bool:
    return tasks.load(task, seed).n_train <= MOST_ENUMERATED
