"""Whole training steps: throughput, memory and arithmetic, with scores and without."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from inrun_bench.attribution import InRunShapley
from inrun_bench.experiments.gpu.rounds import Attempt, attempt_rounds, device, error_row, recover, seconds
from inrun_bench.runs.peak_memory import peak_bytes
from inrun_bench.runs.timing import Call, Rounds, described, host_seconds, quartiles, wall_seconds
from inrun_bench.runs.unit import Row, Unit
from tasks.architectures import GPT, cnn, mlp

__all__ = ["BASELINES", "CORE", "JOINT", "LAGGED", "LAGGED_JOINT", "MODELS", "OTHERS", "Model", "measure_steps"]

BASELINES = "regular validation"
CORE = f"{BASELINES} inrun-first"
OTHERS = {  # only SGD's probe is known in time for the rules to compete
    "sgd": "inrun-first-project inrun-first-weight-gradient inrun-first-gram inrun-second inrun-integrated "
    "per-sample-vmap",
    "adamw": "inrun-second inrun-integrated",
}
LAGGED, JOINT, LAGGED_JOINT = "inrun-first-lagged", "inrun-first-joint", "inrun-first-lagged-joint"
"""With lagged slopes, with validation rows in the batch, and both."""

TOLERANCE = 0.9  # of lagged slopes: those of a batch that is trained on again and again move
"""Variants of a step, in the order in which they are made."""

WARM_UP = 4  # an engine checks itself in its first three steps
HOST_ROUNDS = 5
SMALL_RATE = 1e-4  # the loss must stay finite while one batch is trained on again and again


@dataclass(frozen=True)
class Model:
    """A model to train: how it and its data are made, and how much of them a step takes.

    Attributes
    ----------
    make : callable
        Returns the model.
    data : callable
        Given a number of samples, returns inputs and labels.
    batch, validation, loop : int
        Samples of a training step, of the validation loss, and of the per-sample loop.
    """

    make: Callable[[], nn.Module]
    data: Callable[[int], tuple[Tensor, Tensor]]
    batch: int
    validation: int
    loop: int


def _sequences(vocabulary: int, positions: int, n: int) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(vocabulary, (n, positions + 1))
    return tokens[:, :-1], tokens[:, 1:]  # of each token the next is to be told


def _images(shape: tuple[int, ...], classes: int, n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, *shape), torch.randint(classes, (n,))


MODELS = {
    "gpt2-small": Model(
        partial(GPT, vocabulary=50304, context=1024, width=768, heads=12, blocks=12),  # 50257 tokens, rounded up
        partial(_sequences, 50257, 1024),
        batch=16,
        validation=1,
        loop=4,
    ),
    "mlp": Model(partial(mlp, 3072, 4096, 1000), partial(_images, (3072,), 1000), batch=4096, validation=256, loop=64),
    "cnn": Model(partial(cnn, 3, 128, 100), partial(_images, (3, 32, 32), 100), batch=256, validation=32, loop=64),
    "gpt-tiny": Model(
        partial(GPT, vocabulary=32, context=8, width=16, heads=2, blocks=1), partial(_sequences, 30, 8), 4, 1, 2
    ),
    "mlp-tiny": Model(partial(mlp, 6, 8, 3), partial(_images, (6,), 3), 4, 2, 2),
    "cnn-tiny": Model(partial(cnn, 1, 8, 3), partial(_images, (1, 6, 6), 3), 4, 2, 2),
}


def measure_steps(unit: Unit, ceilings: Mapping[tuple[str, str], float], attempt: Attempt) -> list[Row]:
    """Let variants of a step take turns; `ceilings` are what the machine reaches, as far as that is known."""
    torch.compiler.reset()
    variants: dict[str, Variant] = {}
    rows: list[Row] = []
    for name in attempt.wanted(str(unit.settings["variants"]).split()):
        attempt.begin(name)
        said = ""
        try:
            variants[name] = _Maker(unit).variant(name)
        except Exception as error:  # it may not fit into memory; the others go on
            said = described(error)
        if said:
            rows.append(error_row(name, said))
        recover(said)  # what is free tells the next engine how much it may keep
    calls = {name: variant.step for name, variant in variants.items()}
    rounds, failed = attempt_rounds(calls, unit.settings, wall_seconds, attempt, warm_up=WARM_UP)
    hosts = {name: quartiles(host_seconds(variants[name].step) for _ in range(HOST_ROUNDS)) for name in rounds[0]}
    peaks: dict[str, int] = {}
    if torch.cuda.is_available() or unit.settings["compiled"] == "no":  # a CPU's compiled graph is not looked into
        peaks, late = _peaks({name: variants[name] for name in rounds[0]}, attempt)
        failed |= late
    rows += [error_row(name, said) for name, said in failed.items()]
    rounds = [{name: taken[name] for name in taken if name not in failed} for taken in rounds]
    for name in rounds[0]:
        cost = {"method": name, "seconds": seconds(name, rounds), "peak_bytes": peaks.get(name)}
        cost["rule"] = variants[name].rule()
        found = _speed(unit.task, name, variants[name].samples, rounds, ceilings.get(("tflops", "bfloat16")))
        found["host_seconds"] = hosts[name]
        if "regular" in rounds[0]:
            found |= _ratios(name, variants[name].samples / MODELS[unit.task].batch, rounds, peaks)
        rows += [{**cost, "metric": metric, **value} for metric, value in found.items()]
    return rows


def _peaks(variants: Mapping[str, Variant], attempt: Attempt) -> tuple[dict[str, int], dict[str, str]]:
    """Return the peak memory of a step of each variant, and the messages of those that failed."""
    peaks: dict[str, int] = {}
    failed: dict[str, str] = {}
    for name, variant in variants.items():
        attempt.begin(name)
        try:
            peaks[name] = variant.peak_bytes()
        except Exception as error:
            failed[name] = described(error)
        if name in failed:
            recover(failed[name])
    return peaks, failed


def _speed(model: str, name: str, samples: int, rounds: Rounds, ceiling: float | None) -> dict[str, Row]:
    """Return throughput, the model's own arithmetic a second, and its share of the ceiling; of training steps."""
    if name == "validation":
        return {}
    x, y = MODELS[model].data(1)
    kind, items = ("samples", 1) if x.is_floating_point() else ("tokens", y.numel())
    teraflops = 3 * _forward_flops(MODELS[model].make, x) * samples / 1e12
    found = {
        f"{kind}_per_s": quartiles(samples * items / taken[name] for taken in rounds),
        "model_tflops": quartiles(teraflops / taken[name] for taken in rounds),
    }
    if ceiling is not None:
        found["mfu"] = quartiles(teraflops / taken[name] / ceiling for taken in rounds)
    return found


