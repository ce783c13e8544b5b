"""The engine against brute force, its books, and what it refuses."""

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from inrun_bench import InRunShapley
from inrun_bench.attribution import First, Integrated, ghost_rule
from inrun_bench.attribution.families.registry import _RULES
from tests.attribution.brute_force import BruteForce, relative_error

ORDERS = ("first", "second", "integrated", "midpoint", "trapezoid")
N, N_VAL, D, CLASSES = 7, 11, 5, 3


class Twice(nn.Module):
    """One layer called twice, and one weight shared by two layers."""

    def __init__(self):
        super().__init__()
        self.inner, self.left, self.right = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D, bias=False)
        self.right.weight = self.left.weight
        self.head = nn.Linear(D, CLASSES)

    def forward(self, x):
        h = torch.tanh(self.inner(torch.tanh(self.inner(x))))
        return self.head(torch.tanh(self.left(h)) + torch.sigmoid(self.right(h)))


class Sequence(nn.Module):
    """A layer applied at every position of a sequence."""

    def __init__(self):
        super().__init__()
        self.each, self.head = nn.Linear(1, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(torch.tanh(self.each(x[..., None])).mean(-2))


def frozen():
    model = nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, CLASSES))
    model[0].weight.requires_grad_(False)
    return model


MODELS = {
    "logistic": lambda: nn.Linear(D, CLASSES),
    "tanh": lambda: nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, CLASSES)),
    "gelu": lambda: nn.Sequential(nn.Linear(D, 6), nn.GELU(), nn.Linear(6, 4), nn.SiLU(), nn.Linear(4, CLASSES)),
    "twice": Twice,
    "sequence": Sequence,
    "frozen": frozen,
}
OPTIMIZERS = {
    "plain": lambda m: torch.optim.SGD(m.parameters(), lr=0.2),
    "decay": lambda m: torch.optim.SGD(m.parameters(), lr=0.2, weight_decay=0.1),
    "groups": lambda m: torch.optim.SGD(
        [{"params": [p], "lr": 0.1 + 0.05 * i, "weight_decay": 0.05 * i} for i, p in enumerate(m.parameters())]
    ),
}


@dataclass
class Problem:
    model: nn.Module
    optimizer: torch.optim.Optimizer
    x: torch.Tensor
    y: torch.Tensor
    x_val: torch.Tensor
    y_val: torch.Tensor
    reduction: str = "mean"

    def loss(self, model=None):
        return F.cross_entropy((model or self.model)(self.x), self.y, reduction=self.reduction)

    def validation(self, model=None):
        return F.cross_entropy((model or self.model)(self.x_val), self.y_val)

    def sample_loss(self, model, i):
        share = 1 / len(self.x) if self.reduction == "mean" else 1.0
        return F.cross_entropy(model(self.x[i : i + 1]), self.y[i : i + 1]) * share

    def brute_force(self):
        return BruteForce(self.model, self.optimizer, N, self.sample_loss, self.validation)

    def take_step(self):
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def score(self, engine, index=None):
        with engine.step(np.arange(N) if index is None else index):
            self.take_step()
        return engine.ledger.steps[-1]

    def engine(self, order, **options):
        return InRunShapley(self.model, self.optimizer, N, order, validation=self.validation, **options)


