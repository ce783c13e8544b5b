"""Finished runs, kept in a folder: what was run once is not run again.

A run is known by all that defines it: the trajectory game (data, architecture and initial weights, batches, recipe,
objective, and the code of layers of one's own, see :meth:`tasks.TrajectoryGame.identity`), the utility, the weights of
the samples, and the code of this package. So a call that was cut off goes on where it was, and one that asks for more
points or coalitions pays for what is new.

**Files**: one for each differentiated run, named by the SHA-256 of what defines it. It holds the utility and the n
derivatives, float64, and before them a SHA-256 of name and content: a file that is damaged is not believed, and its run
is made again. Files appear whole. Utilities of plain trainings on coalitions are kept beside them, in a
:class:`baselines.UtilityStore`.

**Processes**: any number may use a folder at the same time, of one machine where it comes to plain trainings (see
:mod:`baselines.store`). Two that need the same run at the same time both make it.

**What holds**: a kept run comes back to the last bit. Runs are differentiated in chunks, and which runs share a chunk
changes them by rounding; so what a resumed call returns is that of an uninterrupted one, to rounding. What is lost with
a process is the chunk that it was at.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baselines import UtilityStore
from inrun_bench.adjoint.checkpoints import Storage
from inrun_bench.adjoint.utilities import Utility
from inrun_bench.runs.atomic import replacing
from tasks import Task, TrajectoryGame
from tasks.code_identity import code_identity
from tasks.data import HeldOut

__all__ = ["RunCache", "run_cache"]

DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class RunCache:
    """The finished runs of one task, utility and split; see :func:`run_cache`.

    Attributes
    ----------
    folder : Path
        Where they are, with those of others.
    identity : str
        What they have in common: with the weights of the samples it defines a run.
    """

    folder: Path
    identity: str

    def read(self, weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]] | None:
        """Return the utility and the derivatives, float64 [n], at `weights` [n]; None where they are not to be had."""
        path = self._path(weights)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        digest, body = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if digest != _digest(path, body):
            return None
        numbers = np.frombuffer(body, "<f8").astype(np.float64)
        return float(numbers[0]), numbers[1:]

    def write(
        self, weights: NDArray[np.float64], utilities: NDArray[np.float64], gradients: NDArray[np.float64]
    ) -> None:
        """Keep the utilities [m] and derivatives [m, n] of runs at `weights` [m, n].

        Raises
        ------
        OSError
            If the folder cannot be written; the message names it.
        """
        for row, utility, gradient in zip(weights, utilities, gradients, strict=True):
            path, body = self._path(row), np.append(utility, gradient).astype("<f8").tobytes()
            with _naming(self.folder), replacing(path) as partial:
                partial.write_bytes(_digest(path, body) + body)

    def check_room(self) -> None:
        """Raise OSError, which names the folder, if nothing can be written there: before a run, and not after it."""
        with _naming(self.folder), tempfile.TemporaryFile(dir=self.folder):
            pass

    def progress(self, weights: NDArray[np.float64]) -> str:
        """Return how many of the runs at `weights` [m, n] are kept, and where, in words."""
        there = sum(self._path(row).exists() for row in weights)
        return f"{there} of the {len(weights)} runs are kept in {str(self.folder)!r}"

    def trained(
        self, coalitions: NDArray[np.bool_], train: Callable[[NDArray[np.bool_]], NDArray[np.float64]]
    ) -> NDArray[np.float64]:
        """Return the utilities, float64 [m], of plain trainings on `coalitions` [m, n]: those kept, others of `train`.

        Raises
        ------
        baselines.store.StoreError
            If what was kept is damaged.
        """
        store = UtilityStore(self.folder / "trainings.db")
        utilities = store.evaluate(self.identity, coalitions, lambda missing: train(missing)[:, None])
        return np.ascontiguousarray(utilities[:, 0])

    def _path(self, weights: NDArray[np.float64]) -> Path:
        definition = self.identity.encode() + weights.astype("<f8").tobytes()
        return self.folder / f"{hashlib.sha256(definition).hexdigest()}.run"


def run_cache(
    storage: Storage, task: Task, utility: Utility, split: HeldOut, run: Callable[..., object]
) -> RunCache | None:
    """Return the runs of a task that are kept in the folder ``storage.runs``, which is made; None where there is none.

    They are runs by the code behind `run`: those of other code are not taken for them.

    Raises
    ------
    ValueError
        If the utility is a function, or the code of this package was changed after it was imported.
    OSError
        If the folder cannot be made; the message names it.
    """
    if storage.runs is None:
        return None
    if not isinstance(utility, str):
        raise ValueError(
            "utility must be a name where runs are kept (Storage(runs=...)), got a function: nothing tells it from "
            "another function, which would be given its runs"
        )
    folder = Path(storage.runs)
    with _naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    identity = TrajectoryGame(task, split=split).identity()
    return RunCache(folder, f"{identity} {utility} {code_identity(run)}")


def _digest(path: Path, body: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + body).digest()


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Say which folder it is that the system complains about."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"runs cannot be kept in {str(folder)!r}: {error.strerror}") from error
