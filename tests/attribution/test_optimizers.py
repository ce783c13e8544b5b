"""The engine with every optimiser, and with what happens to gradients on their way to it."""

import logging

import pytest
import torch
from torch import nn

from inrun_bench import InRunShapley
from tests.attribution.problem import N, perceptron, problem

ORDERS = ("first", "second", "midpoint", "trapezoid", "integrated")


def groups(model):
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    return [{"params": weights, "weight_decay": 0.1}, {"params": others, "lr": 0.03, "weight_decay": 0.0}]


OPTIMIZERS = {
    "heavy ball": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    "dampened": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.01),
    "nesterov": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.01),
    "sgd groups": lambda m: torch.optim.SGD(groups(m), lr=0.1, momentum=0.5),
    "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01, momentum=0.5),
    "adagrad": lambda m: torch.optim.Adagrad(m.parameters(), lr=0.05),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.01, weight_decay=0.1),
    "adamw": lambda m: torch.optim.AdamW(groups(m), lr=0.01),
    "fused adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, fused=True),
    "amsgrad": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, amsgrad=True),
    "nadam": lambda m: torch.optim.NAdam(m.parameters(), lr=0.01),
    "adadelta": lambda m: torch.optim.Adadelta(m.parameters(), lr=0.5),
}
PROBED = {"rmsprop", "adagrad", "amsgrad", "nadam", "adadelta"}  # by differences: less exact where gradients are tiny


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("order", ORDERS)
def test_scores_and_accounts_equal_brute_force(order, name):
    problem(optimizer=OPTIMIZERS[name]).check(order, steps=3, tolerance=1e-7 if name in PROBED else 1e-9)


@pytest.mark.parametrize("name", ["heavy ball", "adamw"])
def test_learning_rate_schedules(name):
    p = problem(optimizer=OPTIMIZERS[name])
    schedule = torch.optim.lr_scheduler.LambdaLR(p.optimizer, lambda step: 0.5**step)
    engine = p.engine("integrated")
    for _ in range(3):
        p.check("integrated", steps=1, tolerance=1e-9, engine=engine)
        schedule.step()


@pytest.mark.parametrize("order", ["first", "integrated"])
def test_frozen_parameters_and_those_that_the_optimiser_does_not_hold(order):
    def build():
        model = perceptron()
        model[0].weight.requires_grad_(False)
        model[2].bias.requires_grad_(False)
        return model

    def optimizer(model):
        return torch.optim.AdamW([model[0].bias, model[2].weight, model[3].weight], lr=0.01)  # not model[3].bias

    problem(build, optimizer).check(order, tolerance=1e-9)


@pytest.mark.parametrize("name", ["heavy ball", "sgd groups", "adamw"])
@pytest.mark.parametrize("order", ORDERS)
def test_clipping_by_norm(order, name):
    p = problem(
        optimizer=OPTIMIZERS[name],
        between=lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.01),
        received=lambda g: g * (0.01 / (g.norm() + 1e-6)),
    )
    p.check(order, steps=3, tolerance=1e-9)


@pytest.mark.parametrize("name", ["heavy ball", "adamw"])
@pytest.mark.parametrize("order", ORDERS)
def test_clipping_by_value(order, name):
    p = problem(
        optimizer=OPTIMIZERS[name],
        between=lambda m: nn.utils.clip_grad_value_(m.parameters(), 0.01),
        received=lambda g: g.clamp(-0.01, 0.01),
        options={"late": "keep"},
    )
    p.check(order, tolerance=1e-9)


def test_an_early_probe_cannot_follow_clipping_by_value_and_says_so():
    p = problem(between=lambda m: nn.utils.clip_grad_value_(m.parameters(), 0.01))
    before = [w.clone() for w in p.model.parameters()]
    engine = p.engine("first")
    with (
        pytest.raises(ValueError, match=r"element by element .*clipped by value.*pass late='keep'"),
        engine.step(range(N)),
    ):
        p.take_step()
    assert all(torch.equal(w, p_) for w, p_ in zip(before, p.model.parameters(), strict=True))
    assert len(engine.ledger.steps) == 0


