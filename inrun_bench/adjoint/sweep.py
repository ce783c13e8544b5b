r"""The adjoint sweep: the final utility of a training run, differentiated by the weights of its samples.

**Mathematics.** Let sample i count :math:`x_i \in [0, 1]` times: in step t the optimiser receives
:math:`g_t = \frac{1}{|B_t|} \sum_{i \in B_t} x_i \nabla \ell_i(w_t)`, and the state (weights and what the optimiser
carries over) becomes :math:`z_{t+1} = F_t(z_t, g_t)`. At :math:`x = 1_S` this is the training of the trajectory game on
coalition S. With :math:`\lambda_T = \partial U / \partial z_T` and, from the last step to the first,

.. math::
    q_t = \Big(\frac{\partial F_t}{\partial g}\Big)^{\!\top} \lambda_{t+1}, \qquad
    \frac{\partial U}{\partial x_i} = \sum_{t:\, i \in B_t} \frac{1}{|B_t|} \langle \nabla \ell_i(w_t), q_t \rangle,
    \qquad
    \lambda_t = \Big(\frac{\partial F_t}{\partial z}\Big)^{\!\top} \lambda_{t+1} + (H_t q_t, 0),

where :math:`H_t` is the Hessian of the weighted batch loss. It is In-Run Data Shapley's form, score = gradient times
probe, with a probe that sees the end of the run in place of the next step's validation loss. A step's score and its
:math:`\lambda_t` come from one vector-Jacobian product of the whole step, whose gradient autograd has recorded ("double
backward"): no Hessian is formed. The derivative is that of the run as it is computed, exact to rounding (Maclaurin,
Duvenaud, Adams: *Gradient-based Hyperparameter Optimization through Reversible Learning*, ICML 2015, arXiv 1502.03492;
for sample weights: Hara, Nitanda, Maehara: *Data Cleansing for Models Trained with SGD*, NeurIPS 2019, arXiv
1906.08473; Bae et al., *Training Data Attribution via Approximate Unrolled Differentiation*, NeurIPS 2024, arXiv
2405.12186). A kink (ReLU) has the derivative that autograd gives it.

The alternative, a forward-mode derivative of the losses in direction :math:`q_t` (its values are the scores, its
gradient is :math:`H_t q_t`), takes as long for SGD; for Adam, whose :math:`q_t` depends on :math:`g_t`, it needs
another backward pass.

**Cost.** A differentiated run takes 5 to 6 plain runs of SGD, stacked alike, and 3 to 6 with momentum or AdamW
(digits-mlp, mnist-mlp and mnist-cnn, one core), one more with states recomputed; all n derivatives come from it.
Memory: see :mod:`~inrun_bench.adjoint.trajectory`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import vmap

from inrun_bench.adjoint.trajectory import AUTOMATIC, Storage, Way, states_held, there_and_back
from inrun_bench.adjoint.updates import State, first_state, updated
from inrun_bench.adjoint.utilities import Utility, utility_of_stacks
from tasks import Recipe, Split, Task, stacks
from tasks.memory import free_bytes
from tasks.objective import Objective
from tasks.stacks.memory import SHARE_OF_FREE_MEMORY, Footprint
from tasks.stacks.objectives import output_gradient
from tasks.trajectory import Part

__all__ = ["TRAININGS_A_RUN", "Differentiated", "DivergedRunError", "differentiate", "utilities_at"]

TRAININGS_A_RUN = 5.5
"""Time of a differentiated run in plain trainings, stacked alike; measured, see the module's docstring."""

GRAPH = 3  # a recorded gradient and its derivative hold about three times what a plain step holds


