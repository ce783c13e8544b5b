"""Conventional retraining: what a model is worth that was trained on the coalition alone, as if nobody else existed.

Players are training samples. The utility of a coalition S is that of the model which the task's recipe makes of the
dataset S, averaged over several runs r with initial weights and batch orders of their own::

    v(S) = mean_r U(w_r(S)),    steps of a run: epochs * ceil(|S| / batch_size)

Each batch is a batch of S, with the mean over its samples, so that a small coalition makes fewer steps than a large
one, and the learning rate follows its schedule over these. The empty coalition makes none: it is worth what the
untrained models are. On everybody this is the run itself, ``task.rerun(seed)``.

That is what Data Shapley means by retraining (Ghorbani, Zou: *Data Shapley*, ICML 2019, arXiv 1904.02868; over runs:
Wang, Jia: *Data Banzhaf*, AISTATS 2023, arXiv 2205.15466, on the noise of a single one).
:mod:`tasks.trajectory_game`, which In-Run Data Shapley approximates, keeps the batches of one run instead and takes
absent samples out of them.

The runs are the same for all coalitions: for each seed and epoch there is one order of all n samples, that of
``task.rerun(seed).batches()``, and a coalition's order is its restriction to S. So two coalitions differ by their
samples and not by a draw, and a marginal contribution is no difference of two independent noises.

Coalitions and seeds are one stack of models (:mod:`tasks.stacks`), as far as they make the same number of steps.

Cost on one core, in float32, at sizes drawn evenly from 0 to n: digits-mlp 2100 trainings a second (trajectory game:
1900), breast-cancer-logreg 13000 (24000). Coalitions make half of the steps on average, but share no products.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks import stacks
from tasks.data import HeldOut
from tasks.retraining import checked_coalitions, retraining
from tasks.retraining_game import RetrainingGame, entries_of_run
from tasks.trainable import Rerunnable, Trainable

__all__ = ["ConventionalGame", "retrain_alone"]


class ConventionalGame(RetrainingGame):
    """The game of training on a coalition alone (see the module's docstring), evaluated in batches.

    Parameters
    ----------
    task : Task (or another :class:`tasks.trainable.Rerunnable`)
        Data, model and recipe.
    utility : str
        Which of the objective's utilities: ``"loss"``, minus the mean loss (of classification in nats), or
        ``"accuracy"``, the share of samples classified correctly. Higher is better.
    split : {"validation", "test"}
        Samples on which the trained model is judged.
    seeds : sequence of int
        Of the runs that are averaged, each once; see :meth:`tasks.Task.run_seeds`.
    memory_bytes : int, optional
        What the models that are trained at the same time may take. Default: half of what is free.
    device : torch.device or str, optional
        Where to train. Default: where the training samples are.

    Attributes
    ----------
    n_players : int
        Number of training samples.
    measures : tuple of str
        Names of the columns of :meth:`measure`: all utilities of the task's objective, in the objective's order.

    A coalition has no utility where one of its runs diverged. Samples that were changed in place are refused, as in
    :class:`tasks.trajectory_game.TrajectoryGame`.

    Examples
    --------
    >>> import numpy as np, tasks
    >>> game = tasks.load("digits-mlp", seed=0).conventional_game(seeds=2)
    >>> game.seeds
    (1000, 2000)
    >>> empty_and_full = np.stack([np.zeros(game.n_players, bool), np.ones(game.n_players, bool)])
    >>> bool(np.diff(game(empty_and_full)) > 0)
    True
    """

    fixed = (*RetrainingGame.fixed, "seeds")
    task: Rerunnable

    def __init__(
        self,
        task: Rerunnable,
        utility: str = "loss",
        split: HeldOut = "validation",
        *,
        seeds: Sequence[int],
        memory_bytes: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(task, utility, split, memory_bytes=memory_bytes, device=device)
        self.seeds = tuple(seeds)
        if not self.seeds:
            raise ValueError("seeds must be those of at least one run, got none")

    def _retrained(self, coalitions: NDArray[np.bool_], measures: Sequence[tuple[str, HeldOut]]) -> NDArray[np.float64]:
        runs = [self.task.rerun(seed) for seed in self.seeds]
        by_run = retrain_alone(runs, coalitions, measures, memory_bytes=self.memory_bytes, device=self.device)
        mean: NDArray[np.float64] = by_run.mean(axis=0)
        return mean

    def _rules(self) -> Iterable[tuple[str, object]]:
        yield "game", "conventional"
        for seed in self.seeds:
            yield from entries_of_run(self.task.rerun(seed))


def retrain_alone(
    runs: Sequence[Trainable],
    coalitions: NDArray[np.bool_],
    measures: Sequence[tuple[str, HeldOut]],
    *,
    memory_bytes: int | None = None,
    device: torch.device | str | None = None,
) -> NDArray[np.float64]:
    """Train on each coalition alone, once in each run, and judge the models by several measures.

    Parameters
    ----------
    runs : sequence of Trainable
        The same task with initial weights and batch orders of several seeds.
    coalitions : bool [m, n_train]
        On which training samples to train.
    measures : sequence of (utility, split)
        For instance ``[("loss", "test"), ("accuracy", "test")]``.
    memory_bytes, device
        As in :class:`ConventionalGame`.

    Returns
    -------
    float64 [len(runs), m, len(measures)]
        Utilities; NaN, whatever the utility, where a model's weights or one of its utilities are not finite.

    Raises
    ------
    ValueError
        If `coalitions` is not bool [m, n_train], a measure is unknown, or `memory_bytes` is too small for one model.
    """
    coalitions = checked_coalitions(coalitions, runs[0].n_train)
    where = runs[0].train.x.device if device is None else torch.device(device)
    models = [run.model().to(where) for run in runs]
    out = np.empty((len(runs), len(coalitions), len(measures)))
    for alike in stacks.grouped_by_untrained(models):
        _fill(out, [(row, runs[row], models[row]) for row in alike], coalitions, measures, memory_bytes)
    return out


def _fill(
    out: NDArray[np.float64],
    runs: Sequence[tuple[int, Trainable, nn.Module]],
    coalitions: NDArray[np.bool_],
    measures: Sequence[tuple[str, HeldOut]],
    memory_bytes: int | None,
) -> None:
    """Train on all coalitions in runs whose models differ by their trained weights alone; fill in their rows."""
    _, task, model = runs[0]
    rows = np.array([row for row, *_ in runs])
    setting = retraining(task, model, measures, own_batches=True, memory_bytes=memory_bytes)
    weights = stacks.stack_of_models([model for *_, model in runs])
    device = setting.train.x.device
    orders = torch.stack([_orders(run) for _, run, _ in runs], dim=1).to(device)  # [epochs, runs, n]
    for n_steps, chosen in _by_steps(task, coalitions):
        pairs = np.stack([np.tile(np.arange(len(runs)), len(chosen)), np.repeat(chosen, len(runs))])
        for start in range(0, pairs.shape[1], setting.stack_size):
            run, coalition = pairs[:, start : start + setting.stack_size]
            present, of_run = torch.from_numpy(coalitions[coalition]).to(device), torch.from_numpy(run).to(device)
            stack = {name: parameter[of_run] for name, parameter in weights.items()}
            if n_steps:
                order = (epoch[of_run] for epoch in orders)
                dtype = next(iter(stack.values())).dtype
                steps = stacks.own_batches(order, present, setting.recipe.batch_size, dtype=dtype)
                stacks.train(setting.program, stack, setting.recipe, setting.train, steps, n_steps)
            out[rows[run], coalition] = setting.judged(stack)


def _by_steps(task: Trainable, coalitions: NDArray[np.bool_]) -> Iterable[tuple[int, NDArray[np.intp]]]:
    """Yield each number of steps that occurs, and the coalitions that make so many."""
    steps = np.array([task.recipe.n_steps(size) for size in coalitions.sum(axis=1).tolist()], dtype=np.int64)
    for n_steps in np.unique(steps):
        yield int(n_steps), np.flatnonzero(steps == n_steps)


def _orders(run: Trainable) -> Tensor:
    """Return the order of all samples in each epoch, int64 [epochs, n]."""
    return torch.cat(run.batches()).view(run.recipe.epochs, run.n_train)
