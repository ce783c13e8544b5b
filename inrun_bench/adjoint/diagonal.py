r"""Shapley values from a few differentiated runs: the Aumann-Shapley value of the trajectory game.

**Mathematics.** Extend the game to weights :math:`x \in [0, 1]^n` (:mod:`~inrun_bench.adjoint.sweep`). The
Aumann-Shapley value (Aumann, Shapley: *Values of Non-Atomic Games*, 1974) is the derivative averaged along the
diagonal,

.. math:: \phi_i = \int_0^1 \frac{\partial U}{\partial x_i}(s, \dots, s)\, ds
          \approx \sum_{k=1}^{K} \omega_k \frac{\partial U}{\partial x_i}(s_k, \dots, s_k),

by K-point Gauss-Legendre quadrature: exact where the derivative is a polynomial in s of degree 2 K - 1. The values add
up to :math:`U(1) - U(0)`, up to the error of the quadrature, where the run is smooth.

**Bias.** Where U is quadratic in x, the values are the Shapley values of the game. Else two terms of higher order
separate them: a random coalition strays from the diagonal, :math:`\tfrac12 \sum_{j \ne i}
U_{ijj}\, s (1 - s)`, and a player present in whole is not a sum of its parts, :math:`(\tfrac12 - s)\, U_{ii}(s)`,
integrated over s. Both are of the order of one player's share of the run: with few players, and at learning rates where
one sample moves the model far, they show.

**Variance**: none; the run is deterministic. Averaged over runs of several seeds, that of their chance
(:mod:`inrun_bench.methods.mean_over_runs`). **Cost**: K differentiated runs, batched together, and two plain ones for
the diagnostics; as many for each seed.

**Diagnostics**, in the valuation's `parameters`; none needs retraining on coalitions:

- ``sum`` and ``gain``: what the values add up to, and :math:`U(1) - U(0)` as measured. They differ by the error of the
  quadrature, which more points take away; of Adam, by what smoothing changes; and by what no derivative sees: jumps.
  Where a ReLU unit switches for a sample, its gradient jumps, so does the next state, and U with it as s passes. A
  small gap says nothing of the bias.
- ``roughness``: the largest turn of the derivative from one point to the next, as one minus the correlation over the
  players; 0 where players keep their proportions, 1 where nothing is left of them. Where a run is "metasmooth"
  (Engstrom et al., *Optimizing ML Training with Metagradient Descent*, 2025, arXiv 2503.13751) the derivative turns
  gently, and less from point to point as these are added; where it does not, a derivative tells of its own
  neighbourhood and of little else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from baselines import Valuation
from baselines.arguments import whole_number
from inrun_bench.adjoint.checkpoints import AUTOMATIC, Storage
from inrun_bench.adjoint.relaxed_game import RelaxedGame, relaxed_game
from inrun_bench.adjoint.smoothing import SMOOTHING
from inrun_bench.adjoint.sweep import TRAININGS_A_RUN
from inrun_bench.adjoint.utilities import Utility
from inrun_bench.methods.mean_over_runs import mean_over_runs
from tasks import Task
from tasks.data import HeldOut

__all__ = ["few_run_shapley", "gauss_legendre", "unrolled_influence"]


def few_run_shapley(
    task: Task,
    points: int = 4,
    *,
    smoothing: float = SMOOTHING,
    utility: Utility = "loss",
    split: HeldOut = "validation",
    groups: ArrayLike | None = None,
    storage: Storage = AUTOMATIC,
    seeds: int | Sequence[int] | None = None,
) -> Valuation:
    """Shapley values of the trajectory game, approximated by a few differentiated training runs.

    Parameters
    ----------
    task : Task
        Data, model and recipe.
    points : int
        Differentiated runs K: points of the quadrature along the diagonal. 4 do for smooth runs; see the diagnostics.
    smoothing : float
        How far Adam's and AdamW's eps is raised before runs are differentiated, at least 0; see
        :mod:`inrun_bench.adjoint.smoothing`. It changes nothing for SGD.
    utility : str or callable
        ``"loss"``, ``"expected-accuracy"``, or a differentiable function of outputs [n, ...] and targets [n, ...].
    split : {"validation", "test"}
        Samples on which the trained model is judged.
    groups : int [n_train], optional
        Player to which each sample belongs, 0 .. k - 1; default: each is a player of its own.
    storage : Storage
        How the states of the runs are kept, and whether finished runs are, so that a later call finds them.
    seeds : int or sequence of int, optional
        Average over games of other initial weights and batch orders: how many, or their seeds, as in
        :meth:`tasks.Task.run_seeds`. Default: the game of the task's own run, without randomness.

    Returns
    -------
    Valuation
        `evaluations` counts runs: K differentiated ones and the two plain ones behind ``gain``. `parameters` say what
        a differentiated one costs, and hold the diagnostics ``sum``, ``gain`` and ``roughness`` (see the module).
        With `seeds`, all of that for each, diagnostics in the mean; `stderr` and `halves` are of the spread over seeds
        (:mod:`inrun_bench.methods.mean_over_runs`), None with one seed.

    Raises
    ------
    TypeError, ValueError, OSError
        As :func:`inrun_bench.adjoint.sweep.differentiate`, and if `points` is no whole number of at least 1.
    """
    if seeds is not None:
        options: Any = {"smoothing": smoothing, "utility": utility, "split": split, "groups": groups}
        own = partial(few_run_shapley, points=points, storage=storage, **options)
        return mean_over_runs(task, task.run_seeds(seeds), own)
    started = perf_counter()
    nodes, shares = gauss_legendre(whole_number("points", points))
    game = relaxed_game(task, utility, split, groups, storage, smoothing)
    runs = game.along_diagonal(nodes)
    values = shares @ runs.gradients
    empty, grand = game(np.repeat([[False], [True]], game.n_players, axis=1)).tolist()
    return Valuation(
        values=values,
        stderr=None,
        evaluations=int(points) + 2,
        seconds=perf_counter() - started,
        method="few_run_shapley",
        parameters={
            "points": int(points),
            "smoothing": float(smoothing),
            "trainings_a_differentiated_run": TRAININGS_A_RUN,
            "sum": float(values.sum()),
            "gain": grand - empty,
            "roughness": _largest_turn(runs.gradients),
            "states": runs.way,
            "stored_bytes": runs.stored_bytes,
        },
    )


def unrolled_influence(
    task: Task,
    *,
    utility: Utility = "loss",
    split: HeldOut = "validation",
    groups: ArrayLike | None = None,
    storage: Storage = AUTOMATIC,
) -> Valuation:
    """Influence of each sample on this one run: the derivative of the final utility where all samples count in full.

    It is the first-order estimate of leaving a sample out (unrolled differentiation), and no Shapley value: it is blind
    to what a sample is worth while the others are few.

    Parameters
    ----------
    task, utility, split, groups, storage
        As in :func:`few_run_shapley`.

    Returns
    -------
    Valuation
        `evaluations` is 1, a differentiated run; `parameters` say what it costs.

    Raises
    ------
    ValueError, OSError
        As :func:`inrun_bench.adjoint.sweep.differentiate`.

    References
    ----------
    Hara, Nitanda, Maehara, Data Cleansing for Models Trained with SGD, NeurIPS 2019, arXiv 1906.08473.
    """
    started = perf_counter()
    game: RelaxedGame = relaxed_game(task, utility, split, groups, storage, smoothing=0.0)
    run = game.along_diagonal(np.ones(1))
    return Valuation(
        values=run.gradients[0],
        stderr=None,
        evaluations=1,
        seconds=perf_counter() - started,
        method="unrolled_influence",
        parameters={
            "trainings_a_differentiated_run": TRAININGS_A_RUN,
            "states": run.way,
            "stored_bytes": run.stored_bytes,
        },
    )


def gauss_legendre(points: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the nodes and weights, float64 [points] each, of Gauss-Legendre quadrature on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return (nodes + 1) / 2, weights / 2


def _largest_turn(gradients: NDArray[np.float64]) -> float:
    """Return one minus the least correlation of neighbouring rows of [K, n]; 0 where no two rows vary."""
    centred = gradients - gradients.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1)
    products, scales = np.sum(centred[1:] * centred[:-1], axis=1), lengths[1:] * lengths[:-1]
    correlations = np.divide(products, scales, out=np.ones_like(scales), where=scales > 0)
    return float(1 - correlations.min(initial=1.0))
