"""No step waits for the device: its numbers leave it in one transfer, which is read when the next step is queued."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

import inrun_bench
from inrun_bench import InRunShapley
from inrun_bench.attribution import First, transfer
from inrun_bench.attribution.batch_samples import BatchSamples
from inrun_bench.attribution.capture.fused import FusedLayers
from inrun_bench.attribution.capture.layers import WatchedLayers
from inrun_bench.attribution.gradient_scaling import Watcher
from inrun_bench.attribution.scoring.keep import KeepRoute
from inrun_bench.attribution.step import OpenStep, StepBegun
from inrun_bench.attribution.transfer import Numbers
from inrun_bench.attribution.validation import ValidationLoss
from tests.attribution.problem import N, problem

ORDERS = ("first", "second", "midpoint", "trapezoid", "integrated")
DYNAMO = "ignore:.*should not be instantiated:DeprecationWarning"  # the compiler's own


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "heavy ball": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "fused adamw": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}
WARM, STEPS = 3, 7  # what is learnt of a model is learnt in the first steps
TOKENS, WIDTH = 6, 8


class Language(nn.Module):
    """Tokens at positions, and a parameter that no rule covers."""

    def __init__(self):
        super().__init__()
        self.token, self.position = nn.Embedding(11, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.inner, self.norm, self.head = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 11)
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        h = self.token(x) + self.position(torch.arange(TOKENS, device=x.device))
        return self.head(self.norm(h + torch.tanh(self.inner(h)) * self.scale))


def covered():
    """A model of layers with rules alone."""
    return nn.Sequential(nn.Embedding(11, WIDTH), nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 11))


def run(device, build_optimizer, order, *, act=lambda _step: None, between=lambda _model: None, **options):
    """Train a small language model on one batch, with two validation sets."""
    torch.manual_seed(0)
    compiled, parts, own = (options.pop(name, False) for name in ("compiled", "parts", "own_validation"))
    model = (covered if compiled else Language)().to(device)
    call = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
    optimizer = build_optimizer(list(model.parameters()))
    scaler = torch.amp.GradScaler(device, enabled=options.pop("scaled", False))
    x = torch.randint(11, (N + 4, TOKENS)).to(device)

    def loss(x):
        return F.cross_entropy(call(x).flatten(0, 1), x.flatten())

    sets = {"one": lambda: loss(x[N:]), "other": lambda: loss(x[N:-1])}
    axes = {"": 0} if compiled else {"": 0, "position": None}  # there are no numbers to observe them by
    inrun = InRunShapley(model, optimizer, N, order, validation=None if own else sets, batch_axis=axes, **options)
    for number in range(STEPS):
        act(number)
        with inrun.step(validation=sets if own else None) as step:
            for part in range(parts or 1):
                step.batch(range(N)[part :: parts or 1])
                scaler.scale(loss(x[:N][part :: parts or 1])).backward()
            if scaler.is_enabled():
                scaler.unscale_(optimizer)
            between(model)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    act(None)
    return inrun


@pytest.fixture
def transfers(monkeypatch):
    """[step of a transfer, step in which it is read] of all transfers; whoever sets `step` says where we are."""

    class Transfers(list):
        step: int | None = 0
        real = staticmethod(transfer.to_host)

        def __call__(self, numbers):
            record = [self.step, None]
            self.append(record)
            arrival = self.real(numbers)

            def read():
                record[1] = self.step
                return arrival()

            return read

        def of_late_steps(self):
            return [record for record in self if record[0] is not None and record[0] >= WARM]

    log = Transfers()
    for name, module in list(sys.modules.items()):
        if name.startswith("inrun_bench.attribution.") and hasattr(module, "to_host"):
            monkeypatch.setattr(module, "to_host", log)
    return log


ONE_EACH_READ_A_STEP_LATER = [[step, step + 1] for step in range(WARM, STEPS - 1)] + [[STEPS - 1, None]]


class NoCopies(TorchDispatchMode):
    """Refuses copies from the host to the device, which wait as well."""

    on = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if self.on and any(isinstance(x, torch.Tensor) and x.is_meta for x in tree_leaves(result)):
            copied = str(func).startswith(("aten._to_copy", "aten.copy"))
            for x in tree_leaves((args, kwargs)):
                if isinstance(x, torch.Tensor) and not x.is_meta and (x.dim() or copied):
                    raise AssertionError(f"{func} reads a tensor of the host, of shape {list(x.shape)}")
        return result


@pytest.fixture
def without_numbers(monkeypatch, transfers):
    """A device whose tensors have no numbers, so that whoever reads one fails; transfers bring zeros."""
    transfers.real = lambda numbers: lambda: np.zeros(tuple(numbers.shape))
    monkeypatch.setattr(torch.Tensor, "data_ptr", lambda x: x.untyped_storage()._cdata)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _device: False)
    optimizer = sys.modules["torch.optim.optimizer"]
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: ["meta"])
    return transfers


def run_without_numbers(transfers, *arguments, **options):
    with NoCopies() as copies:

        def act(step):
            transfers.step, copies.on = step, step is not None and step >= WARM

        return run("meta", *arguments, act=act, **options)


@pytest.mark.parametrize(
    ("order", "optimizer"),
    [
        *itertools.product(ORDERS[:-1], ["sgd"]),
        *itertools.product(["first"], list(OPTIMIZERS)[1:]),
        ("trapezoid", "adamw"),
    ],
)
def test_nothing_reads_a_number_of_the_device(without_numbers, order, optimizer):
    run_without_numbers(without_numbers, OPTIMIZERS[optimizer], order)
    assert without_numbers.of_late_steps() == ONE_EACH_READ_A_STEP_LATER


SETTINGS = {
    "accumulated": {"parts": 2},
    "clipped by norm": {"between": lambda m: nn.utils.clip_grad_norm_(m.parameters(), 1.0)},
    "clipped by value": {"between": lambda m: nn.utils.clip_grad_value_(m.parameters(), 1.0)},
    "validation of the step": {"own_validation": True},
    "scored in one product": {"rules": "weight-gradient"},
    "in factors": {"rules": "gram"},
}


@pytest.mark.parametrize(
    ("setting", "optimizer"),
    [*itertools.product(SETTINGS, ["sgd"]), ("clipped by norm", "fused adamw"), ("accumulated", "fused adamw")],
)
def test_nothing_reads_a_number_of_the_device_whatever_the_setting(without_numbers, setting, optimizer):
    inrun = run_without_numbers(without_numbers, OPTIMIZERS[optimizer], "first", **SETTINGS[setting])
    assert without_numbers.of_late_steps() == ONE_EACH_READ_A_STEP_LATER
    assert setting != "in factors" or "gram" in inrun.choices["rules"].values()


def test_splitting_reads_no_number_of_the_device(without_numbers):
    run_without_numbers(without_numbers, OPTIMIZERS["sgd"], "trapezoid", late="split")
    assert without_numbers.of_late_steps() == ONE_EACH_READ_A_STEP_LATER


@pytest.mark.parametrize("order", ["first", "trapezoid"])
def test_a_learning_rate_on_the_device_is_not_read(without_numbers, monkeypatch, order):
    def optimizer(parameters):
        made = OPTIMIZERS["heavy ball"](parameters)
        made.param_groups[0]["lr"] = torch.tensor(0.1, device="meta")
        return made

    monkeypatch.setattr(
        sys.modules["torch.optim.sgd"], "sgd", lambda *_, **__: None
    )  # which reads it, unless a graph is captured
    run_without_numbers(without_numbers, optimizer, order)
    assert without_numbers.of_late_steps() == ONE_EACH_READ_A_STEP_LATER


def test_optimisers_that_are_read_off_their_own_step_wait_once_a_step(without_numbers):
    run_without_numbers(without_numbers, lambda p: torch.optim.RMSprop(p, lr=0.01), "first")
    steps = [step for step, _ in without_numbers.of_late_steps()]
    assert steps == sorted([*range(WARM, STEPS), *range(WARM, STEPS)])


class Unwatched:
    def show(self, micro_batch):
        """Do nothing: there is no model."""


def test_an_index_on_the_device_travels_with_the_scores(without_numbers):
    without_numbers.real = lambda numbers: lambda: np.arange(len(numbers), dtype=float)
    begun = StepBegun(7, False, torch.device("meta"), {}, [], [], BatchSamples(10), Numbers())
    step = OpenStep(begun, KeepRoute(First(), {}, lambda _term: None), Unwatched(), lambda: None, None)
    step.batch(torch.empty(4, dtype=torch.int32, device="meta"))
    step.batch([8, 9])
    assert begun.samples.rows == 6
    begun.checks.read()
    index, scores = begun.samples.credited(np.arange(6.0))
    assert index.tolist() == [0, 1, 2, 3, 8, 9]
    assert scores.tolist() == [0, 1, 2, 3, 4, 5]
    step.batch(torch.empty(11, dtype=torch.int64, device="meta"))
    with pytest.raises(ValueError, match="step 7: index 10 is out of range"):
        begun.checks.read()
    with pytest.raises(ValueError, match="non-empty array of integers"):
        step.batch(torch.empty(2, device="meta"))
    with pytest.raises(ValueError, match="needs weights"):
        step.batch(torch.empty(2, 2, dtype=torch.int64, device="meta"))


@pytest.mark.parametrize("own", [False, True])
def test_factors_that_leave_something_out_are_tried_once(transfers, own):
    p = problem()

    def validation():
        return p.validation() + 0.1 * p.model[0].weight.square().sum()

    given = {"rules": "gram", "batch_axis": 0}  # that is observed now and then, which waits
    inrun = InRunShapley(p.model, p.optimizer, N, "first", validation=None if own else validation, **given)
    for transfers.step in range(STEPS):
        with inrun.step(range(N), validation=validation if own else None):
            p.take_step()
    assert transfers.of_late_steps() == ONE_EACH_READ_A_STEP_LATER
    assert inrun.choices["rules"]["0"] == "project"
    assert inrun.choices["rules"]["3"] == ("project" if own else "gram")


READING = ("item", "tolist", "numpy", "cpu", "__array__", "__bool__", "__float__", "__int__", "__index__")
WAITING = {
    *("_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select", "bincount", "unique_dim"),
    *("_unique2", "unique_consecutive"),
}


class Waits(TorchDispatchMode):
    """Records, while `on`, what would make a GPU wait for the host, if the package does it outside of a transfer."""

    def __init__(self):
        super().__init__()
        self.on, self.found = False, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__ if hasattr(func, "overloadpacket") else str(func)
        masks = name in ("index", "index_put", "index_put_") and any(
            isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1])
        )
        repeats = name == "repeat_interleave" and not (kwargs or {}).get("output_size")
        if name in WAITING or masks or repeats:
            self.note(name)
        return func(*args, **(kwargs or {}))

    def note(self, name):
        package, torchs = Path(inrun_bench.__file__).parent, Path(torch.__file__).parent
        frame = sys._getframe(1)
        while frame is not None:  # the first that is neither torch's nor ours here has asked
            path, passing_on = Path(frame.f_code.co_filename), frame.f_code.co_name == "__torch_function__"
            if path.is_relative_to(package) and not passing_on:
                of_host = ("settings.py", "random_state.py")  # their tensors are the host's
                if self.on and path.name not in ("transfer.py", *of_host):
                    self.found.add(f"{path.name}:{frame.f_lineno} {name}")
                return
            if not (passing_on or path.is_relative_to(torchs) or frame.f_code.co_filename == __file__):
                return
            frame = frame.f_back


@pytest.fixture
def waits(monkeypatch):
    recorded = Waits()

    def spy(name):
        real = getattr(torch.Tensor, name)

        def read(tensor, *arguments, **options):
            if not torch.compiler.is_compiling():
                recorded.note(name)
            return real(tensor, *arguments, **options)

        monkeypatch.setattr(torch.Tensor, name, read)

    for name in READING:
        spy(name)
    return recorded


@pytest.mark.parametrize(
    ("order", "optimizer", "scaled"),
    [
        *itertools.product(ORDERS, ["sgd"], [False]),
        *itertools.product(["first", "trapezoid"], ["adamw"], [False, True]),
        ("first", "sgd", True),
        ("first", "fused adamw", True),
    ],
)
def test_nothing_waits(waits, transfers, order, optimizer, scaled):
    def act(step):
        transfers.step, waits.on = step, step is not None and step >= WARM

    with waits:
        clip = SETTINGS["clipped by norm"]["between"] if scaled else lambda _model: None
        inrun = run("cpu", OPTIMIZERS[optimizer], order, act=act, scaled=scaled, between=clip)
    assert waits.found == set()
    assert transfers.of_late_steps() == ONE_EACH_READ_A_STEP_LATER
    assert len(inrun.ledgers["one"].steps) == STEPS


@pytest.mark.filterwarnings(DYNAMO)
@pytest.mark.parametrize(
    ("order", "optimizer", "rules"),
    [
        ("first", "sgd", "project"),
        ("first", "sgd", "weight-gradient"),
        ("first", "fused adamw", "auto"),
        ("midpoint", "sgd", "auto"),
    ],
)
def test_nothing_waits_for_a_compiled_model(waits, transfers, monkeypatch, order, optimizer, rules):
    """Graphs are not run where operations are recorded, so that they are in what the engine does beside them."""
    entered = []

    def recorded(owner, name):
        real = getattr(owner, name)

        def method(*arguments, **options):
            if not waits.on:
                return real(*arguments, **options)
            entered.append(name)
            with waits:
                return real(*arguments, **options)

        monkeypatch.setattr(owner, name, method)

    steps = ("_early_direction", "_before_optimizer_step", "_after_optimizer_step")
    for owner, name in [
        *((InRunShapley, name) for name in (*steps, "_finish")),
        (WatchedLayers, "receive_compiled"),
        (FusedLayers, "score_compiled"),
        (Watcher, "_accumulated"),
    ]:
        recorded(owner, name)

    def act(step):
        transfers.step, waits.on = step, step is not None and step >= WARM

    plain = ValidationLoss._loss

    def unrecorded(loss):
        with _disable_current_modes():
            return plain(loss)

    monkeypatch.setattr(ValidationLoss, "_loss", unrecorded)
    try:
        run("cpu", OPTIMIZERS[optimizer], order, act=act, compiled=True, rules=rules)
    finally:
        torch._dynamo.reset()
    assert waits.found == set()
    assert transfers.of_late_steps() == ONE_EACH_READ_A_STEP_LATER
    assert entered.count("receive_compiled") + entered.count("score_compiled") == 4 * (STEPS - WARM)


def test_the_count_finds_what_waits(waits, transfers):
    class Curious(First):
        def direction(self, step):
            v = super().direction(step)
            float(v[0].sum())
            v[0][v[0] > 0].sum()
            return v

    with waits:
        run("cpu", OPTIMIZERS["sgd"], Curious(), act=lambda step: setattr(waits, "on", bool(step)))
    assert {found.partition(" ")[2] for found in waits.found} == {"__float__", "_local_scalar_dense", "index"}


@pytest.mark.filterwarnings(DYNAMO)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("order", "optimizer", "compiled"),
    [
        *itertools.product(ORDERS, ["sgd", "fused adamw"], [False]),
        ("first", "sgd", True),
        ("first", "fused adamw", True),
    ],
)
def test_a_gpu_is_not_waited_for(order, optimizer, compiled):
    def act(step):
        torch.cuda.set_sync_debug_mode("default" if step is None or step < WARM else "error")

    try:
        run("cuda", OPTIMIZERS[optimizer], order, act=act, compiled=compiled)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch._dynamo.reset()