class DivergedRunError(ValueError):
    """A run, or the derivative swept back through it, is no longer finite.

    Attributes
    ----------
    step : int
        Number of the step, the first being 0.
    weighting : int
        Row of the weights [m, n] that were asked for.
    """

    def __init__(self, what: str, step: int, weighting: int) -> None:
        super().__init__(what, step, weighting)
        self.what, self.step, self.weighting = what, step, weighting

    def __str__(self) -> str:
        return (
            f"{self.what} not finite in step {self.step} of the run with weights[{self.weighting}]; "
            "a smaller learning rate or float64 may help"
        )


@dataclass(frozen=True, eq=False)
class Differentiated:
    """Utilities of m runs, and their derivatives by the weights of the n samples.

    Attributes
    ----------
    utilities : float64 [m]
        Higher is better.
    gradients : float64 [m, n]
        Derivatives by the sample weights.
    way : {"memory", "disk", "recomputed"}
        How the states of the runs were kept.
    stored_bytes : int
        Most that was kept of states at a time.
    """

    utilities: NDArray[np.float64]
    gradients: NDArray[np.float64]
    way: Way
    stored_bytes: int


def differentiate(
    task: Task,
    weights: NDArray[np.float64],
    *,
    utility: Utility = "loss",
    split: Part = "validation",
    storage: Storage = AUTOMATIC,
) -> Differentiated:
    """Train at each of m weightings of the samples and differentiate the final utilities by the weights.

    Parameters
    ----------
    task : Task
        Data, model and recipe.
    weights : float64 [m, n_train]
        How often each sample's gradient counts, in [0, 1]; 0 and 1 are absence and presence in a coalition.
    utility : str or callable
        ``"loss"`` (minus the mean loss), ``"expected-accuracy"`` (of classification: a smooth stand-in for accuracy),
        or a differentiable function of outputs [n, ...] and targets [n, ...].
    split : {"validation", "test"}
        Samples on which the trained model is judged.
    storage : Storage
        How the states of the runs are kept.

    Returns
    -------
    Differentiated

    Raises
    ------
    ValueError
        If the weights are of another shape or outside [0, 1], the utility has no derivative, a layer is random or
        couples samples, or one run does not fit into the memory allowed.
    DivergedRunError
        If a run or its derivative stops being finite.
    OSError
        If the states do not fit on the disk.
    """
    run = _prepared(task, utility, split)
    weights = _checked(weights, task.n_train)
    size, way = _plan(run, storage, len(weights))
    utilities, gradients = np.empty(len(weights)), np.empty(weights.shape)
    for start in range(0, len(weights), size):
        chunk = slice(start, start + size)
        utilities[chunk], gradients[chunk] = _sweep(run, run.tensor(weights[chunk]), way, storage, start)
    held = min(size, len(weights)) * states_held(way, len(run.batches)) * run.state_bytes
    return Differentiated(utilities, gradients, way, held)


def utilities_at(
    task: Task,
    weights: NDArray[np.float64],
    *,
    utility: Utility = "loss",
    split: Part = "validation",
    storage: Storage = AUTOMATIC,
) -> NDArray[np.float64]:
    """Return the utilities of the same runs, float64 [m], without their derivatives; see :func:`differentiate`."""
    run = _prepared(task, utility, split)
    weights = _checked(weights, task.n_train)
    size, _ = _plan(run, storage, len(weights))
    utilities = np.empty(len(weights))
    for start in range(0, len(weights), size):
        chunk = run.tensor(weights[start : start + size])
        state = run.first(len(chunk))
        for number in range(len(run.batches)):
            state = run.step(number, state, chunk, start)
        with torch.no_grad():
            outputs = torch.cat([run.program.outputs(run.stack(state[0]), x) for x in run.judged()], dim=-1)
            utilities[start : start + size] = run.worth(outputs, run.judge.y).cpu()
    return utilities


