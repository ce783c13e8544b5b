"""Values of many queries: what each of 32 images was taught by each of 600 others.

What you learn: `per_query=True` takes one loss a query, and `values()` is [samples, queries]: what each training sample
was worth to each of them, from the one training run that happens anyway.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from inrun_bench import InRunShapley

N_TRAIN, N_QUERIES, WRONG, BATCH, STEPS = 600, 32, 0.1, 40, 300
loss_fn = nn.functional.cross_entropy
images, labels = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
pixels = ((images - images.mean(0)) / images.std()).float()

torch.manual_seed(0)
order = torch.randperm(len(labels))
train, queries = order[:N_TRAIN], order[N_TRAIN : N_TRAIN + N_QUERIES]
is_wrong = torch.rand(N_TRAIN) < WRONG
told = torch.where(is_wrong, (labels[train] + torch.randint(1, 10, (N_TRAIN,))) % 10, labels[train])

model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
inrun = InRunShapley(
    model,
    optimizer,
    N_TRAIN,
    "first",
    validation=lambda: loss_fn(model(pixels[queries]), labels[queries], reduction="none"),  # one loss a query
    per_query=True,
)
for _ in range(STEPS):
    index = torch.randint(N_TRAIN, (BATCH,))
    with inrun.step(index):
        loss_fn(model(pixels[train[index]]), told[index]).backward()
        optimizer.step()
        optimizer.zero_grad()

values = inrun.values()  # float64 [samples, queries]
best, worst = np.argsort(-values, axis=0)[:10], np.argsort(values, axis=0)[:10]
of_its_digit = (told.numpy()[best] == labels[queries].numpy()).mean()
told_wrong, chance = is_wrong.numpy()[worst].mean(), is_wrong.float().mean()
print(f"of the ten most valuable images, {of_its_digit:.2f} are told to be the query's digit (by chance: 0.10)")
print(f"of the ten least valuable ones, {told_wrong:.2f} have a wrong label (by chance: {chance:.2f})")

shown = 5
figure, axes = plt.subplots(shown, 10, figsize=(7, 4), layout="constrained")
for row, query in enumerate(range(shown)):
    chosen = [train[i] for i in (*best[:6, query], *worst[:3, query])]
    said = [told[i] for i in (*best[:6, query], *worst[:3, query])]
    for ax, image, label in zip(axes[row], [queries[query], *chosen], [labels[queries[query]], *said], strict=True):
        ax.imshow(images[image].view(8, 8).numpy(), cmap="gray_r")
        ax.set_xlabel(int(label), fontsize=8, labelpad=1)
        ax.set(xticks=[], yticks=[])
for column, title in ((0, "query"), (3, "most valuable"), (8, "least valuable")):
    axes[0][column].set_title(title, fontsize=9)
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "query_values.png", dpi=150)
