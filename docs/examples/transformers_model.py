"""A language model of Hugging Face's transformers: which source of text helped, step by step.

What you learn: a model that returns an object with a loss, AdamW with a warm-up, groups of samples (`labels=`), and
their totals over the run. The model is a tiny Llama with random weights; nothing is downloaded.
"""

import sys
import sysconfig
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from inrun_bench import InRunShapley

CONTEXT, WINDOWS, STEPS = 32, 48, 80
SOURCES = {"code": "asyncio/*.py", "character tables": "encodings/cp*.py", "prose": "pydoc_data/topics.py"}
torch.manual_seed(0)


def windows(pattern: str) -> torch.Tensor:
    """Return windows of the bytes of Python's own source files, int64 [WINDOWS, CONTEXT]."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob(pattern))
    text = np.frombuffer(b"".join(file.read_bytes() for file in files), np.uint8).astype(np.int64)
    starts = np.linspace(0, len(text) - CONTEXT, WINDOWS).astype(int)
    return torch.from_numpy(np.stack([text[start : start + CONTEXT] for start in starts]))


texts = torch.stack([windows(pattern) for pattern in SOURCES.values()])  # [sources, WINDOWS, CONTEXT]
validation, train = texts[0, ::2], torch.cat([texts[0, 1::2], texts[1, 1::2], texts[2, 1::2]])  # code is what counts
source = np.repeat(list(SOURCES), WINDOWS // 2)

sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
model = LlamaForCausalLM(LlamaConfig(vocab_size=256, max_position_embeddings=CONTEXT, **sizes))
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.05, total_iters=10)


def loss(tokens: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of the next byte, in nats."""
    return model(input_ids=tokens, labels=tokens).loss


inrun = InRunShapley(model, optimizer, len(train), order="first", validation=lambda: loss(validation), labels=source)
for _ in range(STEPS):
    index = torch.randperm(len(train))[:8]
    with inrun.step(index):
        loss(train[index]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    warmup.step()

print({name: round(amount, 4) for name, amount in inrun.ledger.accounts.items()})
figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
for name, by_step in inrun.ledger.groups().items():
    print(f"{name}: {by_step.sum():.3f} nats")
    ax.plot(np.cumsum(by_step), label=name)
ax.axhline(0, color="0.7", linewidth=0.8)
ax.set(title="What each source did to the loss on code", xlabel="step", ylabel="value so far, nats")
ax.legend(title="source", frameon=False)
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "transformers_model.png", dpi=150)
