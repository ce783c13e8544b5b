"""A plan: what to run, and how much of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
        ``2 * reference_blocks``.
    reference_blocks : int
        Independent parts of a reference, an even number: the even against the odd ones give its split-half reliability.
    step_permutations : int
        Permutations for the Shapley values of a step game with more than 12 players; even.
    moments : tuple of float
        When step games are looked at, as shares of the training run.
    rate_factors : tuple of float
        Learning rates of the step games, in units of the recipe's own.
    removal_draws : int
        Random removals behind the band of the removal curves.
    timing_repeats : int
        Rounds of the overhead experiment.
    """

    seeds: tuple[int, ...]
    reference_permutations: Mapping[str, int]
    reference_blocks: int
    step_permutations: int
    moments: tuple[float, ...]
    rate_factors: tuple[float, ...]
    removal_draws: int
    timing_repeats: int

    def permutations_for(self, task: str) -> int:
        """Return the number of permutations behind the reference values of `task`."""
        return self.reference_permutations.get(task, self.reference_permutations["default"])


PROFILES = {
    "quick": Profile(
        seeds=(0, 1, 2),
        reference_permutations={"breast-cancer-logreg": 240, "digits-mlp": 80, "default": 40},
        reference_blocks=4,
        step_permutations=40,
        moments=(0.0, 0.1, 0.4, 1.0),
        rate_factors=(0.2, 1.0, 5.0),
        removal_draws=20,
        timing_repeats=9,
    ),
    "standard": Profile(
        seeds=(0, 1, 2, 3, 4),
        reference_permutations={"breast-cancer-logreg": 4000, "digits-mlp": 800, "default": 400},
        reference_blocks=20,
        step_permutations=400,
        moments=(0.0, 0.02, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0),
        rate_factors=(0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
        removal_draws=100,
        timing_repeats=51,
    ),
}


@dataclass(frozen=True)
class Plan:
    """Which tasks, methods and seeds the experiments run over."""

    profile: Profile
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