@dataclass(frozen=True, eq=False)
class _Run:
    """All that a run is made of but the weights of its samples."""

    program: stacks.Program
    model: nn.Module
    shapes: Mapping[str, Sequence[int]]
    objective: Objective
    recipe: Recipe
    train: Split
    judge: Split
    batches: Sequence[Tensor]
    worth: Callable[[Tensor, Tensor], Tensor]

    @property
    def state_bytes(self) -> int:
        """Bytes of one model's state."""
        return sum(row.nbytes for row in self.first(1))

    def tensor(self, weights: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(weights).to(self.train.x.device, next(self.model.parameters()).dtype)

    def first(self, m: int) -> State:
        stack = stacks.stack_of(self.model, m)
        return first_state(self.recipe, torch.cat([parameter.flatten() for parameter in stack.values()]))

    def stack(self, flat: Tensor) -> stacks.Stack:
        """Return the row `flat` of all weights as a stack of models: views of it."""
        m = len(flat) // sum(map(math.prod, self.shapes.values()))
        parts = flat.split([m * math.prod(shape) for shape in self.shapes.values()])
        return {name: part.view(m, *shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        index = self.batches[number]
        return self.train.x[index], self.train.y[index]

    def judged(self) -> Sequence[Tensor]:
        """Return the inputs that judge, a batch at a time, so that judging holds no more than training did."""
        parts: tuple[Tensor, ...] = self.judge.x.split(self.recipe.batch_size)
        return parts

    def step(self, number: int, state: State, weights: Tensor, first_row: int) -> State:
        """Return the state after a step; `first_row` is the number of the first model, for errors."""
        index = self.batches[number]
        gradients = self.program.gradients(self.stack(state[0]), *self.batch(number), weights[:, index] / len(index))
        after = updated(self.recipe, number, state, torch.cat([gradients[name].flatten() for name in self.shapes]))
        self.check("the weights are", after[0], number, len(weights), first_row)
        return after

    def recorded_gradient(self, flat: Tensor, number: int, counted: Tensor) -> Tensor:
        """Return what the optimiser receives in a step as a function of `flat` and the weights `counted` [m, B]."""
        x, y = self.batch(number)
        outputs = self.program.outputs(self.stack(flat), x)
        counted = counted / len(y)
        if outputs.ndim == 3:  # one row of outputs a sample: its gradient is known, and its derivative is cheap
            slopes = output_gradient(self.objective, outputs, y, counted)
            return torch.autograd.grad(outputs, flat, slopes, create_graph=True)[0]
        losses = vmap(self.objective.losses, in_dims=(0, None))(outputs.movedim(-1, 1), y)
        return torch.autograd.grad((losses * counted).sum(), flat, create_graph=True)[0]

    def pulled_back(self, number: int, state: State, weights: Tensor, adjoint: State) -> tuple[State, Tensor]:
        """Return the adjoint before a step, from that after it, and the scores [m, B] of the batch."""
        inputs = tuple(row.detach().requires_grad_() for row in state)
        counted = weights[:, self.batches[number]].requires_grad_()
        after = updated(self.recipe, number, inputs, self.recorded_gradient(inputs[0], number, counted))
        *before, scores = torch.autograd.grad(after, [*inputs, counted], adjoint)
        return tuple(before), scores

    def check(self, what: str, flat: Tensor, number: int, m: int, first_row: int) -> None:
        """Refuse weights, or an adjoint of weights, that are not finite."""
        if flat.sum().isfinite():  # one pass over the numbers instead of five, where all is well
            return
        finite = torch.stack([part.view(m, -1).isfinite().all(1) for part in self.stack(flat).values()]).all(0)
        if not finite.all():
            raise DivergedRunError(what, number, first_row + int(finite.long().argmin()))


def _sweep(
    run: _Run, weights: Tensor, way: Way, storage: Storage, first_row: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return utilities [m] and derivatives [m, n] of runs that fit into memory together."""

    def step(number: int, state: State) -> State:
        return run.step(number, state, weights, first_row)

    last, backwards = there_and_back(run.first(len(weights)), step, len(run.batches), way, storage.directory)
    utilities, slope = _judged(run, last[0])
    adjoint: State = (slope, *(torch.zeros_like(row) for row in last[1:]))
    gradients = torch.zeros(weights.shape, dtype=torch.float64, device=weights.device)
    for number, state in backwards:
        adjoint, scores = run.pulled_back(number, state, weights, adjoint)
        run.check("the derivatives by the weights are", adjoint[0], number, len(weights), first_row)
        gradients.index_add_(1, run.batches[number], scores.double())
    return utilities.double().cpu().numpy(), gradients.cpu().numpy()


def _judged(run: _Run, flat: Tensor) -> tuple[Tensor, Tensor]:
    """Return the utilities [m] of trained models, and their derivatives by the weights, [L]."""
    parts = run.judged()
    with torch.no_grad():
        outputs = torch.cat([run.program.outputs(run.stack(flat), x) for x in parts], dim=-1)
    outputs.requires_grad_()
    utilities = run.worth(outputs, run.judge.y)
    if not utilities.requires_grad:
        raise ValueError("utility must be a differentiable function of the outputs; autograd finds no derivative")
    (slopes,) = torch.autograd.grad(utilities.sum(), outputs)
    leaf, total = flat.detach().requires_grad_(), torch.zeros_like(flat)
    for x, slope in zip(parts, slopes.split(run.recipe.batch_size, dim=-1), strict=True):
        total += torch.autograd.grad(run.program.outputs(run.stack(leaf), x), leaf, slope)[0]
    return utilities.detach(), total


def _prepared(task: Task, utility: Utility, split: Part) -> _Run:
    if split not in get_args(Part):
        raise ValueError(f"split must be one of {', '.join(map(repr, get_args(Part)))}, got {split!r}")
    model = task.model().to(task.train.x.device)
    _check_layers(model)
    judge: Split = getattr(task, split)
    return _Run(
        stacks.program_of(model, task.objective, task.train.x[:1]),
        model,
        {name: p.shape for name, p in model.named_parameters() if p.requires_grad},
        task.objective,
        task.recipe,
        task.train,
        judge,
        [index.to(task.train.x.device) for index in task.batches()],
        utility_of_stacks(utility, task.objective),
    )


def _check_layers(model: nn.Module) -> None:
    for name, layer in model.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"batch norm couples the samples of a batch, so that none of them has a weight of its own in {name!r}; "
                "replace it by nn.GroupNorm"
            )
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0:
            raise ValueError(f"dropout draws anew in each pass, so that {name!r} makes no repeatable run; set p = 0")


def _checked(weights: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim != 2 or weights.shape[1] != n:
        raise ValueError(f"weights must have shape [m, {n}], got {list(weights.shape)}")
    if not ((weights >= 0) & (weights <= 1)).all():
        raise ValueError(f"weights must lie in [0, 1], got {weights.min()} to {weights.max()}")
    return weights


def _plan(run: _Run, storage: Storage, m: int) -> tuple[int, Way]:
    """Return how many runs to differentiate at a time, and how to keep their states."""
    device, n_steps = run.train.x.device, len(run.batches)
    plain = stacks.footprint(
        run.program,
        stacks.stack_of(run.model, 1),
        run.train.x[: run.recipe.batch_size],
        copies=stacks.optimizer_copies(run.recipe.build_optimizer),
        n_judged=len(run.judge),
    )
    working, held = GRAPH * plain.total, {way: states_held(way, n_steps) * run.state_bytes for way in get_args(Way)}
    least = held["memory"] if storage.way == "memory" else 0 if storage.way == "disk" else held["recomputed"]
    size = stacks.stack_size(Footprint(working + least, GRAPH * plain.largest), device, storage.memory_bytes)
    if storage.way is not None:
        return size, storage.way
    budget = storage.memory_bytes or SHARE_OF_FREE_MEMORY * free_bytes(device)
    if min(size, m) * (working + held["memory"]) <= budget:
        return size, "memory"
    return size, "recomputed" if storage.directory is None else "disk"