def problem(model="tanh", optimizer="plain", reduction="mean", dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    net = MODELS[model]().to(dtype)
    x, y = torch.randn(N + N_VAL, D, dtype=dtype), torch.randint(CLASSES, (N + N_VAL,))
    return Problem(net, OPTIMIZERS[optimizer](net), x[:N], y[:N], x[N:], y[N:], reduction)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("order", ORDERS)
def test_scores_and_accounts_equal_brute_force(order, model, optimizer, reduction):
    p = problem(model, optimizer, reduction)
    brute = p.brute_force()
    expected, drop, account = brute.scores(order), brute.drop(), brute.optimizer_account()
    entry = p.score(p.engine(Integrated(points=30) if order == "integrated" else order))
    assert relative_error(entry.scores, expected) < 1e-10
    assert entry.drop == pytest.approx(drop, abs=1e-12)
    assert entry.optimizer == pytest.approx(account, abs=1e-12)
    assert entry.scores.sum() + entry.optimizer + entry.residual == pytest.approx(entry.drop, abs=1e-15)


@pytest.mark.parametrize("order", ORDERS)
def test_single_precision(order):
    p, exact = problem(dtype=torch.float32), problem()
    exact.model.load_state_dict({k: v.double() for k, v in p.model.state_dict().items()})
    exact.x, exact.x_val, exact.y, exact.y_val = p.x.double(), p.x_val.double(), p.y, p.y_val
    got, expected = p.score(p.engine(order)), exact.score(exact.engine(order))
    assert relative_error(got.scores, expected.scores) < 1e-5


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_integrated_leaves_no_residual(optimizer):
    p = problem("gelu", optimizer)
    entry = p.score(p.engine(Integrated(points=20)))
    assert abs(entry.residual) < 1e-12 * abs(entry.drop) + 1e-14


def test_second_order_is_exact_for_a_quadratic_loss():
    torch.manual_seed(0)
    x, y = torch.randn(N + N_VAL, D).double(), torch.randn(N + N_VAL, 1).double()
    model = nn.Linear(D, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.7)
    engine = InRunShapley(model, optimizer, N, "second", validation=lambda: F.mse_loss(model(x[N:]), y[N:]))
    with engine.step(range(N)):
        F.mse_loss(model(x[:N]), y[:N]).backward()
        optimizer.step()
    assert abs(engine.ledger.steps[0].residual) < 1e-13
    assert abs(engine.ledger.steps[0].drop) > 1e-3


@pytest.mark.parametrize(("order", "power"), [("first", 2), ("second", 3), (Integrated(1), 3), (Integrated(2), 5)])
def test_residual_shrinks_with_the_learning_rate_as_theory_says(order, power):
    residuals = []
    for rate in (0.04, 0.02):
        p = problem()
        p.optimizer.param_groups[0]["lr"] = rate
        residuals.append(abs(p.score(p.engine(order)).residual))
    assert np.log2(residuals[0] / residuals[1]) == pytest.approx(power, abs=0.35)


def test_a_late_probe_scores_like_an_early_one():
    @dataclass(frozen=True)
    class LateFirst(First):
        late: bool = True

    early, late = problem("twice"), problem("twice")
    a, b = early.score(early.engine("first")), late.score(late.engine(LateFirst()))
    np.testing.assert_allclose(a.scores, b.scores, rtol=1e-13)
    assert a.drop == pytest.approx(b.drop, abs=1e-14)


@pytest.mark.parametrize("order", ORDERS)
def test_training_is_untouched(order):
    plain, watched = problem(), problem()
    engine = watched.engine(order)
    for _ in range(4):
        plain.take_step()
        watched.score(engine)
    for p, q in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("order", ORDERS)
def test_the_random_stream_of_training_is_untouched(order):
    p = problem()
    engine = InRunShapley(
        p.model, p.optimizer, N, order, validation=lambda: p.validation(lambda x: p.model(F.dropout(x, 0.5)))
    )
    before = torch.random.get_rng_state()
    with pytest.warns(RuntimeWarning, match=r"validation loss 'validation' draws random numbers"):
        p.score(engine)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("order", ORDERS)
def test_values_are_sums_over_steps_and_placed_by_index(order):
    torch.manual_seed(0)
    p = problem()
    engine = InRunShapley(p.model, p.optimizer, 50, order, validation=p.validation)
    batches = [torch.randperm(50)[:N] for _ in range(5)]
    expected = np.zeros(50)
    for index in batches:
        with engine.step(index):
            p.take_step()
        np.add.at(expected, index.numpy(), engine.ledger.steps[-1].scores)
    np.testing.assert_allclose(engine.values(), expected, rtol=0, atol=1e-15)
    assert engine.values().dtype == np.float64


def test_the_batch_order_permutes_the_scores():
    p = problem()
    shuffle = torch.randperm(N)
    q = copy.deepcopy(p)
    q.optimizer = OPTIMIZERS["plain"](q.model)
    q.x, q.y = p.x[shuffle], p.y[shuffle]
    one, other = p.engine("integrated"), q.engine("integrated")
    p.score(one)
    q.score(other, shuffle)
    np.testing.assert_allclose(one.values(), other.values(), rtol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_validation_of_the_step_and_of_the_engine_give_the_same(order):
    a, b = problem(), problem()
    one, other = a.engine(order), InRunShapley(b.model, b.optimizer, N, order)
    for _ in range(3):
        a.score(one)
        with other.step(range(N), validation=b.validation):
            b.take_step()
    np.testing.assert_array_equal(one.values(), other.values())
    assert one.ledger.accounts == other.ledger.accounts


def test_weights_that_other_hands_change_between_steps_are_told_and_end_up_in_the_residual():
    p = problem()
    engine = p.engine(Integrated(points=20))
    with engine.step(np.arange(N)):
        p.take_step()
    before = p.validation().item()
    with torch.no_grad():
        p.model[0].weight.mul_(0.5)
    change = before - p.validation().item()
    drop = p.brute_force().drop()
    with pytest.warns(RuntimeWarning, match="changed by something else after step 0"), engine.step(np.arange(N)):
        p.take_step()
    assert engine.ledger.steps[0].residual == pytest.approx(change, rel=1e-9)
    assert engine.ledger.steps[1].drop == pytest.approx(drop, abs=1e-13)


def test_validation_passes_are_not_mistaken_for_training():
    """A validation set as large as the batch, and evaluation inside the block, add nothing to the scores."""
    p = problem()
    p.x_val, p.y_val = p.x_val[:N], p.y_val[:N]
    expected = p.brute_force().scores("first")
    engine = p.engine("first")
    with engine.step(range(N)):
        with torch.no_grad():
            p.model(p.x)
        p.take_step()
        p.loss().backward()  # after the step: none of its business
    assert relative_error(engine.values(), expected) < 1e-10


def test_in_place_activations():
    torch.manual_seed(0)
    p = problem()
    p.model = nn.Sequential(nn.Linear(D, 6), nn.ReLU(inplace=True), nn.Linear(6, CLASSES)).double()
    p.optimizer = OPTIMIZERS["plain"](p.model)
    twin = copy.deepcopy(p)
    twin.model[1].inplace = False
    twin.optimizer = OPTIMIZERS["plain"](twin.model)
    a, b = p.engine("integrated"), twin.engine("integrated")
    p.score(a)
    twin.score(b)
    np.testing.assert_array_equal(a.values(), b.values())


def test_detaching_leaves_nothing_behind():
    p = problem()
    engine = p.engine("integrated")
    p.score(engine)
    kept = engine.values()
    engine.detach()
    assert all(not module._forward_hooks for module in p.model.modules())
    assert not p.optimizer._optimizer_step_pre_hooks
    assert not p.optimizer._optimizer_step_post_hooks
    p.take_step()
    np.testing.assert_array_equal(engine.values(), kept)


def test_a_rule_of_ones_own():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.rand(D))

        def forward(self, x):
            return x * self.factor

    p = problem()
    p.model = nn.Sequential(Scale(), nn.Linear(D, CLASSES)).double()
    p.optimizer = OPTIMIZERS["plain"](p.model)
    seen = []

    @ghost_rule(Scale, "factor")
    def rule(_layer, a, b, q):
        seen.append(a.shape)
        return (a * b * q).sum(1)

    try:
        expected = p.brute_force().scores("first")
        assert relative_error(p.score(p.engine("first")).scores, expected) < 1e-10
        assert seen == [(N, D)]
    finally:
        del _RULES[Scale]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([0, 1, 7, 2, 3, 4, 5], "index 7 is out of range: samples are numbered 0 .. 6"),
        ([0, -1, 2, 3, 4, 5, 6], "index -1 is out of range"),
        (
            [0, 1],
            r"layer '0' \(Linear\): index names 2 samples, but no argument of the call, of shapes \[\[7, 5\]\], has an",
        ),
        ([], "non-empty array of integers"),
        ([0.0, 1.0], "array of integers.*got float64"),
        ([[0, 1]], r"index of shape \(1, 2\) needs weights"),
        ([[[0, 1]]], r"array of integers.*got int64 of shape \(1, 1, 2\)"),
    ],
)
def test_bad_index(index, message):
    p = problem()
    engine = p.engine("first")
    with pytest.raises(ValueError, match=message), engine.step(index):
        p.take_step()
    assert engine.ledger.steps == []
    p.score(engine)  # the engine goes on


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (lambda p: F.cross_entropy(p.model(p.x_val), p.y_val, reduction="none"), r"scalar tensor.*shape \[11\]"),
        (lambda _p: 0.5, "scalar tensor.*got float"),
        (lambda p: p.validation().detach(), "without a graph"),
    ],
)
@pytest.mark.parametrize("order", ORDERS)
def test_bad_validation(order, validation, message):
    p = problem()
    engine = InRunShapley(p.model, p.optimizer, N, order)
    with pytest.raises(ValueError, match=message), engine.step(range(N), validation=lambda: validation(p)):
        p.take_step()
    assert engine.ledger.steps == []