def _ratios(name: str, more: float, rounds: Rounds, peaks: Mapping[str, int]) -> dict[str, Row]:
    """Return throughput and memory in units of the regular step; `more` is how many times its samples are taken."""
    if name == "validation":
        return {"step_ratio": quartiles(taken[name] / taken["regular"] for taken in rounds)}
    found = {"throughput_ratio": quartiles(more * taken["regular"] / taken[name] for taken in rounds)}
    if {name, "regular"} <= peaks.keys():
        found["peak_ratio"] = {"value": peaks[name] / peaks["regular"]}
    if name.startswith("inrun") and "validation" in rounds[0]:
        net = (more * taken["regular"] / (taken[name] - taken["validation"]) for taken in rounds)
        found["net_throughput_ratio"] = quartiles(net)
    return found


@dataclass(frozen=True)
class Variant:
    """A training step, ready to be called again and again, on `samples` samples; and who watches it."""

    step: Call
    samples: int
    model: nn.Module
    optimizer: torch.optim.Optimizer
    engine: InRunShapley | None = None

    def rule(self) -> str:
        """Return the rules by which linear maps and convolutions were scored, or how late probes were served."""
        if self.engine is None:
            return ""
        rules, late = self.engine.choices["rules"], self.engine.choices["late"]
        return ", ".join(sorted(set(rules.values()))) or (f"late: {late}" if late else "")

    def peak_bytes(self) -> int:
        """Return the peak memory of a step, the weights and what the optimiser keeps of them included."""
        kept = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = [*self.model.parameters(), *(value for value in kept if isinstance(value, Tensor))]
        return sum(tensor.nbytes for tensor in tensors) + peak_bytes(self.step)


