"""A plan: what to run, and how much of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from inrun_bench.reference import references
from inrun_bench.store import Overlay
from tasks import CATALOG

__all__ = ["PROFILES", "Plan", "Profile"]


@dataclass(frozen=True)
class Profile:
    """How much work the experiments do.

    Attributes
    ----------
    seeds : tuple of int
        Seeds of the tasks.
    reference_permutations : mapping of str to int
        Permutations behind a task's reference values; ``"default"`` is for tasks not named. A multiple of
        ``10 * reference_blocks``: five shifts and their reverses make a draw.
    reference_blocks : int
        Independent parts of a reference, an even number: the even against the odd ones give its split-half reliability.
    step_permutations : int
        Permutations for the Shapley values of a step game with more than 12 players; even.
    moments : mapping of str to tuple of float
        When step games are looked at, as shares of the training run, by recipe.
    rate_factors : mapping of str to tuple of float
        Learning rates of the step games, in units of the recipe's own, by recipe.
    removal_draws : int
        Random removals behind the band of the removal curves.
    timing_repeats : int
        Rounds of the overhead experiment.
    workloads : mapping of str to int
        Large models whose steps the overhead experiment times, and its rounds of each.
    estimator_budgets : mapping of str to int
        Trainings per sample that the estimators experiment spends on a task, at most; ``"default"`` as above.
    repetitions : int
        Runs of each estimator there.
    tasks, methods : tuple of str
        What runs where none is named on the command line; where empty, all that there are, of other packages too, but
        for tasks that are large.
    """

    seeds: tuple[int, ...]
    reference_permutations: Mapping[str, int]
    reference_blocks: int
    step_permutations: int
    moments: Mapping[str, tuple[float, ...]]
    rate_factors: Mapping[str, tuple[float, ...]]
    removal_draws: int
    timing_repeats: int
    workloads: Mapping[str, int]
    estimator_budgets: Mapping[str, int]
    repetitions: int
    tasks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()

    def permutations_for(self, task: str) -> int:
        """Return the number of permutations behind the reference values of `task`."""
        return self.reference_permutations.get(task, self.reference_permutations["default"])

    def budget_for(self, task: str) -> int:
        """Return the trainings per sample that the estimators experiment spends on `task`."""
        return self.estimator_budgets.get(task, self.estimator_budgets["default"])


ADAMW_MOMENTS = (0.0, 0.02, 0.04, 0.06, 0.1, 0.2, 0.4, 0.7, 1.0)  # of 50 steps: 0, 1, 2, 3, 5, 10, 20, 34, 49

PROFILES = {
    "quick": Profile(
        seeds=(0, 1, 2),
        reference_permutations={"breast-cancer-logreg": 240, "digits-mlp": 80, "default": 40},
        reference_blocks=4,
        step_permutations=40,
        moments={"sgd": (0.0, 0.25, 0.5, 0.75, 1.0), "adamw": ADAMW_MOMENTS},
        rate_factors={"sgd": (0.2, 1.0, 5.0, 10.0), "adamw": (1.0,)},
        removal_draws=20,
        timing_repeats=9,
        workloads={"gpt-64": 5, "gpt-256": 4, "mlp": 9, "cnn": 5},
        estimator_budgets={"mnist-cnn": 4, "default": 20},
        repetitions=2,
        tasks=("breast-cancer-logreg", "digits-mlp", "mnist-mlp"),
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
    "standard": Profile(
        seeds=(0, 1, 2, 3, 4),
        reference_permutations={
            "breast-cancer-logreg": 4000,
            "diabetes-ridge": 4000,
            "digits-mlp": 800,
            "digits-sgd-large-lr": 800,
            "iris-logreg": 4000,
            "wine-logreg": 4000,
            "default": 400,
        },
        reference_blocks=20,
        step_permutations=400,
        moments={"sgd": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0), "adamw": ADAMW_MOMENTS},
        rate_factors={"sgd": (0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0), "adamw": (0.2, 0.5, 1.0, 2.0, 5.0)},
        removal_draws=100,
        timing_repeats=51,
        workloads={"gpt-64": 21, "gpt-256": 21, "gpt-1024": 9, "mlp": 51, "cnn": 21},
        estimator_budgets={"mnist-cnn": 10, "mnist-mlp": 50, "default": 100},
        repetitions=3,
    ),
}

PROFILES["timing"] = dataclasses.replace(  # for the overhead experiment, on a machine that does nothing else
    PROFILES["quick"],
    timing_repeats=25,
    workloads={"gpt-64": 15, "gpt-256": 15, "gpt-1024": 7, "mlp": 25, "cnn": 15},
)

PROFILES["large"] = dataclasses.replace(  # for values, removal and detection: large tasks have no retraining reference
    PROFILES["quick"],
    removal_draws=10,
    tasks=("mnist-mlp-4000", "stdlib-gpt"),
    methods=("random", "inrun-first", "inrun-integrated", "few-run-4", "few-run-8"),
)


@dataclass(frozen=True)
class Plan:
    """Which tasks, methods and seeds the experiments run over, and which references they judge by.

    Attributes
    ----------
    profile : Profile
        How much work the experiments do.
    tasks, methods : tuple of str
        Their names.
    seeds : tuple of int
        Of the tasks.
    reference_folder : Path, optional
        References of one's own, read beside the published ones.
    """

    profile: Profile
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    reference_folder: Path | None = None

    @property
    def references(self) -> Overlay:
        """The references that can be read; ValueError if the folder holds no results."""
        return references(self.reference_folder)

    @property
    def tasks_with_reference(self) -> tuple[str, ...]:
        """The tasks that can be retrained often enough for reference values: those that are not large."""
        return tuple(task for task in self.tasks if not CATALOG[task].large)
