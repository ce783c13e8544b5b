"""A plan: what to run, and how much of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tasks import CATALOG

__all__ = ["PROFILES", "Plan", "Profile"]

K = TypeVar("K")


@dataclass(frozen=True)
class Profile:
    """What runs where nothing is named; how much work an experiment does stands in the experiment's own `KNOBS`.

    Attributes
    ----------
    seeds : tuple of int
        Seeds of the tasks.
    tasks, methods : tuple of str
        Where empty, all that there are, of other packages too, but for tasks that are large, and methods that take as
        many trainings as one gives them.
    like : str
        The profile whose knobs serve an experiment that has none of its own for this one.
    """

    seeds: tuple[int, ...]
    tasks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    like: str = "quick"


QUICK = (0, 1, 2)

PROFILES = {
    "quick": Profile(
        seeds=QUICK,
        tasks=("breast-cancer-logreg", "digits-mlp", "wine-logreg"),
        methods=(
            "random",
            "inrun-first",
            "inrun-second",
            "inrun-integrated",
            "few-run-4",
            "knn",
            "mc-2",
            "mc-10",
            "mc-shifted-10",
            "tmc-10",
        ),
    ),
    "standard": Profile(seeds=(0, 1, 2, 3, 4), like="standard"),
    "paper": Profile(seeds=(0, 1, 2, 3, 4), like="standard"),
}
"""``quick`` takes minutes on two cores, ``standard`` an afternoon, ``paper`` a day or a cluster."""

PROFILES["timing"] = PROFILES["quick"]
"""For the overhead experiment, on a machine that does nothing else."""

PROFILES["large"] = Profile(  # for values, removal and detection: large tasks have no retraining reference
    seeds=QUICK,
    tasks=("mnist-mlp-4000", "stdlib-gpt"),
    methods=("random", "inrun-first", "inrun-integrated", "few-run-4", "few-run-8"),
)


@dataclass(frozen=True)
class Plan:
    """Which tasks, methods and seeds the experiments run over, and which references they judge by.

    Attributes
    ----------
    profile : str
        Its name among :data:`PROFILES`: how much work the experiments do.
    tasks, methods : tuple of str
        Their names.
    seeds : tuple of int
        Of the tasks.
    reference_folder : Path, optional
        References of one's own, read beside the published ones.
    """

    profile: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    reference_folder: Path | None = None

    def of_profile(self, knobs: Mapping[str, K]) -> K:
        """Return an experiment's knobs for the plan's profile, or for the one that this is like."""
        if self.profile in knobs:
            return knobs[self.profile]
        return knobs[PROFILES[self.profile].like]

    @property
    def tasks_with_reference(self) -> tuple[str, ...]:
        """The tasks that can be retrained often enough for reference values: those that are not large."""
        return tuple(task for task in self.tasks if not CATALOG[task].large)