def test_misuse_of_steps():
    p = problem()
    engine = p.engine("integrated")
    with pytest.raises(RuntimeError, match="nested"), engine.step(range(N)), engine.step(range(N)):
        pass
    with pytest.raises(RuntimeError, match=r"without optimizer.step\(\)"), engine.step(range(N)):
        p.loss().backward()
    with pytest.raises(RuntimeError, match="called twice"), engine.step(range(N)):
        p.take_step()
        p.take_step()
    with pytest.raises(ValueError, match="no validation loss"), InRunShapley(p.model, p.optimizer, N).step(range(N)):
        pass
    assert engine.ledger.steps == []


def test_an_exception_in_the_block_passes_and_writes_nothing():
    p = problem()
    engine = p.engine("second")
    with pytest.raises(KeyError, match="mine"), engine.step(range(N)):
        p.loss().backward()
        raise KeyError("mine")
    assert engine.ledger.steps == []
    p.optimizer.zero_grad()
    expected = p.brute_force().scores("second")
    assert relative_error(p.score(engine).scores, expected) < 1e-10


def test_scores_that_are_not_finite():
    p = problem()
    p.x[3, 0] = float("nan")
    engine = p.engine("first")
    with pytest.raises(
        FloatingPointError, match=r"step 0: the score of sample 3 is not finite, first in layer '2' \(Linear\)"
    ):
        p.score(engine)
    assert engine.ledger.steps == []


