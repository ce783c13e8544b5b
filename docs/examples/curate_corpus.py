"""Curation of a small corpus: which documents help a GPT on the text that you care about, and what dropping does.

What you learn: values of documents from one training run (`labels=` gives each its account), and the test that counts:
train anew on what is left, as long as before, beside a corpus from which as much was dropped at random.
"""

import sys
import sysconfig
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import tasks
from inrun_bench import InRunShapley

WINDOWS, STEPS, BATCH = 4, 80, 8  # windows a document
STDLIB = Path(sysconfig.get_path("stdlib"))
KINDS = ("asyncio/*.py", "encodings/cp*.py", "email/*.py")
gpt = tasks.load("stdlib-gpt").model  # 44 000 weights, bytes as tokens; the same initial ones at each call


def windows(path: Path, n: int) -> torch.Tensor:
    """Return n windows of 65 bytes from all over a file, int64 [n, 65]."""
    text = np.frombuffer(path.read_bytes(), np.uint8).astype(np.int64)
    return torch.from_numpy(np.stack([text[start:][:65] for start in np.linspace(0, len(text) - 65, n).astype(int)]))


def loss(model: torch.nn.Module, text: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of the next byte, in nats."""
    return torch.nn.functional.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())


def trained(documents: np.ndarray, seed: int = 0, watched: bool = False) -> tuple[float, InRunShapley | None]:
    """Train on some documents; return the test loss, and the engine where the run is watched."""
    rows, model, draw = np.flatnonzero(np.isin(document, documents)), gpt(), np.random.default_rng(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    inrun = None
    if watched:
        inrun = InRunShapley(model, optimizer, len(train), validation=lambda: loss(model, val), labels=document)
    for _ in range(STEPS):
        index = draw.choice(rows, BATCH, replace=False)
        with inrun.step(index) if inrun else torch.enable_grad():
            loss(model, train[index]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        return loss(model, test).item(), inrun


asyncio, *_ = corpus = [sorted(STDLIB.glob(pattern))[:18] for pattern in KINDS]
val, test = (torch.cat([windows(path, 2) for path in asyncio[part::3]]) for part in (0, 1))  # what you care about
files = [path for kind in (asyncio[2::3], *corpus[1:]) for path in kind if path.stat().st_size > 1000]
train = torch.cat([windows(path, WINDOWS) for path in files])
document = np.repeat(np.arange(len(files)), WINDOWS)

everything = np.arange(len(files))
loss_of_all, inrun = trained(everything, watched=True)
values = np.array([by_step.sum() for by_step in inrun.ledger.groups().values()])  # of documents
print({name: round(amount, 4) for name, amount in inrun.ledger.accounts.items()})

half = len(files) // 2
halves = {"at random": [np.random.default_rng(seed).permutation(everything)[:half] for seed in range(3)]}
halves |= {"the worst": [np.argsort(-values)[:half]], "the best": [np.argsort(values)[:half]]}
losses = {"nothing": [loss_of_all]} | {name: [trained(kept)[0] for kept in choices] for name, choices in halves.items()}
print({name: np.round(each, 3).tolist() for name, each in losses.items()})

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", width_ratios=(3, 2))
kinds, order = np.array([path.parent.name for path in files]), np.argsort(-values)
for number, kind in enumerate(dict.fromkeys(kinds)):
    place = np.flatnonzero(kinds[order] == kind)
    left.bar(place, values[order][place], color=f"C{number}", label=kind)
left.axhline(0, color="0.7", linewidth=0.8)
left.set(title="Values of documents", xlabel="document, by value", ylabel="drop of the loss on asyncio, nats")
left.legend(title="package", frameon=False)
for number, each in enumerate(losses.values()):
    right.plot([number] * len(each), each, "ko", ms=5)
right.set_xticks(range(len(losses)), losses)
right.set(title="Trained anew", xlabel="half of the documents dropped", ylabel="test loss on asyncio, nats")
right.margins(x=0.15)
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "curate_corpus.png", dpi=150)
