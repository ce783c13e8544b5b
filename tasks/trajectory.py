"""Trajectory games: what a model trained on a coalition is worth, for many coalitions at a time.

Players are training samples. The utility of a coalition S is that of the model trained by the task's recipe from the
task's initial weights, in the task's batch order, where samples outside S contribute a zero gradient and the
denominator of a batch's mean stays that of the full batch::

    w_{t+1} = w_t - u_t( (1 / |B_t|) sum_{i in B_t and S} grad l_i(w_t) )

This is the retraining game that In-Run Data Shapley approximates step by step; the empty coalition learns nothing and
is worth what the initial weights are worth.

All models of a chunk of coalitions are trained as one batched tensor program: parameters carry a leading coalition
axis, gradients come from ``vmap(grad(...))``, and since the recipe's optimisers are element-wise, one
``torch.optim`` optimiser over the stacked parameters is the optimiser of every model in the stack.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.func import functional_call, grad, vmap

if TYPE_CHECKING:
    from tasks.data import Split
    from tasks.task import Task

__all__ = ["Stack", "TrajectoryGame", "retrain", "train_coalitions", "utilities"]

Stack: TypeAlias = dict[str, torch.Tensor]
"""Parameters of m models by name, each [m, *shape]."""

Utility = Literal["loss", "accuracy"]
Part = Literal["validation", "test"]

COALITIONS_AT_A_TIME = 512
LARGEST_TENSOR = 30 * 2**20  # bytes; allocators give larger blocks back at once, and fetch fresh pages at every step


class TrajectoryGame:
    """The retraining game of a task (see the module's docstring), evaluated in batches.

    Parameters
    ----------
    task : Task
        Data, model and recipe.
    utility : {"loss", "accuracy"}
        Minus the mean cross-entropy in nats, or the share of samples classified correctly; higher is better.
    split : {"validation", "test"}
        Samples on which the trained model is judged.

    Attributes
    ----------
    n_players : int
        Number of training samples.

    Examples
    --------
    >>> import numpy as np, tasks
    >>> game = tasks.load("digits-mlp", seed=0).trajectory_game()
    >>> empty_and_full = np.stack([np.zeros(game.n_players, bool), np.ones(game.n_players, bool)])
    >>> bool(np.diff(game(empty_and_full)) > 0)
    True
    """

    def __init__(self, task: Task, utility: Utility = "loss", split: Part = "validation") -> None:
        for name, value, allowed in (("utility", utility, get_args(Utility)), ("split", split, get_args(Part))):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
        self.task = task
        self.utility: Utility = utility
        self.split: Part = split
        self.n_players = task.n_train

    def __call__(self, coalitions: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the utility, float64 [m], of each coalition of bool [m, n_players]."""
        return retrain(self.task, coalitions, [(self.utility, self.split)])[:, 0]


def retrain(task: Task, coalitions: NDArray[np.bool_], measures: list[tuple[Utility, Part]]) -> NDArray[np.float64]:
    """Train on each coalition once and judge the models by several measures.

    Parameters
    ----------
    task : Task
        Data, model and recipe.
    coalitions : bool [m, n_train]
        Which training samples each model sees.
    measures : list of (utility, split)
        For instance ``[("loss", "test"), ("accuracy", "test")]``.

    Returns
    -------
    float64 [m, len(measures)]
        Utilities; ``"loss"`` is minus the loss, so that higher is better.
    """
    coalitions = np.asarray(coalitions)
    if coalitions.ndim != 2 or coalitions.shape[1] != task.n_train or coalitions.dtype != np.bool_:
        raise ValueError(
            f"coalitions must be a bool array of shape [m, {task.n_train}], "
            f"got {coalitions.dtype} of shape {list(coalitions.shape)}"
        )
    out = np.empty((len(coalitions), len(measures)))
    size = stack_size(task.model())
    for start in range(0, len(coalitions), size):
        chunk = slice(start, start + size)
        stack = train_coalitions(task, torch.from_numpy(coalitions[chunk]))
        for column, (utility, part) in enumerate(measures):
            split: Split = getattr(task, part)
            out[chunk, column] = utilities(task.model(), stack, split, utility).numpy()
    return out


def stack_size(model: nn.Module) -> int:
    """Return how many models like `model` are best stacked: many, but no stacked parameter larger than a block."""
    largest = max(p.numel() * p.element_size() for p in model.parameters())
    return max(1, min(COALITIONS_AT_A_TIME, LARGEST_TENSOR // largest))


def train_coalitions(task: Task, coalitions: torch.Tensor) -> Stack:
    """Train one model a coalition, bool [m, n_train], as one batched program; return the trained parameters."""
    model = task.model()
    stack = {name: p.detach().expand(len(coalitions), *p.shape).clone() for name, p in model.named_parameters()}
    optimizer = task.recipe.build_optimizer(stack.values())
    x, y = task.train.x, task.train.y
    present = coalitions.to(x.dtype)

    def batch_loss(parameters: Stack, present: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        losses = nn.functional.cross_entropy(functional_call(model, parameters, (x,)), y, reduction="none")
        return (losses * present).sum() / len(y)

    gradient: Any = vmap(grad(batch_loss), in_dims=(0, 0, None, None))
    for index in task.batches():
        gradients = gradient(stack, present[:, index], x[index], y[index])
        for name, parameter in stack.items():
            parameter.grad = gradients[name]
        optimizer.step()
    return stack


@torch.no_grad()
def utilities(model: nn.Module, stack: Stack, split: Split, utility: Utility) -> torch.Tensor:
    """Return the utility on `split`, float64 [m], of each of the m models in `stack`."""

    def judge(parameters: Stack) -> torch.Tensor:
        logits: torch.Tensor = functional_call(model, parameters, (split.x,))
        if utility == "accuracy":
            return (logits.argmax(dim=-1) == split.y).double().mean()
        return -nn.functional.cross_entropy(logits, split.y)

    judged: torch.Tensor = vmap(judge)(stack)
    return judged.double()
