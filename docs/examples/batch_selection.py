"""Selection of batches: train on the half of each batch that lowers the validation loss most.

What you learn: `step.scores()` tells, after the backward pass and before the optimiser steps, what each row of a batch
is about to do to the validation loss, and `step.keep(mask)` has the optimiser receive the gradient of some rows alone.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from inrun_bench import InRunShapley

N_TRAIN, N_VAL, WRONG, BATCH, STEPS, SEEDS = 400, 60, 0.4, 40, 250, 3
loss_fn = nn.CrossEntropyLoss()
pixels, labels = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
pixels = ((pixels - pixels.mean(0)) / pixels.std()).float()


def train(choose, seed):
    """Train on the rows of each batch that `choose` picks; return the test accuracy after each step."""
    torch.manual_seed(seed)
    order = torch.randperm(len(labels))
    x, x_val, x_test = pixels[order].tensor_split([N_TRAIN, N_TRAIN + N_VAL])
    y, y_val, y_test = labels[order].tensor_split([N_TRAIN, N_TRAIN + N_VAL])
    is_wrong = torch.rand(N_TRAIN) < WRONG
    y = torch.where(is_wrong, (y + torch.randint(1, 10, (N_TRAIN,))) % 10, y)

    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    inrun = InRunShapley(model, optimizer, N_TRAIN, "first", validation=lambda: loss_fn(model(x_val), y_val))
    accuracy, wrong_kept = [], 0.0
    for _ in range(STEPS):
        index = torch.randint(N_TRAIN, (BATCH,))

        def losses(index=index):  # what each row adds to the loss
            return nn.functional.cross_entropy(model(x[index]), y[index], reduction="none") / BATCH

        with inrun.step(index, losses=losses) as step:
            losses().sum().backward()
            mask = choose(step)
            step.keep(mask, rescale=True)
            optimizer.step()
            optimizer.zero_grad()
        wrong_kept += float(is_wrong[index][mask].float().mean()) / STEPS
        accuracy.append(float((model(x_test).argmax(1) == y_test).float().mean()))
    return accuracy, wrong_kept


def best_half(step):
    """Keep the rows whose scores are above the median."""
    scores = step.scores()
    return scores > scores.median()


def random_half(_step):
    """Keep half of the rows by chance."""
    return torch.randperm(BATCH) < BATCH // 2


def everything(_step):
    """Keep all rows."""
    return torch.ones(BATCH, dtype=torch.bool)


figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
final = {}
for choose, style in ((best_half, "C0-"), (everything, "k--"), (random_half, "C3:")):
    curves, wrong_kept = zip(*(train(choose, seed) for seed in range(SEEDS)), strict=True)
    name = choose.__name__.replace("_", " ")
    final[name] = [curve[-1] for curve in curves]
    ax.plot(np.mean(curves, axis=0), style, label=name)
    print(f"{name}: test accuracy {np.mean(final[name]):.3f}, wrong labels among those kept {np.mean(wrong_kept):.3f}")
ax.set(
    xlabel="step", ylabel=f"test accuracy, mean of {SEEDS} seeds", title=f"{WRONG:.0%} of the training labels are wrong"
)
ax.legend(title="trained on, of each batch", frameon=False)
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "batch_selection.png", dpi=150)
