r"""Adam without its cliffs: the run that is differentiated in place of a run of Adam or AdamW.

**Why.** Adam divides by the root of the second moment, so that its step tells little of how large a gradient is, and
in the first steps nothing but its sign. A utility made of such steps is flat along the diagonal and falls off cliffs
where a batch's gradient changes sign: retraining averages over cliffs, a derivative does not see them. With a larger
:math:`\epsilon`,

.. math:: \frac{\hat m}{\sqrt{\hat v} + \epsilon}, \qquad
    \epsilon = c \, \Big( \frac{1}{T P} \sum_{t=1}^{T} \lVert g_t \rVert^2 \Big)^{1/2},

a gradient that is small beside the run's root mean square counts in proportion to its size, as it does on the average
over coalitions, and one that is large is divided as before. c is the *smoothing*; :math:`g_t`, of P numbers, is what
the optimiser receives in step t of the run on all samples.

**Bias.** The values are those of the smoothed game. c = 0 differentiates the recipe as it is. How they agree with
retraining at c = 0.3, the default, is in docs/adjoint.md; only :mod:`~inrun_bench.adjoint.control_variate` is unbiased.

**Cost**: one plain run, for the root mean square.
"""

from __future__ import annotations

import dataclasses
import math

import torch

from tasks import Task

__all__ = ["SMOOTHING", "smoothed"]

SMOOTHING = 0.3


def smoothed(task: Task, smoothing: float) -> Task:
    """Return the task with Adam's eps raised; one with another optimiser, or at no smoothing, as it is.

    Parameters
    ----------
    task : Task
        Data, model and recipe.
    smoothing : float
        The eps in units of the root mean square of the run's gradients; at least 0. A recipe's own eps is never
        lowered.

    Raises
    ------
    ValueError
        If `smoothing` is negative or not finite, or the run diverges.
    """
    if not (math.isfinite(smoothing) and smoothing >= 0):
        raise ValueError(f"smoothing must be a number of at least 0, got {smoothing!r}")
    if task.recipe.optimizer == "sgd" or smoothing == 0:
        return task
    eps = max(task.recipe.eps, smoothing * _gradient_size(task))
    if not math.isfinite(eps):
        raise ValueError(f"the run on all samples of task {task.name!r} diverged; a smaller learning rate may help")
    return dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, eps=eps))


def _gradient_size(task: Task) -> float:
    """Return the root mean square of the gradients over all steps and parameters of the run on all samples."""
    model = task.model().to(task.train.x.device)
    optimizer = task.optimizer(model)
    squares = []
    for index in task.batches():
        task.loss(model, task.train, index).backward()
        optimizer.step()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        squares.append(float(gradient.double().square().mean()))
        optimizer.zero_grad()
    return math.sqrt(sum(squares) / len(squares))
