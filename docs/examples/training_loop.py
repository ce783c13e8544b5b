"""A training loop of your own, watched: what each sample was worth, and whether the books balance.

What you learn: where `InRunShapley` enters a loop, how values look for samples whose label is wrong, and how to read
the ledger before you trust them.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from inrun_bench import InRunShapley, detection

N_TRAIN, N_WRONG = 300, 30
torch.manual_seed(0)

pixels, labels = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
x, x_val = ((pixels - pixels.mean(0)) / pixels.std()).float()[: N_TRAIN + 300].split([N_TRAIN, 300])
y, y_val = labels[: N_TRAIN + 300].split([N_TRAIN, 300])
wrong = torch.randperm(N_TRAIN)[:N_WRONG]
y = y.clone()
y[wrong] = (y[wrong] + torch.randint(1, 10, (N_WRONG,))) % 10

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loss_fn = nn.CrossEntropyLoss()
loader = DataLoader(TensorDataset(x, y, torch.arange(N_TRAIN)), batch_size=20, shuffle=True)

inrun = InRunShapley(model, optimizer, N_TRAIN, validation=lambda: loss_fn(model(x_val), y_val))
for _ in range(5):
    for x_batch, y_batch, index in loader:  # index: which training samples the batch holds
        with inrun.step(index):
            loss_fn(model(x_batch), y_batch).backward()
            optimizer.step()
            optimizer.zero_grad()

values, ledger = inrun.values(), inrun.ledger
print({name: round(amount, 4) for name, amount in ledger.accounts.items()})
print("AUROC of low values for wrong labels:", round(detection(values, wrong.numpy())["auroc"], 3))

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for name, style in (("drop", "k-"), ("samples", "C0--"), ("residual", "C3-")):  # "optimizer" is 0 of plain SGD
    left.plot(np.cumsum(ledger.by_step[name]), style, label=name)
left.set(title="The books: drop = samples + residual", xlabel="step", ylabel="sum so far, nats of validation loss")
left.legend(frameon=False)
is_wrong = np.isin(np.arange(N_TRAIN), wrong)
bins, groups = np.linspace(values.min(), values.max(), 40), [values[~is_wrong], values[is_wrong]]
right.hist(groups, bins, stacked=True, color=["C0", "C3"], label=["right", "wrong"], rwidth=0.9)
right.set(title="Values of the training samples", xlabel="value, nats of validation loss", ylabel="samples")
right.legend(title="label", frameon=False)
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "training_loop.png", dpi=150)