def build(**changes):
    p = problem()
    model = changes.get("model", p.model)
    optimizer = torch.optim.SGD(list(model.parameters()) or [torch.zeros(1)], lr=0.1)
    given = {"model": model, "optimizer": optimizer, "n_samples": N, "order": "first", **changes}
    return InRunShapley(**given)


def test_bad_arguments():
    p = problem()
    parameters = list(p.model.parameters())
    with pytest.raises(ValueError, match=r"order must be one of 'first', .*'trapezoid' or a Probe, got 'third'"):
        build(order="third")
    with pytest.raises(ValueError, match="n_samples must be at least 1, got 0"):
        build(n_samples=0)
    with pytest.raises(ValueError, match="points must be at least 1, got 0"):
        Integrated(points=0)
    with pytest.raises(ValueError, match=r"rules must be one of 'auto', .*'gram', got 'fastest'"):
        build(rules="fastest")
    with pytest.raises(TypeError, match="LBFGS"):
        build(optimizer=torch.optim.LBFGS(parameters))
    with pytest.raises(TypeError, match=r"batch norm couples.*'1' \(BatchNorm1d\).*GroupNorm"):
        build(model=nn.Sequential(nn.Linear(D, 3), nn.BatchNorm1d(3, affine=False)))
    with pytest.raises(ValueError, match="no trained parameters"):
        build(model=nn.Tanh())
