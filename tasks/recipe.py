"""A recipe: everything besides data and model that makes a training run repeatable.

In step t of T, counted from 0, the optimiser receives the batch's gradient g, clipped, and steps with rate r(t)::

    clipped:   min(1, c / (||g|| + 1e-6)) g,  with the 2-norm over all parameters of one model (clip_norm = c)
    warmup:    r(t) = (t + 1) / W learning_rate  for t < W = warmup * T, rounded
    then, with s = (t - W) / (T - W):
    constant:  r(t) = learning_rate
    linear:    r(t) = (1 - s) learning_rate
    cosine:    r(t) = (1 + cos(pi s)) / 2 learning_rate  (Loshchilov, Hutter, ICLR 2017, arXiv 1608.03983)

These are ``torch.nn.utils.clip_grad_norm_`` and the schedules of ``torch.optim.lr_scheduler``, as functions of a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal, get_args

import numpy as np
import torch

__all__ = ["Recipe"]

OptimizerName = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "linear", "cosine"]

ALWAYS_SHOWN = ("optimizer", "learning_rate", "batch_size", "epochs", "weight_decay", "momentum")


@dataclass(frozen=True, repr=False)
class Recipe:
    """Optimiser, learning rate, batch size and number of epochs of a training run.

    Every optimiser named here is element-wise: it treats each number of a tensor alone. That is what lets one optimiser
    train a stack of models at once (:mod:`tasks.trajectory_game`), without a second implementation of its formula.

    Parameters
    ----------
    optimizer : {"sgd", "adam", "adamw"}
        ``torch.optim.SGD``, ``torch.optim.Adam`` or ``torch.optim.AdamW``.
    learning_rate : float
        The largest of the run; `schedule` and `warmup` say how it changes from step to step.
    batch_size : int
        Samples a step; the last batch of an epoch may be smaller.
    epochs : int
        Passes over the training set, each in an order of its own.
    weight_decay : float
        Coupled (L2) for SGD and Adam, decoupled for AdamW, as in ``torch.optim``.
    momentum : float
        Of SGD, in [0, 1): share of the last step's velocity that is carried over. Adam and AdamW have their own
        averages, and take none.
    nesterov : bool
        Whether SGD looks ahead along its velocity (Nesterov's momentum, as in ``torch.optim``); `momentum` must be
        above 0.
    schedule : {"constant", "linear", "cosine"}
        How the rate goes on after warmup: it stays, or falls to 0 at the end of the run.
    warmup : float
        Share of the run's steps, in [0, 1), in which the rate grows in equal parts up to `learning_rate`.
    clip_norm : float, optional
        Largest norm of the gradient over all parameters of one model; longer ones are scaled to it. None clips nothing.
    eps : float
        Of Adam and AdamW, added to the root of the second moment; not negative.
    """

    optimizer: OptimizerName
    learning_rate: float
    batch_size: int
    epochs: int
    weight_decay: float = 0.0
    momentum: float = 0.0
    nesterov: bool = False
    schedule: Schedule = "constant"
    warmup: float = 0.0
    clip_norm: float | None = None
    eps: float = 1e-8

    def __post_init__(self) -> None:
        for name, allowed in (("optimizer", OptimizerName), ("schedule", Schedule)):
            if getattr(self, name) not in get_args(allowed):
                names = ", ".join(map(repr, get_args(allowed)))
                raise ValueError(f"{name} must be one of {names}, got {getattr(self, name)!r}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be a positive number, got {self.learning_rate!r}")
        for name in ("batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)!r}")
        for name in ("weight_decay", "eps"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)!r}")
        for name in ("momentum", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)!r}")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum is for optimizer 'sgd' alone, got {self.momentum!r} with {self.optimizer!r}")
        if self.nesterov and not self.momentum:
            raise ValueError(
                f"nesterov is for optimizer 'sgd' with momentum above 0, got {self.optimizer!r} with {self.momentum!r}"
            )
        if self.clip_norm is not None and not (math.isfinite(self.clip_norm) and self.clip_norm > 0):
            raise ValueError(f"clip_norm must be a positive number or None, got {self.clip_norm!r}")

    def __repr__(self) -> str:
        """Tell recipes apart, and name the later fields only where they are in use: stored results are keyed by it."""
        shown = (f.name for f in fields(self) if f.name in ALWAYS_SHOWN or getattr(self, f.name) != f.default)
        return f"Recipe({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def rate(self, step: int, n_steps: int) -> float:
        """Return the learning rate of a step, the first being 0, in a run of `n_steps`; see the module's docstring.

        After the last step, a rate that falls is 0.
        """
        warmup = round(self.warmup * n_steps)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        past = (step - warmup) / (n_steps - warmup) if step < n_steps else 1.0
        left = {"constant": 1.0, "linear": 1 - past, "cosine": (1 + math.cos(math.pi * past)) / 2}
        return self.learning_rate * left[self.schedule]

    def build_optimizer(self, parameters: Iterable[torch.Tensor]) -> torch.optim.Optimizer:
        """Return a fresh ``torch.optim`` optimiser over `parameters`, be they of one model or stacks of many.

        It steps at `learning_rate` until it is told another, and clips nothing: see :meth:`tasks.Task.optimizer`.
        """
        given, rate, decay = list(parameters), self.learning_rate, self.weight_decay
        if self.optimizer == "sgd":
            return torch.optim.SGD(given, rate, self.momentum, weight_decay=decay, nesterov=self.nesterov)
        adaptive = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return adaptive(given, rate, eps=self.eps, weight_decay=decay)

    def n_steps(self, n_samples: int) -> int:
        """Return the number of steps of a run on `n_samples`."""
        return self.epochs * math.ceil(n_samples / self.batch_size)

    def batches(self, n_samples: int, seed: np.random.SeedSequence) -> list[torch.Tensor]:
        """Return the sample indices of every step, int64 [batch_size] each, in the order of the run."""
        rng = np.random.default_rng(seed)
        epochs = (torch.from_numpy(rng.permutation(n_samples)) for _ in range(self.epochs))
        return [batch for order in epochs for batch in torch.split(order, self.batch_size)]
