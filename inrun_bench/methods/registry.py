"""All methods there are, by name, and what one makes of a task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

import inrun_bench.methods
from baselines import Valuation
from baselines.grouped import numbered_groups
from inrun_bench.methods.method import Method
from inrun_bench.runs.unit import REFERENCE
from tasks import Task
from tasks.registry import Registry

__all__ = ["METHODS", "method_names", "method_of", "valued"]

Run: TypeAlias = Callable[..., Valuation]


_SHOWN = 5  # samples in a message

METHODS: Registry[Method | Run] = Registry(
    "method",
    inrun_bench.methods,
    lambda _name, module: {} if module.__name__ == __name__ else getattr(module, "METHODS", {}),
    group="inrun_bench.methods",
    reserved=(REFERENCE,),
    accepts=callable,
)


def method_of(name: str) -> Method:
    """Return the method of a name; of a package's plain callable, one of no family that is called by its name."""
    found = METHODS[name]
    return found if isinstance(found, Method) else Method(found, label=name)


def method_names(*, taking: str | None = None) -> tuple[str, ...]:
    """Return the names of methods.

    Parameters
    ----------
    taking : str, optional
        An option that they take, of :data:`inrun_bench.methods.method.OPTIONS`. Where None, those that run when none is
        named: all whose size does not depend on a budget.
    """
    if taking is None:
        return tuple(name for name in METHODS if "budget" not in method_of(name).options)
    return tuple(name for name in METHODS if taking in method_of(name).options)


def valued(name: str, task: Task, seed: np.random.SeedSequence, **options: Any) -> Valuation:
    """Return what the method makes of the task.

    Parameters
    ----------
    name : str
        Of the method.
    task, seed, options
        As for :meth:`Method.__call__`.

    Raises
    ------
    TypeError
        If it returns no :class:`baselines.Valuation`.
    ValueError
        If that does not hold one finite value a training sample, or a group; or if the method does not take what it is
        given: the message says which methods do.
    Exception
        Whatever the method raises; a note tells the method and the task.
    """
    method = method_of(name)
    options = {option: given for option, given in options.items() if given is not None}
    for option in options:
        if option not in method.options:
            those = ", ".join(method_names(taking=option))
            raise ValueError(f"method {name!r} takes no {option}; methods that do: {those}")
    groups = options.get("groups")
    n_groups = None if groups is None else int(numbered_groups(groups, task.n_train).max()) + 1
    try:
        answer = method(task, seed, **options)
    except Exception as error:
        error.add_note(f"in method {name!r}, called as method(task, seed) with task {task.name!r}, seed {task.seed}")
        raise
    return _checked(name, answer, task, n_groups)


def _checked(name: str, answer: object, task: Task, n_groups: int | None) -> Valuation:
    n = task.n_train if n_groups is None else n_groups
    players = "training samples" if n_groups is None else "groups"
    if not isinstance(answer, Valuation):
        shape = getattr(answer, "shape", None) or ((len(answer),) if isinstance(answer, list | tuple) else None)
        wrong = f", which must have shape ({n},), and not {tuple(shape)}" if shape and tuple(shape) != (n,) else ""
        raise TypeError(
            f"method {name!r} must return a baselines.Valuation, got {type(answer).__name__}; wrap values as "
            f"Valuation(values, stderr=None, evaluations=..., seconds=..., method={name!r}), with a finite value for "
            f"each of the {n} {players}, in their order{wrong}"
        )
    wrong_values = np.flatnonzero(~np.isfinite(answer.values))
    if answer.values.shape != (n,):
        others = {"validation": len(task.validation), "test": len(task.test)}
        same = [part for part, size in others.items() if size == len(answer.values)]
        advice = f"value i is that of {players[:-1]} i of task {task.name!r}" + (
            f", and there are as many samples in its {' and its '.join(same)} set" if same else ""
        )
    elif wrong_values.size:
        shown = ", ".join(f"{answer.values[i]} of {players.split()[-1][:-1]} {i}" for i in wrong_values[:_SHOWN])
        more = ", ..." if len(wrong_values) > _SHOWN else ""
        advice = f"{shown}{more}; give these a value, or raise an error that says why there is none"
    else:
        return answer
    raise ValueError(
        f"method {name!r} must return {n} finite values, got shape {answer.values.shape} with {wrong_values.size} not "
        f"finite: {advice}"
    )
