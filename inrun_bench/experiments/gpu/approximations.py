"""Approximate probe products on a model that has trained a little: how far off scores are, and how much is won.

The model is a GPT on the bytes of a file of Python's standard library. After some steps of AdamW, the inputs and output
gradients of every linear map in a training batch are kept, and the gradient of another file's text is the probe.
"""

from __future__ import annotations

import argparse
import tarfile
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from inrun_bench.attribution.products.project_dot import project_dot
from inrun_bench.experiments.gpu.approximate_products import (
    float8_project_dot,
    low_rank,
    low_rank_project_dot,
    score_error,
)
from inrun_bench.experiments.gpu.rounds import Attempt, attempt_rounds, device, error_row, recover
from inrun_bench.runs.timing import Call, described, event_seconds, quartiles
from inrun_bench.runs.unit import Row, Setting, Unit
from tasks.architectures import GPT

__all__ = ["SIZES", "TINY_SIZES", "measure_approximations"]

SIZES: dict[str, Setting] = {"width": 768, "heads": 12, "blocks": 12, "positions": 1024, "batch": 8, "trained": 100}
TINY_SIZES: dict[str, Setting] = {"width": 32, "heads": 2, "blocks": 1, "positions": 16, "batch": 4, "trained": 3}
RANKS = (16, 64, 256)


def measure_approximations(unit: Unit, attempt: Attempt) -> list[Row]:
    """Return errors of the scores, and speed in units of the exact product, as medians and quartiles over layers."""
    errors: dict[str, list[float]] = {}
    speeds: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    for a, b, probe in _layers(unit):
        exact = project_dot(a.float(), b.float(), probe, backend="torch")
        calls = _calls(a, b, probe)
        calls = {name: calls[name] for name in attempt.wanted(calls) if name not in failed}
        for name, call in calls.items():
            attempt.begin(name)
            try:
                scores = call()
                assert isinstance(scores, Tensor)
                errors.setdefault(name, []).append(score_error(scores, exact))
            except Exception as error:  # not tried on the other layers
                failed[name] = described(error)
            if name in failed:
                recover(failed[name])
        calls = {name: call for name, call in calls.items() if name not in failed}
        rounds, late = attempt_rounds(calls, unit.settings, event_seconds, attempt, warm_up=1)
        failed |= late
        for name in calls.keys() - failed.keys() - {"exact"}:
            speeds.setdefault(name, []).extend(taken["exact"] / taken[name] for taken in rounds if "exact" in taken)
    rows = [error_row(name, said) for name, said in failed.items()]
    for metric, by_name in (("score_error", errors), ("speed_to_exact", speeds)):
        rows += [
            {"method": name, "metric": metric, **quartiles(found)} for name, found in sorted(by_name.items()) if found
        ]
    return rows


def _calls(a: Tensor, b: Tensor, probe: Tensor) -> dict[str, Call]:
    calls: dict[str, Call] = {
        "exact": partial(project_dot, a, b, probe),
        "float8": partial(float8_project_dot, a, b, probe),
    }
    for rank in (rank for rank in RANKS if rank <= min(probe.shape)):
        calls[f"low-rank-{rank}"] = partial(_low_rank_dot, a, b, probe, rank)
    return calls


def _low_rank_dot(a: Tensor, b: Tensor, probe: Tensor, rank: int) -> Tensor:
    return low_rank_project_dot(a, b, *low_rank(probe, rank))  # a probe is new at each step, and so are its factors


def _layers(unit: Unit) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return input, output gradient (both as autocast leaves them) and probe of each linear map of the model."""
    sizes = {name: int(unit.settings[name]) for name in SIZES}
    batch, positions = sizes["batch"], sizes["positions"]
    model = GPT(256, positions, sizes["width"], sizes["heads"], sizes["blocks"]).to(device())
    train, validation = (_sequences(module, batch, positions) for module in (argparse, tarfile))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(sizes["trained"]):
        _loss(model, train).backward()
        optimizer.step()
        optimizer.zero_grad()
    maps = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    probes = torch.autograd.grad(_loss(model, validation), [layer.weight for layer in maps])
    seen: dict[nn.Module, list[Tensor]] = {}

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[layer] = [inputs[0].detach().to(output.dtype)]
        output.register_hook(seen[layer].append)

    handles = [layer.register_forward_hook(keep) for layer in maps]
    _loss(model, train).backward()
    for handle in handles:
        handle.remove()
    return [(*seen[layer], probe) for layer, probe in zip(maps, probes, strict=True)]  # type: ignore[misc]


def _loss(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    x, y = data
    with torch.autocast(device(), dtype=torch.bfloat16):
        logits = model(x)
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), y.flatten())


def _sequences(module: ModuleType, batch: int, positions: int) -> tuple[Tensor, Tensor]:
    text = torch.frombuffer(bytearray(Path(str(module.__file__)).read_bytes()), dtype=torch.uint8).long().to(device())
    text = text.repeat(1 + (batch * positions + 1) // len(text))
    x, y = (text[shift : shift + batch * positions].view(batch, positions) for shift in (0, 1))
    return x, y
