"""What a method is: a function that values samples, and what tables and figures call it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from baselines import Valuation
from baselines.arguments import whole_number
from baselines.convergence import StoppingRule
from baselines.grouped import numbered_groups
from tasks import Task

__all__ = ["OPTIONS", "Method"]

OPTIONS = {
    "groups": "values groups of samples",
    "budget": "spends a budget of trainings",
    "stop": "can be stopped early",
}
"""Keyword arguments that a method's function may have, and what the method then does."""


@dataclass(frozen=True)
class Method:
    """A method of data valuation.

    Parameters
    ----------
    run : callable
        ``run(task, seed) -> Valuation``: a value for each training sample of the task; `seed` is a
        ``numpy.random.SeedSequence``, the only source of random numbers. Of the keyword arguments `groups`, `budget`
        and `stop`, see :meth:`__call__`, it has those that it can do something with, each with a default of None.
    label : str
        What tables and figures call it.
    family : str
        The idea that it shares with others, a name of :data:`inrun_bench.report.looks.FAMILIES`: how it looks follows
        from it.

    Examples
    --------
    >>> def norms(task, seed, *, groups=None):
    ...     '''Value samples, or groups of them, by the sizes of their features.'''
    >>> sorted(Method(norms, "norms").options)
    ['groups']
    """

    run: Callable[..., Valuation]
    label: str
    family: str = "other"

    @property
    def options(self) -> frozenset[str]:
        """Those of :data:`OPTIONS` that the method takes."""
        try:
            own = inspect.signature(self.run, follow_wrapped=False).parameters
            passes_on = any(each.kind is each.VAR_KEYWORD for each in own.values())
            parameters = inspect.signature(self.run).parameters if passes_on else own
        except ValueError:  # of a function in C that does not say
            return frozenset()
        return frozenset(parameters.keys() & set(OPTIONS))

    def __call__(
        self,
        task: Task,
        seed: np.random.SeedSequence | int,
        *,
        groups: ArrayLike | None = None,
        budget: int | None = None,
        stop: StoppingRule | None = None,
    ) -> Valuation:
        """Value the samples of a task, or groups of them.

        Parameters
        ----------
        task : Task
            What is trained, on what.
        seed : SeedSequence or int
            The source of chance.
        groups : int [n_train], optional
            The group of each training sample, all of 0 .. k - 1: these are valued in their place.
        budget : int, optional
            Trainings that may be spent, in place of as many as the method takes when nobody says.
        stop : StoppingRule, optional
            Is shown every estimate, its evaluations in trainings, and ends the method by returning True; see
            `baselines.convergence`.

        Returns
        -------
        Valuation
            Of each sample, or of each group.

        Raises
        ------
        ValueError, TypeError
            If the method does not take what it is given, groups are not numbered so, `budget` is no whole number, or
            `stop` no function.
        """
        given: dict[str, Any] = {"groups": groups, "budget": budget, "stop": stop}
        given = {option: thing for option, thing in given.items() if thing is not None}
        missing = [option for option in given if option not in self.options]
        if missing:
            raise ValueError(f"method {self.label!r} takes no {' and no '.join(missing)}")
        if groups is not None:
            given["groups"] = numbered_groups(groups, task.n_train)
        if budget is not None:
            given["budget"] = whole_number("budget", budget)
        if stop is not None and not callable(stop):
            raise TypeError(f"stop must be a rule, a function of an estimate, got {type(stop).__name__}")
        source = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        return self.run(task, source, **given)
