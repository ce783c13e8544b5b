"""Source text of Python's standard library, a byte-level GPT: sequences from eight domains that read very differently.

A sample is a window of 64 bytes, and its targets are the bytes that follow each of them. Windows stand evenly spaced in
the text of their domain, which is all its modules, in the order of their paths, but those in folders named ``test``. No
download is needed, at the price that the text is that of the running Python: it differs a little from one version to
the next, most of all in ``pydoc_data``, so that results compare to the last digit within one version only
(:meth:`tasks.TrajectoryGame.identity` tells).
"""

import sysconfig
from functools import cache
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import nn

from tasks.architectures import GPT
from tasks.recipe import Recipe
from tasks.task import TaskSpec

DOMAINS = ("_pydecimal", "asyncio", "email", "encodings", "html", "pydoc_data", "unittest", "xml")
"""Arithmetic with doctests, coroutines, mail, character tables, a dictionary of entities, prose, mocks, and parsers."""

CONTEXT = 64
WINDOWS = 96  # a domain; 56 of them are drawn
BYTES = 256


@cache
def dataset() -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return bytes and next bytes, int64 [768, 64] each, and the number of each window's domain, int64 [768]."""
    windows = np.concatenate([_windows(domain) for domain in DOMAINS]).astype(np.int64)
    return windows[:, :-1], windows[:, 1:], np.repeat(np.arange(len(DOMAINS)), WINDOWS)


def _windows(domain: str) -> NDArray[np.uint8]:
    """Return windows of the domain's text, uint8 [WINDOWS, CONTEXT + 1], which share no byte but where they meet."""
    text = np.frombuffer(source_of(domain).encode(), dtype=np.uint8)
    needed = WINDOWS * (CONTEXT + 1)
    if len(text) < needed:
        raise ValueError(
            f"the source of {domain!r} has {len(text)} bytes in {sysconfig.get_path('stdlib')!r}, and stdlib-gpt takes "
            f"{needed}; it needs a Python whose standard library is there as source files"
        )
    starts = np.linspace(0, len(text) - CONTEXT - 1, WINDOWS).astype(int)
    windows: NDArray[np.uint8] = sliding_window_view(text, CONTEXT + 1)[starts]
    return windows


def source_of(domain: str) -> str:
    """Return the source of a package, or of a module."""
    root = Path(sysconfig.get_path("stdlib"))
    found = (root / f"{domain}.py", *sorted((root / domain).rglob("*.py")))
    modules = (path for path in found if path.is_file() and "test" not in path.relative_to(root).parts)
    return "".join(path.read_text(encoding="utf-8") for path in modules)


def architecture() -> nn.Module:
    """Return a GPT of 44 000 weights."""
    return GPT(vocabulary=BYTES, context=CONTEXT, width=32, heads=4, blocks=2)


TASK = TaskSpec(
    dataset=dataset,
    architecture=architecture,
    recipes={
        "sgd": Recipe("sgd", learning_rate=0.1, batch_size=8, epochs=8, schedule="cosine"),
        "momentum": Recipe(
            "sgd", learning_rate=0.1, batch_size=8, epochs=8, momentum=0.9, schedule="cosine", clip_norm=1.0
        ),
        "adamw": Recipe(
            "adamw",
            learning_rate=0.01,
            batch_size=8,
            epochs=8,
            weight_decay=0.01,
            schedule="cosine",
            clip_norm=1.0,
        ),
    },
    n_classes=BYTES,
    n_train=256,
    n_validation=64,
    n_test=128,
    scaling=None,
    summary="bytes of Python's standard library from eight domains, a GPT of two blocks",
    large=True,
    domains=DOMAINS,
)
