r"""Values averaged over the chance of a run: initial weights and batch order.

What one run says of a sample is in part about that run. The mean of R runs of other seeds estimates what the sample is
worth in a run yet to be made,

.. math:: \bar\phi_i = \frac1R \sum_{r=1}^R \phi_i(r), \qquad
          \mathrm{stderr}_i^2 = \frac{1}{R (R - 1)} \sum_r (\phi_i(r) - \bar\phi_i)^2,

the runs being independent and identically distributed. The error is that of chance, not the bias of a method.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines import Valuation
from baselines.draws import Moments
from tasks import Task

__all__ = ["drawn_seeds", "mean_over_runs", "moments_of_runs"]


def mean_over_runs(task: Task, seeds: Sequence[int], method: Callable[[Task], Valuation]) -> Valuation:
    """Return the mean of a method's values over runs of the task, one for each seed.

    Parameters
    ----------
    task : Task
        Its data are those of all runs.
    seeds : sequence of int
        Of initial weights and batch orders; see :meth:`tasks.Task.run_seeds`.
    method : callable
        From a task to a valuation.

    Returns
    -------
    Valuation
        `stderr` and `halves` are of the spread over seeds, None where there is just one; `evaluations` is the sum over
        runs. `parameters` are those of a run, in the mean where they are numbers that differ, left out where they are
        anything else that differs; and ``seeds``.
    """
    started = time.perf_counter()
    runs = [method(task.rerun(seed)) for seed in seeds]
    moments = moments_of_runs([run.values for run in runs])
    return Valuation(
        values=moments.mean,
        stderr=moments.stderr(),
        evaluations=sum(run.evaluations for run in runs),
        seconds=time.perf_counter() - started,
        method=runs[0].method,
        parameters={**_common([run.parameters for run in runs]), "seeds": tuple(seeds)},
        halves=moments.halves(),
    )


def drawn_seeds(seed: np.random.SeedSequence, runs: int) -> tuple[int, ...]:
    """Return seeds of runs, drawn from a method's stream: others than :meth:`tasks.Task.run_seeds` counts off.

    So a method that averages over runs shares none with a game that does, which would flatter it.
    """
    return tuple(seed.generate_state(runs, np.uint64).tolist())


def moments_of_runs(values: Sequence[NDArray[np.float64]]) -> Moments:
    """Return mean and spread of the values, float64 [n] each, of runs."""
    moments = Moments(len(values[0]))
    for of_run in values:
        moments = moments.with_draw(of_run)
    return moments


def _common(parameters: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    common: dict[str, Any] = {}
    for name, first in parameters[0].items():
        given = [of_run[name] for of_run in parameters]
        if all(value == first for value in given):
            common[name] = first
        elif all(isinstance(value, Real) for value in given):
            common[name] = float(np.mean(given))
    return common
