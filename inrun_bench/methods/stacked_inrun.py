r"""In-run values of first order for many runs of a small model at once: one stack of models, one entry a run.

**Mathematics.** In a step of rate :math:`\eta` on the batch B, sample i scores

.. math:: \eta \, c \, \Big\langle \frac{1}{|B|} \nabla \ell_i(w), \nabla \ell_{val}(w) \Big\rangle,

its contribution to the gradient that SGD receives, times the derivative of the update, along the gradient of the
validation loss (In-Run Data Shapley, arXiv 2406.11011, section 4.1; a positive score helps). c is the factor by which
the whole batch's gradient was clipped. Momentum carries over what was received and leaves the derivative as it is;
Nesterov's, :math:`\mu`, multiplies it by :math:`1 + \mu`. The scores of a batch are one forward-mode derivative of its
losses in direction :math:`\nabla \ell_{val}`.

These are the values of ``InRunShapley(order="first")`` on each run, to rounding, without its accounts, checks, and
Python for each layer, step and run. Adam's derivative depends on the gradient itself: use the engine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import jvp, vmap

from tasks import Recipe, Task, stacks

__all__ = ["first_order_values"]

JVP = 2  # a forward-mode derivative holds another number for each


def first_order_values(runs: Sequence[Task], *, memory_bytes: int | None = None) -> NDArray[np.float64]:
    """Return the in-run values of first order, in nats of validation loss, of each run.

    Parameters
    ----------
    runs : sequence of Task
        The same task with other seeds of weights and batches, see :meth:`tasks.Task.rerun`. Its optimiser is SGD.
    memory_bytes : int, optional
        What the runs that are made at the same time may take. Default: half of what is free.

    Returns
    -------
    float64 [len(runs), n_train]

    Raises
    ------
    ValueError
        If the optimiser is another one, or `memory_bytes` is too small for one run.
    """
    task = runs[0]
    if task.recipe.optimizer != "sgd":
        raise ValueError(
            f"runs must be those of SGD, whose update is linear in the gradient, got {task.recipe.optimizer!r}; "
            "inrun_bench.InRunShapley values a run of any element-wise optimiser"
        )
    values = np.empty((len(runs), task.n_train))
    models = [run.model().to(task.train.x.device) for run in runs]
    for alike in stacks.grouped_by_untrained(models):
        program = stacks.program_of(models[alike[0]], task.objective, task.train.x[:1])
        size = _stack_size(program, stacks.stack_of(models[alike[0]], 1), task, memory_bytes)
        for start in range(0, len(alike), size):
            rows = alike[start : start + size]
            stack = stacks.stack_of_models([models[row] for row in rows])
            values[rows] = _valued(program, stack, [runs[row] for row in rows])
    return values


def _valued(program: stacks.Program, stack: stacks.Stack, runs: Sequence[Task]) -> NDArray[np.float64]:
    """Train the stack, one run an entry, and return the sums of the scores, float64 [runs, n_train]."""
    task, device = runs[0], runs[0].train.x.device
    steps = [torch.stack(indices).to(device) for indices in zip(*(run.batches() for run in runs), strict=True)]
    descent = stacks.Descent(program, stack, task.recipe, len(steps))
    judges = torch.full((len(runs), len(task.validation)), 1 / len(task.validation)).to(next(iter(stack.values())))
    values = torch.zeros(len(runs), task.n_train, dtype=torch.float64, device=device)
    for number, index in enumerate(steps):
        x, y = task.train.x[index], task.train.y[index]
        weights = torch.full(index.shape, 1 / index.shape[1]).to(judges)
        probe = program.gradients(stack, task.validation.x[None], task.validation.y[None], judges)

        def losses(stack: stacks.Stack, x: Tensor = x, y: Tensor = y) -> Tensor:
            return vmap(task.objective.losses)(program.outputs(stack, x).movedim(-1, 1), y)

        slopes: Tensor = jvp(losses, (stack,), (probe,))[1]
        scores = slopes * weights * _derivative(task.recipe, number, len(steps))
        if task.recipe.clip_norm is not None:
            scores *= stacks.clip_factors(program.gradients(stack, x, y, weights), task.recipe.clip_norm)[:, None]
        values.scatter_add_(1, index, scores.double())
        descent.step(x, y, weights)
    return values.cpu().numpy()


def _derivative(recipe: Recipe, step: int, n_steps: int) -> float:
    """Return the derivative of SGD's update by the gradient that it receives."""
    return recipe.rate(step, n_steps) * (1 + recipe.momentum * recipe.nesterov)


def _stack_size(program: stacks.Program, model: stacks.Stack, task: Task, memory_bytes: int | None) -> int:
    batch = task.train.x[: task.recipe.batch_size]
    each = stacks.footprint(
        program,
        model,
        task.validation.x,
        copies=stacks.optimizer_copies(task.recipe.build_optimizer) + JVP,
        n_judged=len(task.validation),
        own_data=JVP * batch.nbytes + 8 * task.n_train,
    )
    return stacks.stack_size(each, task.train.x.device, memory_bytes)
