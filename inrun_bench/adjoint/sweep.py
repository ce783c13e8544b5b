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

**Cost.** A differentiated run takes the time of :data:`TRAININGS_A_RUN` plain ones, one more with states recomputed;
all n derivatives come from it. :mod:`inrun_bench.experiments.sweeps` measures both for every task, recipe and way to
keep the states. Memory: see :mod:`~inrun_bench.adjoint.checkpoints`.

**What is refused**: models that draw random numbers or mix the samples of a batch
(:mod:`~inrun_bench.adjoint.model_checks`), and those of which a step has no derivative, which is found by
differentiating one. A run that stops being finite is an error that names the step; the others may be kept
(:mod:`~inrun_bench.adjoint.run_cache`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import vmap

from inrun_bench.adjoint.checkpoints import AUTOMATIC, StateStorage, Storage, run_then_reverse, states_held
from inrun_bench.adjoint.model_checks import check_model
from inrun_bench.adjoint.run_cache import RunCache, run_cache
from inrun_bench.adjoint.updates import State, first_state, updated
from inrun_bench.adjoint.utilities import Utility, utility_of_stacks
from tasks import Recipe, Split, Task, stacks
from tasks.data import HeldOut
from tasks.free_memory import free_bytes
from tasks.objective import Objective
from tasks.stacks.objectives import output_gradient
from tasks.stacks.sizing import SHARE_OF_FREE_MEMORY, Footprint

__all__ = ["TRAININGS_A_RUN", "Differentiated", "DivergedRunError", "differentiate", "utilities_at"]

TRAININGS_A_RUN = 5.0
"""Time of a differentiated run in plain trainings, stacked alike: of SGD, the median over tasks; others take less."""

GRAPH = 3  # a recorded gradient and its derivative hold about three times what a plain step holds


class DivergedRunError(ValueError):
    """A run, or the derivative swept back through it, is no longer finite.

    Attributes
    ----------
    step : int
        Number of the step, the first being 0.
    weighting : int
        Row of the weights [m, n] that were asked for.
    others : str
        What became of the other runs, if they are kept.
    """

    def __init__(self, what: str, step: int, weighting: int, others: str = "") -> None:
        super().__init__(what, step, weighting, others)
        self.what, self.step, self.weighting, self.others = what, step, weighting, others

    def __str__(self) -> str:
        return (
            f"{self.what} not finite in step {self.step} of the run with weights[{self.weighting}]; "
            f"a smaller learning rate or float64 may help{self.others and '; '}{self.others}"
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
    way: StateStorage
    stored_bytes: int


def differentiate(
    task: Task,
    weights: NDArray[np.float64],
    *,
    utility: Utility = "loss",
    split: HeldOut = "validation",
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
        How the states of the runs are kept, and whether the runs themselves are when they are finished.

    Returns
    -------
    Differentiated

    Raises
    ------
    ValueError
        If the weights are of another shape or outside [0, 1], the utility or the model has no derivative, the model is
        random or couples samples, or one run does not fit into the memory allowed; if finished runs are to be kept and
        the utility is a function.
    DivergedRunError
        If a run or its derivative stops being finite. Where runs are kept, all others are finished before.
    OSError
        If the states do not fit on the disk, of a single run where runs are kept; or if these cannot be.
    """
    run = _prepared(task, utility, split)
    weights = _checked(weights, task.n_train)
    _check_derivative(run)
    cache = run_cache(storage, task, utility, split, differentiate)
    size, way = _plan(run, storage, len(weights))
    found = Differentiated(np.empty(len(weights)), np.empty(weights.shape), way, 0)

    def make(rows: Sequence[int]) -> None:
        found.utilities[rows], found.gradients[rows] = _sweep(run, weights, rows, way, storage)

    if cache is None:
        largest = min(size, len(weights))
        for start in range(0, len(weights), size):
            make(range(start, min(start + size, len(weights))))
    else:
        largest = _make_and_cache(make, found, cache, weights, size)
    return replace(found, stored_bytes=largest * states_held(way, len(run.batches)) * run.state_bytes)


def utilities_at(
    task: Task,
    weights: NDArray[np.float64],
    *,
    utility: Utility = "loss",
    split: HeldOut = "validation",
    storage: Storage = AUTOMATIC,
) -> NDArray[np.float64]:
    """Return the utilities of the same runs, float64 [m], without their derivatives; see :func:`differentiate`.

    Of `storage` only the memory allowed is heeded: such runs have no states to store, and are not kept.
    """
    run = _prepared(task, utility, split)
    weights = _checked(weights, task.n_train)
    size, _ = _plan(run, storage, len(weights))
    utilities = np.empty(len(weights))
    for start in range(0, len(weights), size):
        chunk = run.tensor(weights[start : start + size])
        state = run.first(len(chunk))
        for number in range(len(run.batches)):
            state = run.step(number, state, chunk, range(start, start + len(chunk)))
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
        """Return the samples of a step, which all models see: [1, B, ...]."""
        index = self.batches[number][None]
        return self.train.x[index], self.train.y[index]

    def judged(self) -> Sequence[Tensor]:
        """Return the inputs that judge, a batch at a time, so that judging holds no more than training did."""
        parts: tuple[Tensor, ...] = self.judge.x[None].split(self.recipe.batch_size, dim=1)
        return parts

    def step(self, number: int, state: State, weights: Tensor, rows: Sequence[int]) -> State:
        """Return the state after a step; `rows` are the numbers of the models, for errors."""
        index = self.batches[number]
        gradients = self.program.gradients(self.stack(state[0]), *self.batch(number), weights[:, index] / len(index))
        received = self.received(torch.cat([gradients[name].flatten() for name in self.shapes]))
        after = updated(self.recipe, number, len(self.batches), state, received)
        self.check("the weights are", after[0], number, rows)
        return after

    def recorded_gradient(self, flat: Tensor, number: int, counted: Tensor) -> Tensor:
        """Return a step's gradients as a function of the row `flat` and the weights `counted` [m, B]."""
        x, y = self.batch(number)
        outputs = self.program.outputs(self.stack(flat), x)
        counted = counted / y.shape[1]
        if outputs.ndim == 3:  # one row of outputs a sample: its gradient is known, and its derivative is cheap
            slopes = output_gradient(self.objective, outputs, y, counted)
            return torch.autograd.grad(outputs, flat, slopes, create_graph=True)[0]
        losses = vmap(self.objective.losses, in_dims=(0, None))(outputs.movedim(-1, 1), y[0])
        return torch.autograd.grad((losses * counted).sum(), flat, create_graph=True)[0]

    def received(self, gradient: Tensor) -> Tensor:
        """Return what the optimiser receives for a row of gradients: each model's, clipped where the recipe clips."""
        if self.recipe.clip_norm is None:
            return gradient
        clipped = stacks.clipped(self.stack(gradient), self.recipe.clip_norm)
        return torch.cat([part.flatten() for part in clipped.values()])

    def pulled_back(self, number: int, state: State, weights: Tensor, adjoint: State) -> tuple[State, Tensor]:
        """Return the adjoint before a step, from that after it, and the scores [m, B] of the batch."""
        inputs = tuple(row.detach().requires_grad_() for row in state)
        counted = weights[:, self.batches[number]].requires_grad_()
        received = self.received(self.recorded_gradient(inputs[0], number, counted))
        after = updated(self.recipe, number, len(self.batches), inputs, received)
        *before, scores = torch.autograd.grad(after, [*inputs, counted], adjoint)
        return tuple(before), scores

    def check(self, what: str, flat: Tensor, number: int, rows: Sequence[int]) -> None:
        """Refuse weights, or an adjoint of weights, that are not finite."""
        if flat.sum().isfinite():  # one pass over the numbers instead of five, where all is well
            return
        finite = torch.stack([part.view(len(rows), -1).isfinite().all(1) for part in self.stack(flat).values()]).all(0)
        if not finite.all():
            raise DivergedRunError(what, number, rows[int(finite.long().argmin())])


def _make_and_cache(
    make: Callable[[Sequence[int]], None],
    found: Differentiated,
    cache: RunCache,
    weights: NDArray[np.float64],
    size: int,
) -> int:
    """Fill in the runs that are kept; make the others, `size` at a time, and keep them. Return the most made at a time.

    A run that diverges is left out and the others of its chunk begin again; where the disk cannot hold the states of a
    chunk, it is halved. The first error is raised when all that can be finished is kept.
    """
    diverged: list[DivergedRunError] = []
    largest, missing = 0, _missing(found, cache, weights)
    while rows := list(islice(missing, size)):
        cache.check_room()
        try:
            make(rows)
        except DivergedRunError as error:
            diverged.append(error)
            rows.remove(error.weighting)
            missing = chain(rows, missing)
        except OSError as error:
            if len(rows) == 1:
                raise OSError(error.errno, f"{error.strerror}; {cache.progress(weights)}") from error
            size, missing = len(rows) // 2, chain(rows, missing)
        else:
            cache.write(weights[rows], found.utilities[rows], found.gradients[rows])
            largest = max(largest, len(rows))
    if diverged:
        first = diverged[0]
        raise DivergedRunError(first.what, first.step, first.weighting, cache.progress(weights))
    return largest


def _missing(found: Differentiated, cache: RunCache, weights: NDArray[np.float64]) -> Iterator[int]:
    """Yield the numbers of the runs that are not kept, each looked up when its turn comes; fill in the others."""
    for row, counted in enumerate(weights):
        run = cache.read(counted)
        if run is None:
            yield row
        else:
            found.utilities[row], found.gradients[row] = run


def _sweep(
    run: _Run, weights: NDArray[np.float64], rows: Sequence[int], way: StateStorage, storage: Storage
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return utilities [k] and derivatives [k, n] of k `rows` of the weights [m, n], which fit into memory together."""
    counted = run.tensor(weights[rows])

    def step(number: int, state: State) -> State:
        return run.step(number, state, counted, rows)

    last, backwards = run_then_reverse(run.first(len(rows)), step, len(run.batches), way, storage.directory)
    utilities, slope = _judged(run, last[0])
    adjoint: State = (slope, *(torch.zeros_like(row) for row in last[1:]))
    gradients = torch.zeros(counted.shape, dtype=torch.float64, device=counted.device)
    for number, state in backwards:
        adjoint, scores = run.pulled_back(number, state, counted, adjoint)
        run.check("the derivatives by the weights are", adjoint[0], number, rows)
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


def _prepared(task: Task, utility: Utility, split: HeldOut) -> _Run:
    if split not in get_args(HeldOut):
        raise ValueError(f"split must be one of {', '.join(map(repr, get_args(HeldOut)))}, got {split!r}")
    model = task.model().to(task.train.x.device)
    check_model(model, task.train.x)
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


def _check_derivative(run: _Run) -> None:
    """Differentiate one step of one model, so that what has no derivative is found before the runs are made."""
    state = run.first(1)
    try:
        run.pulled_back(0, state, torch.ones(1, len(run.train)).to(state[0]), state)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"a training step of {type(run.model).__name__} cannot be differentiated: {reason}. Every operation must "
            "be one that torch.func batches, with a second derivative"
        ) from error


def _checked(weights: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim != 2 or weights.shape[1] != n:
        raise ValueError(f"weights must have shape [m, {n}], got {list(weights.shape)}")
    if not ((weights >= 0) & (weights <= 1)).all():
        raise ValueError(f"weights must lie in [0, 1], got {weights.min()} to {weights.max()}")
    return weights


def _plan(run: _Run, storage: Storage, m: int) -> tuple[int, StateStorage]:
    """Return how many runs to differentiate at a time, and how to keep their states."""
    device, n_steps = run.train.x.device, len(run.batches)
    plain = stacks.footprint(
        run.program,
        stacks.stack_of(run.model, 1),
        run.train.x[: run.recipe.batch_size],
        copies=stacks.optimizer_copies(run.recipe.build_optimizer),
        n_judged=len(run.judge),
    )
    working, held = (
        GRAPH * plain.total,
        {way: states_held(way, n_steps) * run.state_bytes for way in get_args(StateStorage)},
    )
    least = held["memory"] if storage.way == "memory" else 0 if storage.way == "disk" else held["recomputed"]
    size = stacks.stack_size(Footprint(working + least, GRAPH * plain.largest), device, storage.memory_bytes)
    if storage.way is not None:
        return size, storage.way
    budget = storage.memory_bytes or SHARE_OF_FREE_MEMORY * free_bytes(device)
    if min(size, m) * (working + held["memory"]) <= budget:
        return size, "memory"
    return size, "recomputed" if storage.directory is None else "disk"