class _Maker:
    """Makes the variants of one unit, all of the same weights and data."""

    def __init__(self, unit: Unit) -> None:
        self.kind = MODELS[unit.task]
        self.backend = str(unit.settings["compiled"])
        torch.manual_seed(unit.seed)
        with torch.device(device()):  # there, as drawing so many weights takes a processor seconds
            self.model = self.kind.make()
        self.train, self.validation = (
            tuple(x.to(device()) for x in self.kind.data(n)) for n in (self.kind.batch, self.kind.validation)
        )
        parameters = self.model.parameters()
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(parameters, lr=SMALL_RATE)
            if unit.settings["optimizer"] == "sgd"
            else torch.optim.AdamW(parameters, lr=SMALL_RATE, fused=True)
        )
        self.run: Callable[[Tensor], Tensor] = self.model

    def variant(self, name: str) -> Variant:
        """Return the variant of that name."""
        engine, samples = None, self.kind.batch
        step: Call = self.regular
        if name.startswith("inrun"):
            order, _, rule = name.removeprefix("inrun-").partition("-")
            lagged, joint = name in (LAGGED, LAGGED_JOINT), name in (JOINT, LAGGED_JOINT)
            engine = InRunShapley(
                self.model,
                self.optimizer,
                samples,
                order,
                validation=None if joint else self.validation_loss,
                rules="auto" if lagged or joint else rule or "auto",
                tolerance=TOLERANCE if lagged else 0.0,
            )
            step = partial(self.joint if joint else self.valued, engine, torch.arange(samples))
        elif name == "validation":
            samples, step = self.kind.validation, self.validation_gradient
        elif name == "per-sample-vmap":
            samples, step = self.kind.loop, self.per_sample
        step()  # uncompiled, as an engine follows parameters in its first, in a mode that would be compiled for as well
        if self.backend != "no":  # after the engine, whose hooks become part of the graph
            self.run = torch.compile(self.model, backend=self.backend, dynamic=False, fullgraph=True)
        return Variant(step, samples, self.model, self.optimizer, engine)

    def loss(self, run: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
        with _autocast():
            return nn.functional.cross_entropy(run(x).flatten(0, -2), y.flatten())

    def validation_loss(self) -> Tensor:
        return self.loss(self.run, *self.validation)

    def validation_gradient(self) -> Sequence[Tensor]:
        return torch.autograd.grad(self.validation_loss(), list(self.model.parameters()))

    def regular(self) -> None:
        self.loss(self.run, *self.train).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def valued(self, engine: InRunShapley, index: Tensor) -> None:
        with engine.step(index):
            self.regular()

    def joint(self, engine: InRunShapley, index: Tensor) -> None:
        rows = self.kind.validation
        x, y = (torch.cat(parts) for parts in zip(self.train, self.validation, strict=True))
        with engine.step(index, validation_rows=rows) as step:
            with _autocast():
                each = nn.functional.cross_entropy(self.run(x).flatten(0, -2), y.flatten(), reduction="none")
            losses = each.view(len(x), -1).mean(1)
            step.loss(losses[:-rows], losses[-rows:]).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def per_sample(self) -> Tensor:
        """Form every sample's gradient, dot it with the probe, and step with their sum; in bfloat16 throughout.

        Autocast casts anew in the backward pass of a transformed function, and not as it did in the forward pass.
        """
        n = self.kind.loop
        x, y = (part[:n] for part in self.train)

        def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            logits = torch.func.functional_call(self.model, weights, (x[None],)).flatten(0, -2)
            return nn.functional.cross_entropy(logits.float(), y[None].flatten()) / n

        probe = self.validation_gradient()
        weights = {name: p.detach().bfloat16() for name, p in self.model.named_parameters()}
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels know no weights of a sample's own
            per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
            own = per_sample(weights, x.bfloat16() if x.is_floating_point() else x, y)
        scores = torch.zeros(n, device=x.device)
        for (name, parameter), q in zip(self.model.named_parameters(), probe, strict=True):
            gradients = own.pop(name).float()  # [B, ...]
            scores += gradients.flatten(1) @ (SMALL_RATE * q).flatten()
            parameter.grad = gradients.sum(0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return scores


def _forward_flops(make: Callable[[], nn.Module], x: Tensor) -> int:
    """Count the multiplications and additions of matrix products in one sample's forward pass, on no device at all."""
    from torch.utils.flop_counter import FlopCounterMode  # it imports Triton, which reads TRITON_INTERPRET then

    with torch.device("meta"):
        model = make()
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(x.to("meta"))
    return int(counter.get_total_flops())


def _autocast() -> AbstractContextManager[Any]:
    return torch.autocast(device(), torch.bfloat16)