def test_clipping_by_value_that_begins_later_is_followed_from_the_next_step_on():
    p = problem()
    engine = p.engine("first")
    p.check("first", engine=engine)
    p.between = lambda m: nn.utils.clip_grad_value_(m.parameters(), 0.01)
    p.received = lambda g: g.clamp(-0.01, 0.01)
    with pytest.warns(RuntimeWarning, match="step 2: gradients were changed"), engine.step(range(N)):
        p.take_step()
    p.check("first", engine=engine, steps=3)


def test_clipping_by_norm_that_begins_later_is_exact_at_once():
    p = problem()
    engine = p.engine("first")
    p.check("first", engine=engine)
    p.between = lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.01)
    p.received = lambda g: g * (0.01 / (g.norm() + 1e-6))
    with pytest.warns(RuntimeWarning, match="step 2: gradients were changed"):
        p.check("first", engine=engine, steps=1)
    p.check("first", engine=engine)


@pytest.mark.parametrize("share", [1e-3, 1e-9])
def test_one_element_that_is_changed_a_little_is_no_common_factor(share):
    """Clipping by value may touch next to nothing of a gradient; scores of an early probe cannot follow it."""
    p = problem()
    p.between = lambda m: m[0].weight.grad[0, 0].mul_(1 - share)
    with pytest.raises(ValueError, match="element by element"):
        p.train(p.engine("first"), 1)


class Lion(torch.optim.Optimizer):
    """Element-wise, and nobody's: the sign of an average."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.99)):
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                average = state.setdefault("average", torch.zeros_like(p))
                one, two = group["betas"]
                p.sub_(torch.tanh(50 * torch.lerp(p.grad, average, one)), alpha=group["lr"])
                average.lerp_(p.grad, 1 - two)


@pytest.mark.parametrize("order", ORDERS)
def test_an_optimiser_that_nobody_has_heard_of(order):
    problem(optimizer=lambda m: Lion(m.parameters())).check(order, steps=3, tolerance=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda m: torch.optim.LBFGS(m.parameters()), "LBFGS.*"),
        (lambda m: torch.optim.Muon([p for p in m.parameters() if p.dim() == 2]), "Muon.*"),
        (lambda m: torch.optim.Adafactor(m.parameters()), "Adafactor.*"),
    ],
)
def test_optimisers_that_are_not_element_wise_are_refused_with_the_reason(build, message):
    p = problem()
    with pytest.raises(TypeError, match=message):
        InRunShapley(p.model, build(p.model), N)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta", "NAdam"])
def test_float16_parameters_are_refused_but_under_sgd(name):
    p = problem()
    p.model.half()
    with pytest.raises(TypeError, match=f"{name} holds float16 parameters"):
        InRunShapley(p.model, getattr(torch.optim, name)(p.model.parameters()), N)
    InRunShapley(p.model, torch.optim.SGD(p.model.parameters(), lr=0.1), N)
    p.model.bfloat16()
    InRunShapley(p.model, getattr(torch.optim, name)(p.model.parameters()), N)


@pytest.mark.parametrize("rules", ["project", "weight-gradient"])
@pytest.mark.parametrize("order", ["first", "integrated"])
@pytest.mark.parametrize(("kind", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_autocast_and_gradient_scaling(kind, tolerance, order, rules):
    p = problem(shape=(6, 4))
    p.loss = lambda model, x, y, reduction="mean": nn.functional.cross_entropy(model(x).mean(1), y, reduction=reduction)
    expected = p.brute_force().scores(order)
    p.model, p.x = p.model.float(), p.x.float()
    p.optimizer = torch.optim.SGD(p.model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    engine = p.engine(order, rules=rules)

    def step(factor=1.0):
        with engine.step(range(N)):
            with torch.autocast("cpu", dtype=kind):
                loss = p.batch_loss() * factor
            scaler.scale(loss).backward()
            scaler.step(p.optimizer)
            scaler.update()
            p.optimizer.zero_grad()

    step(1e38)  # overflows; the scaler skips the step
    assert len(engine.ledger.steps) == 0
    step()
    scores = engine.ledger.steps[0].scores
    assert ((scores - expected) ** 2).sum() ** 0.5 < tolerance * (expected**2).sum() ** 0.5


def test_what_an_early_probe_costs_is_told(caplog):
    caplog.set_level(logging.INFO)
    p = problem(optimizer=OPTIMIZERS["adamw"])
    engine = p.check("first", tolerance=1e-9)
    assert engine.choices["late"] == "keep"
    assert engine.choices["kept_bytes"] > 0
    assert "late probes: keep" in caplog.text
