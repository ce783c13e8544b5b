"""Loops as people write them: each is scored exactly, or refused with a way out; none is wrong without a word."""

import copy
import io
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F  # noqa: N812

from inrun_bench import InRunShapley
from inrun_bench.attribution import weights
from inrun_bench.attribution.transfer import Numbers
from tests.attribution.brute_force import relative_error
from tests.attribution.problem import N, perceptron, problem

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


def same(engine, other):
    assert relative_error(engine.values(), other.values()) < 1e-12
    for name, amount in engine.ledger.accounts.items():
        assert amount == pytest.approx(other.ledger.accounts[name], abs=1e-12)


class Wrapper(torch.optim.Optimizer):
    """What accelerate puts around an optimiser: one by class, and nothing of its own."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)

    def step(self, closure=None):
        self.optimizer.step(closure)

    def zero_grad(self, set_to_none=None):
        self.optimizer.zero_grad()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_a_wrapped_optimiser_is_that_in_the_wrapper(name):
    plain, wrapped = (problem(optimizer=lambda m: OPTIMIZERS[name](m.parameters())) for _ in range(2))
    one = plain.engine("first")
    wrapped.optimizer = Wrapper(wrapped.optimizer)
    other = wrapped.engine("first")
    plain.train(one, 3)
    wrapped.train(other, 3)
    np.testing.assert_array_equal(one.values(), other.values())


@pytest.mark.filterwarnings("ignore:step 1. gradients were changed")
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_gradients_that_became_infinite_after_they_were_accumulated_are_refused(name):
    case = problem(optimizer=lambda m: OPTIMIZERS[name](m.parameters()))
    engine = case.engine("first")
    case.train(engine, 1)
    values = engine.values()
    case.between = lambda model: [p.grad.mul_(math.inf) for p in model.parameters()]
    with pytest.raises((FloatingPointError, ValueError), match=r"step 1: .*not finite"):
        case.train(engine, 1)
    np.testing.assert_array_equal(engine.values(), values)


@pytest.mark.parametrize("resume", [False, True])
def test_gradients_that_are_changed_in_some_steps_are_foreseen_after_the_first_time(resume):
    p = problem(received=lambda g: torch.cat([torch.zeros(40, dtype=g.dtype), g[40:]]))
    whole = p.received
    engine = p.engine("first")

    def step(changed):
        p.between = lambda model: [w.grad.zero_() for w in model[0].parameters()] if changed else None
        p.received = whole if changed else lambda g: g
        p.check("first", engine=engine, steps=1)

    step(False)
    p.train(engine, 2)
    p.between = lambda model: [w.grad.zero_() for w in model[0].parameters()]
    with pytest.warns(RuntimeWarning, match="gradients were changed .* later ones are exact"):
        p.train(engine, 1)
    if resume:
        state, engine = engine.state_dict(), p.engine("first")
        engine.load_state_dict(state)
    for changed in (True, False, True, False, False, True):
        step(changed)


@pytest.mark.parametrize("order", ["first", "trapezoid", "integrated"])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("begin", [0, 5])
def test_a_step_that_led_to_a_validation_loss_that_is_not_finite_is_not_booked(begin, name, order):
    p = problem(optimizer=lambda m: OPTIMIZERS[name](m.parameters()))
    engine = p.engine(order)
    p.train(engine, begin)
    p.x[N:] = math.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        p.train(engine, 1)
    booked = engine.ledger.steps
    assert len(booked) in (begin, begin - 1)  # the step before is not, where it led to that loss
    assert all(np.isfinite([*entry.scores, entry.optimizer, entry.drop]).all() for entry in booked)
    np.testing.assert_allclose(engine.values(), sum(entry.scores for entry in booked), atol=1e-15)


@pytest.mark.parametrize("order", ["first", "integrated"])
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("by_name", [False, True])
def test_a_closure_is_scored_as_the_loop_that_it_is(order, name, by_name):
    plain, closed = (problem(optimizer=lambda m: OPTIMIZERS[name](m.parameters())) for _ in range(2))
    one, other = plain.engine(order), closed.engine(order)
    plain.train(one, 3)

    def closure():
        closed.optimizer.zero_grad()
        loss = closed.batch_loss()
        loss.backward()
        return loss

    for _ in range(3):
        with other.step(range(N)):
            loss = closed.optimizer.step(closure=closure) if by_name else closed.optimizer.step(closure)
        assert isinstance(loss, torch.Tensor)
    same(one, other)
    for w, u in zip(plain.model.parameters(), closed.model.parameters(), strict=True):
        assert torch.equal(w, u)


def test_a_closure_is_evaluated_once():
    class Twice(torch.optim.Optimizer):
        @torch.no_grad()
        def step(self, closure=None):
            for _ in range(2 if closure is not None else 0):
                closure()
            for w in self.param_groups[0]["params"]:
                w -= 0.1 * w.grad

    p = problem(optimizer=lambda m: Twice(m.parameters(), {}))
    engine = p.engine("first")

    def closure():
        loss = p.batch_loss()
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="evaluates its closure more than once"), engine.step(range(N)):
        p.optimizer.step(closure)
    assert not engine.ledger.steps


@pytest.mark.parametrize("order", ["first", "second", "trapezoid"])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_learning_rate_is_the_one_of_the_step_that_is_taken(order, name):
    """Set in the block, as loops do that write their schedule themselves."""
    outside, inside = (problem(optimizer=lambda m: OPTIMIZERS[name](m.parameters())) for _ in range(2))
    one, other = outside.engine(order), inside.engine(order)
    for rate in (0.1, 0.02, 0.05):
        outside.optimizer.param_groups[0]["lr"] = rate
        with one.step(range(N)):
            outside.take_step()
        with other.step(range(N)):
            inside.optimizer.param_groups[0]["lr"] = rate
            inside.take_step()
    same(one, other)


def test_learning_rates_that_are_changed_apart_in_the_block_are_refused():
    groups = lambda m: torch.optim.SGD([{"params": m[0].parameters()}, {"params": m[2:].parameters()}], lr=0.1)  # noqa: E731
    p = problem(optimizer=groups)
    engine = p.engine("first")
    with pytest.raises(RuntimeError, match="learning rates of some parameters were changed"), engine.step(range(N)):
        p.optimizer.param_groups[0]["lr"] = 0.2
        p.take_step()


@pytest.mark.parametrize("order", ["first", "midpoint"])
def test_hooks_of_the_optimiser_may_be_put_on_at_any_time(order):
    before, after = problem(), problem()

    def clip(p):
        p.optimizer.register_step_pre_hook(lambda *_: nn.utils.clip_grad_norm_(p.model.parameters(), 0.05) and None)

    clip(before)
    one, other = before.engine(order), after.engine(order)
    clip(after)
    before.train(one, 3)
    after.train(other, 3)
    same(one, other)


def test_groups_that_are_added_to_one_of_several_optimisers_are_followed():
    p, single = problem(), problem()
    for each in (p, single):
        each.model[3].requires_grad_(False)
    a, b = (torch.optim.SGD(p.model[number].parameters(), lr=0.1) for number in (0, 2))
    one = torch.optim.SGD([*single.model[0].parameters(), *single.model[2].parameters()], lr=0.1)
    engine = InRunShapley(p.model, [a, b], N, "first", validation=p.validation)
    other = InRunShapley(single.model, one, N, "first", validation=single.validation)
    for number in range(4):
        if number == 2:
            for each in (p, single):
                each.model[3].requires_grad_(True)
            b.add_param_group({"params": list(p.model[3].parameters())})
            one.add_param_group({"params": list(single.model[3].parameters())})
        with engine.step(range(N)):
            p.batch_loss().backward()
            a.step()
            b.step()
            p.model.zero_grad()
        with other.step(range(N)):
            single.batch_loss().backward()
            one.step()
            single.model.zero_grad()
    same(engine, other)


def test_layers_that_are_unfrozen_in_the_block_are_refused():
    p = problem()
    p.model[3].requires_grad_(False)
    engine = p.engine("first")
    with pytest.raises(RuntimeError, match="frozen or unfrozen inside of the step"), engine.step(range(N)):
        p.model[3].requires_grad_(True)
        p.take_step()


@pytest.mark.parametrize("order", ["first", "integrated", "trapezoid"])
def test_autocast_around_a_step_is_autocast_within(order):
    """Its copies of weights in half precision must not outlive the weights."""
    around, within = (problem(lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))) for _ in range(2))
    for p in (around, within):
        p.model.float()
        p.x = p.x.float()
    half = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
    plain = within.validation

    def validation():
        with half():
            return plain()

    one = InRunShapley(around.model, around.optimizer, N, order, validation=around.validation)
    other = InRunShapley(within.model, within.optimizer, N, order, validation=validation)
    for _ in range(3):
        with half(), one.step(range(N)):
            around.take_step()
        with other.step(range(N)):
            with half():
                loss = within.batch_loss()
            loss.backward()
            within.optimizer.step()
            within.optimizer.zero_grad()
    with half():
        accounts = one.ledger.accounts
    assert relative_error(one.values(), other.values()) < 1e-6
    assert accounts["drop"] == pytest.approx(other.ledger.accounts["drop"], rel=1e-6)


@pytest.mark.parametrize("order", ["first", "second", "midpoint"])
def test_gradients_may_be_zeroed_in_place_in_the_block(order):
    kept, cleared = problem(), problem()
    one, other = kept.engine(order), cleared.engine(order)
    for _ in range(4):
        for p, engine in ((kept, one), (cleared, other)):
            with engine.step(range(N)):
                p.batch_loss().backward()
                p.optimizer.step()
                p.optimizer.zero_grad(set_to_none=p is kept)
    same(one, other)


@pytest.mark.parametrize("order", ["first", "second", "integrated"])
@pytest.mark.parametrize("kinds", [("sgd", "sgd"), ("sgd", "adamw"), ("rmsprop", "adamw")])
def test_several_optimisers_are_those_of_parameter_groups(order, kinds):
    """Held against brute force, whose optimiser is a pair that steps as one."""

    class Pair:
        def __init__(self, model):
            parameters = list(model.parameters())
            halves = parameters[:2], parameters[2:]
            self.members = [OPTIMIZERS[kind](half) for kind, half in zip(kinds, halves, strict=True)]
            self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = {}, {}

        def step(self):
            for member in self.members:
                member._optimizer_step_pre_hooks.clear()
                member._optimizer_step_post_hooks.clear()
                member.step()

    p = problem(optimizer=Pair)
    engine = InRunShapley(p.model, p.optimizer.members, N, order, validation=p.validation)
    tolerance = 1e-10 if order != "integrated" else 1e-6  # four points
    for _ in range(3):
        brute = p.brute_force()
        expected, account = brute.scores(order), brute.optimizer_account()
        with engine.step(range(N)):
            p.batch_loss().backward()
            for member in p.optimizer.members:
                member.step()
            p.model.zero_grad()
        entry = engine.ledger.steps[-1]
        assert relative_error(entry.scores, expected) < tolerance
        assert entry.optimizer == pytest.approx(account, abs=1e-11)


BETWEEN = {
    "clipped": lambda layer, _: nn.utils.clip_grad_norm_(layer.parameters(), 0.01),
    "turned around through .data": lambda layer, _: layer.weight.grad.data.neg_(),
    "clipped through .data": lambda layer, _: layer.weight.grad.data.clamp_(-0.001, 0.001),
    "dropped": lambda layer, _: setattr(layer.weight, "grad", None),
    "weights": lambda layer, _: layer.weight.data.mul_(0.9),
    "learning rate": lambda _, optimizer: optimizer.param_groups[0].update(lr=0.05),
}


@pytest.mark.parametrize("step", [0, 4])
@pytest.mark.parametrize("change", sorted(BETWEEN))
def test_what_is_changed_between_the_steps_of_several_optimisers_is_refused(change, step):
    """All are read before the first steps, so that scores would be of another step than the one that is taken."""
    case = problem()
    first, last = case.model[0], case.model[3]
    one, other = (
        torch.optim.SGD(parameters, lr=0.1) for parameters in (case.model[:3].parameters(), last.parameters())
    )
    engine = InRunShapley(case.model, [one, other], N, "first", validation=case.validation)

    def train(between):
        with engine.step(range(N)):
            case.batch_loss().backward()
            one.step()
            between(last, other)
            other.step()
            case.model.zero_grad()

    for _ in range(step):
        train(lambda *_: first.weight.detach().add_(0.0))  # the weights of the one that has stepped are its own affair
    with pytest.raises(RuntimeError, match=f"step {step}: gradient, weight or learning rate"):
        train(BETWEEN[change])
        _ = engine.ledger


def test_a_scaler_that_unscales_one_optimiser_after_another_has_stepped_is_refused():
    def run(unscale):
        case = problem()
        parts = case.model[:3].parameters(), case.model[3].parameters()
        optimizers = [torch.optim.SGD(p, lr=0.1) for p in parts]
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        engine = InRunShapley(case.model, optimizers, N, "first", validation=case.validation, late="keep")
        with engine.step(range(N)):
            scaler.scale(case.batch_loss()).backward()
            for optimizer in optimizers if unscale else []:
                scaler.unscale_(optimizer)
            for optimizer in optimizers:
                scaler.step(optimizer)
        return engine.values(), engine.ledger.accounts["residual"]

    values, residual = run(True)
    plain = problem()
    engine = plain.engine("first")
    plain.train(engine, 1)
    assert relative_error(values, engine.values()) < 1e-12
    assert residual == pytest.approx(engine.ledger.accounts["residual"], abs=1e-14)
    with pytest.raises(RuntimeError, match="unscale_ for every optimiser first"):
        run(False)


def test_each_of_several_optimisers_must_step_once():
    p = problem()
    parameters = list(p.model.parameters())
    members = [torch.optim.SGD(half, lr=0.1) for half in (parameters[:2], parameters[2:])]
    engine = InRunShapley(p.model, members, N, validation=p.validation)
    with pytest.raises(RuntimeError, match="1 of 2 optimisers stepped"), engine.step(range(N)):
        p.batch_loss().backward()
        members[0].step()
    with pytest.raises(ValueError, match=r"parameter '0.weight' is held by two optimisers"):
        InRunShapley(p.model, [torch.optim.SGD(parameters, lr=0.1), members[0]], N)
    with pytest.raises(ValueError, match="empty sequence"):
        InRunShapley(p.model, [], N)
    with pytest.raises(ValueError, match=r"of shape \[3\] that is none of the model's.*ModuleList"):
        InRunShapley(p.model, torch.optim.SGD([*parameters, nn.Parameter(torch.ones(3))], lr=0.1), N)


def test_steps_of_other_optimisers_are_refused():
    p = problem()
    parameters = list(p.model.parameters())
    other = torch.optim.SGD(parameters[2:], lr=0.1)
    engine = InRunShapley(p.model, torch.optim.SGD(parameters[:2], lr=0.1), N, validation=p.validation)
    with (
        pytest.raises(RuntimeError, match=r"does not know \(SGD\) is about to move parameter '2.weight'.*\[optimizer"),
        engine.step(range(N)),
    ):
        p.batch_loss().backward()
        other.step()
    other.step()  # outside of a step it is nobody's business
    assert not engine.ledger.steps


def test_an_optimiser_that_steps_in_the_backward_pass_is_refused():
    p = problem()
    each = {w: torch.optim.SGD([w], lr=0.1) for w in p.model.parameters()}
    engine = InRunShapley(p.model, list(each.values()), N, validation=p.validation)
    for w in each:
        w.register_post_accumulate_grad_hook(lambda w: each[w].step())
    with pytest.raises(RuntimeError, match="inside of the backward pass"), engine.step(range(N)):
        p.batch_loss().backward()


@pytest.mark.parametrize("begin", [0, 2, 5])
@pytest.mark.parametrize("order", ["first", "midpoint"])
def test_sharpness_aware_training_is_refused_whenever_it_begins(begin, order):
    p = problem()
    engine = p.engine(order)
    p.train(engine, begin)
    with pytest.raises(RuntimeError, match="weights were changed between the beginning of the step"):  # noqa: SIM117
        with engine.step(range(N)):
            p.batch_loss().backward()
            up = [0.05 * w.grad / w.grad.norm() for w in p.model.parameters()]
            with torch.no_grad():
                torch._foreach_add_(list(p.model.parameters()), up)
            p.optimizer.zero_grad()
            p.batch_loss().backward()
            with torch.no_grad():
                torch._foreach_sub_(list(p.model.parameters()), up)
            p.optimizer.step()
    with nullcontext() if begin == 0 else pytest.warns(RuntimeWarning, match="weights were changed by something else"):
        ledger = engine.ledger
    assert len(ledger.steps) == begin


@pytest.mark.parametrize("begin", [0, 2, 5])
@pytest.mark.parametrize(("order", "rules"), [("first", "auto"), ("first", "gram"), ("midpoint", "auto")])
def test_a_gradient_of_which_a_part_was_thrown_away_is_refused_whenever_it_begins(begin, order, rules):
    """Two backward passes, of which the optimiser receives the second: every step is checked."""
    p = problem()
    engine = p.engine(order, rules=rules)
    p.train(engine, begin)
    with pytest.raises(
        ValueError, match=rf"step {begin}: the (samples' scores add up to|gradient of '\d.weight' is not)"
    ):
        with engine.step(range(N)):
            p.batch_loss().backward()
            p.optimizer.zero_grad()
            p.take_step()
        _ = engine.ledger
    assert len(engine.ledger.steps) == begin


class Beside(nn.Module):
    """Two networks, of which one does next to nothing."""

    def __init__(self, share):
        super().__init__()
        self.share = share
        self.large, self.small = perceptron(), perceptron()

    def forward(self, x):
        return self.large(x) + self.share * self.small(x)


@pytest.mark.parametrize("begin", [0, 4])
@pytest.mark.parametrize("rules", ["auto", "weight-gradient", "gram"])
@pytest.mark.parametrize(("kind", "share"), [(torch.bfloat16, 0.3), (torch.float32, 1e-3)])
def test_a_large_layer_hides_no_small_one(kind, share, rules, begin):
    """Of the small network one backward pass of two is thrown away: share**2 of all scores."""
    p = problem(lambda: Beside(share))
    p.model.to(torch.float32)
    p.x = p.x.float()
    engine = p.engine("first", rules=rules)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind is torch.bfloat16):
        p.train(engine, begin)
        with pytest.raises(ValueError, match=f"step {begin}: the .*'small"):
            with engine.step(range(N)):
                p.batch_loss().backward()
                p.model.small.zero_grad()
                p.take_step()
            _ = engine.ledger
    assert len(engine.ledger.steps) == begin


@pytest.mark.parametrize("rules", ["auto", "gram"])
def test_a_run_that_has_converged_is_not_refused(rules):
    """The batch's gradient is nothing beside its samples': what is left of it is rounding."""
    torch.manual_seed(0)
    x, y = torch.randn(64, 8), torch.randn(64, 2)
    model = nn.Linear(8, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    engine = InRunShapley(model, optimizer, 64, "first", validation=lambda: F.mse_loss(model(x), y), rules=rules)
    for _ in range(5):
        with engine.step(range(64)):
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()
    assert float(model.weight.grad.norm()) < 1e-6
    assert len(engine.ledger.steps) == 5


@pytest.mark.parametrize("order", ["first", "second", "midpoint"])
def test_layers_that_are_frozen_and_unfrozen_are_followed(order):
    p = problem()
    p.model[0].requires_grad_(False)
    engine = p.engine(order)
    p.check(order, engine=engine)
    p.model[0].requires_grad_(True)
    p.check(order, engine=engine)
    p.model[3].requires_grad_(False)
    p.check(order, engine=engine)
    assert len(engine.ledger.steps) == 6


def test_a_model_that_is_frozen_as_a_whole_is_refused():
    p = problem()
    engine = p.engine("first")
    p.train(engine, 1)
    p.model.requires_grad_(False)
    with pytest.raises(RuntimeError, match="every parameter was frozen"), engine.step(range(N)):
        pass
    assert len(engine.ledger.steps) == 1


def test_rows_of_one_sample_are_added_up():
    """Drawn with replacement, or views of a sample."""
    p, apart = problem(), problem()
    engine = InRunShapley(p.model, p.optimizer, 3, "first", validation=p.validation)
    rows = apart.engine("first")
    index = np.array([0, 1, 1, 2, 0])
    for _ in range(2):
        with engine.step(index):
            p.take_step()
        with rows.step(range(N)):
            apart.take_step()
        assert engine.ledger.steps[-1].index.tolist() == index.tolist()
    expected = np.zeros(3)
    np.add.at(expected, index, rows.values())
    np.testing.assert_allclose(engine.values(), expected, rtol=1e-12)


def test_a_row_of_two_samples_is_shared_out():
    p, apart = problem(), problem()
    engine = InRunShapley(p.model, p.optimizer, 4, "midpoint", validation=p.validation)
    rows = apart.engine("midpoint")
    index, weights = np.array([[0, 1], [1, 2], [2, 3], [3, 0], [0, 0]]), np.array([0.25, 0.5, 1.0, 0.0, 0.3])
    weights = np.stack([weights, 1 - weights], 1)
    for _ in range(2):
        with engine.step(torch.from_numpy(index), weights=torch.from_numpy(weights)):
            p.take_step()
        with rows.step(range(N)):
            apart.take_step()
    expected = np.zeros(4)
    np.add.at(expected, index, rows.values()[:, None] * weights)
    np.testing.assert_allclose(engine.values(), expected, rtol=1e-12)
    assert engine.ledger.accounts["residual"] == pytest.approx(rows.ledger.accounts["residual"], abs=1e-13)


@pytest.mark.parametrize(
    ("index", "weights", "message"),
    [
        ([[0, 1]] * N, None, r"index of shape \(5, 2\) needs weights"),
        ([0] * N, [[1.0]] * N, r"index of shape \(5,\) takes no weights"),
        ([[0, 1]] * N, [[0.5, 0.25]] * N, "must add up to 1, got 0.75"),
        ([[0, 1]] * N, [[1.0]] * N, r"weights must be \[5, 2\], as index is, got shape \(5, 1\)"),
    ],
)
def test_bad_shares(index, weights, message):
    p = problem()
    engine = p.engine("first")
    with pytest.raises(ValueError, match=message), engine.step(index, weights=weights):
        p.take_step()


@pytest.mark.parametrize("order", ["first", "second", "integrated", "trapezoid"])
def test_a_validation_loss_of_another_model_is_refused(order):
    p = problem()
    teacher = copy.deepcopy(p.model)
    engine = InRunShapley(p.model, p.optimizer, N, order, validation=lambda: p.validation(teacher))
    with pytest.raises(ValueError, match="depends on none of the model's trained parameters"), engine.step(range(N)):
        p.take_step()


def test_a_validation_loss_that_changes_weights_is_refused():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(7, 4, max_norm=0.5), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.words(x).mean(1))

    p = problem(Words, shape=(4,), ids=7)
    with (
        pytest.raises(ValueError, match=r"validation changed parameter 'words.weight'.*max_norm"),
        p.engine("first").step(range(N)),
    ):
        p.take_step()


def test_a_validation_loss_that_changes_buffers_is_refused():
    """Spectral norm in training mode brings its vectors nearer each time it is evaluated."""
    p = problem(lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 8)), nn.Linear(8, 3)))
    with pytest.raises(ValueError, match=r"changed buffer '0.parametrizations.*put the model in eval mode"):
        p.train(p.engine("first"), 1)


@pytest.mark.parametrize("swap", ["copied", "exchanged"])
def test_a_validation_loss_of_averaged_weights_is_refused(swap):
    p = problem()
    average = [0.9 * w.detach() for w in p.model.parameters()]

    def validation():
        weights = list(p.model.parameters())
        kept = [w.data.clone() if swap == "copied" else w.data for w in weights]
        put(weights, average)
        loss = F.cross_entropy(p.model(p.x[N:]), p.y[N:])
        put(weights, kept)
        return loss

    def put(weights, values):
        for w, value in zip(weights, values, strict=True):
            if swap == "copied":
                w.data.copy_(value)
            else:
                w.data = value

    p.validation = validation
    with pytest.raises(ValueError, match=r"validation evaluates the model at other weights .*of 'weight' in Linear"):
        p.train(p.engine("first"), 1)


BEHIND = {
    "clamped": lambda w: w.clamp_(-0.1, 0.1),
    "negated": lambda w: w.neg_(),
    "two rows exchanged": lambda w: w[:2].copy_(w[:2].flip(0).clone()),
    "one sign": lambda w: w[-1, -1:].neg_(),
}


def test_a_weight_that_is_transposed_behind_version_counters_is_refused():
    w = nn.Parameter(torch.randn(6, 6))
    seen = weights.SeenWeights([w], {w: "w"})
    seen.note_if_moved()
    seen.expect_as_noted(Numbers(), 0)
    w.data = w.data.t()
    with pytest.raises(RuntimeError, match=r"through \.data"):
        seen.expect_as_noted(Numbers(), 0)


@pytest.mark.parametrize("made", [lambda: torch.randn(12)[::2], lambda: torch.randn(6, dtype=torch.cfloat).conj().imag])
def test_weights_whose_memory_is_no_row_of_numbers_are_seen(made):
    w = nn.Parameter(made())
    seen = weights.SeenWeights([w], {w: "w"})
    seen.note_if_moved()
    seen.expect_as_noted(Numbers(), 0)
    w.data[0] += 1
    with pytest.raises(RuntimeError, match=r"through \.data"):
        seen.expect_as_noted(Numbers(), 0)


@pytest.mark.filterwarnings("ignore:weights were changed by something else after step 4")
@pytest.mark.parametrize("late", ["keep", "split"])
@pytest.mark.parametrize("order", ["first", "midpoint"])
@pytest.mark.parametrize("begin", [0, 5])
@pytest.mark.parametrize("when", ["before the optimiser", "after it"])
def test_a_buffer_that_is_filled_anew_before_the_step_is_refused_where_it_is_needed_still(when, begin, order, late):
    p = problem()
    engine = p.engine(order, late=late)
    buffer = p.x[:N].clone()

    def train(when):
        with engine.step(range(N)):
            p.loss(p.model, buffer, p.y[:N]).backward()
            if when == "before the optimiser":
                buffer.copy_(p.x[1 : N + 1])
            p.optimizer.step()
            p.optimizer.zero_grad()
            if when == "after it":
                buffer.copy_(p.x[1 : N + 1])
        buffer.copy_(p.x[:N])

    for _ in range(begin):
        train("after the block")
    needed = late == "keep" and (order != "first" or when == "before the optimiser")
    if not needed:  # rounded, and so a copy; or scored when the optimiser is about to step
        train(when)
    else:
        with pytest.raises(RuntimeError, match=rf"step {begin}: what went into layer '0' \(Linear\) is needed until"):
            train(when)
    assert len(engine.ledger.steps) == begin + (not needed)


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("where", ["between steps", "in the block"])
@pytest.mark.parametrize("order", ["first", "integrated"])
@pytest.mark.parametrize("begin", [1, 5])
@pytest.mark.parametrize("change", BEHIND)
def test_weights_that_are_changed_behind_version_counters_are_refused(change, begin, order, where, size, monkeypatch):
    if size == "large":
        monkeypatch.setattr(weights, "SMALL", 0)
    p = problem()
    engine = p.engine(order)
    p.train(engine, begin)
    if where == "between steps":
        BEHIND[change](p.model[0].weight.data)
    with pytest.raises(RuntimeError, match=rf"step {begin}: weights were changed through .data"):
        with engine.step(range(N)):
            if where == "in the block":
                BEHIND[change](p.model[0].weight.data)
            p.take_step()
        _ = engine.ledger
    assert len(engine.ledger.steps) == begin


class Swapping(nn.Module):
    """Has two hidden units change places in each call: what it computes stays, and so does every norm."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        for w in (self.a.weight.data, self.a.bias.data, self.b.weight.data.T):
            w[[0, 1]] = w[[1, 0]].clone()
        return self.b(torch.tanh(self.a(x)))


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("order", ["first", "second", "trapezoid", "integrated"])
@pytest.mark.parametrize("lasting", [True, False])
def test_a_model_that_changes_its_weights_and_back_again_is_refused(order, lasting, size, monkeypatch):
    """By two calls a step, one of training and one of validation, weights are in the end what they were."""
    if size == "large":
        monkeypatch.setattr(weights, "SMALL", 0)
    model, x, y = Swapping().double(), torch.randn(12, 5).double(), torch.randint(3, (12,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given = {"validation": lambda: F.cross_entropy(model(x[4:]), y[4:])}
    engine = InRunShapley(model, optimizer, 4, order, batch_axis=0, **(given if lasting else {}))
    with (
        pytest.raises(ValueError, match=r"validation changed parameter 'a\.weight' while it was evaluated"),
        engine.step(range(4), **({} if lasting else given)),
    ):
        F.cross_entropy(model(x[:4]), y[:4]).backward()
        optimizer.step()


@pytest.mark.parametrize("layout", ["transposed", "channels last", "bfloat16", "no axes"])
def test_weights_of_any_layout_that_are_changed_behind_version_counters_are_refused(layout):
    made = {
        "transposed": lambda: torch.randn(3, 4).t(),
        "channels last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "bfloat16": lambda: torch.randn(5, dtype=torch.bfloat16),
        "no axes": lambda: torch.randn(()),
    }
    w = nn.Parameter(made[layout]())
    seen = weights.SeenWeights([w], {w: "w"})
    for change in (lambda: None, lambda: w.data.view(-1)[-1:].neg_() if w.is_contiguous() else w.data[-1, -1].neg_()):
        seen.note_if_moved()
        seen.expect_as_noted(Numbers(), 0)
        change()
    with pytest.raises(RuntimeError, match=r"through \.data \('w'\)"):
        seen.expect_as_noted(Numbers(), 0)


@pytest.mark.filterwarnings("ignore:weights were changed by something else")
@pytest.mark.parametrize("order", ["first", "integrated"])
def test_weights_that_are_changed_behind_a_loss_that_was_asked_for_are_refused(order):
    p = problem()
    engine = p.engine(order)
    p.train(engine, 3)
    with torch.no_grad():
        p.model[0].weight.mul_(0.9)
    _ = engine.ledger  # measures the loss of these
    p.model[0].weight.data.add_(0.5)
    with pytest.raises(RuntimeError, match=r"changed through \.data"):
        p.train(engine, 1)


def test_weights_that_are_changed_after_the_optimiser_are_told_of():
    p = problem()
    engine = p.engine("first")

    def clipping():
        with engine.step(range(N)):
            p.take_step()
            with torch.no_grad():
                p.model[0].weight.clamp_(-0.1, 0.1)

    with pytest.warns(RuntimeWarning, match=r"changed by something else after optimizer.step\(\), in step 0"):
        clipping()


def test_a_model_that_is_saved_while_it_is_watched_is_an_ordinary_one():
    p = problem()
    engine = p.engine("first", rules="weight-gradient")
    p.train(engine)
    stream = io.BytesIO()
    torch.save(p.model, stream)
    stream.seek(0)
    loaded = torch.load(stream, weights_only=False)
    assert torch.equal(loaded(p.x), p.model(p.x))
    loaded(p.x).sum().backward()
    assert "InRunShapley" not in str(vars(loaded[0]))


def test_data_parallel_is_refused_by_name(monkeypatch):
    p = problem()
    wrapped = nn.DataParallel(p.model)
    with pytest.raises(TypeError, match="is a DataParallel: In-Run values of data parallel training"):
        InRunShapley(wrapped, p.optimizer, N)
    engine = p.engine("first")
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.raises(TypeError, match="process group of 2 processes"), engine.step(range(N)):
        p.take_step()
    with pytest.raises(TypeError, match="process group of 2 processes"):
        problem().engine("first")


def test_values_of_some_steps():
    p = problem()
    engine = p.engine("first")
    p.train(engine, 4)
    scores = np.stack([entry.scores for entry in engine.ledger.steps])
    np.testing.assert_array_equal(engine.values(steps=slice(1, None)), scores[1] + scores[2] + scores[3])
    np.testing.assert_array_equal(engine.values(steps=slice(None, None, 2)), scores[0] + scores[2])
    np.testing.assert_allclose(engine.values(), scores.sum(0), rtol=1e-14)


def test_one_step_that_drowns_the_others_is_told_of_once(caplog):
    """As Adam's first, without warm-up: what it moved is hundreds of times what a later step moves."""
    p = problem(optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=1e-4))
    engine = p.engine("first")
    p.optimizer.param_groups[0]["lr"] = 0.1
    p.train(engine, 1)
    p.optimizer.param_groups[0]["lr"] = 1e-4
    p.train(engine, 60)
    (told,) = caplog.messages
    assert "scores of step 0 are" in told
    assert "values(steps=slice(1, None))" in told
    calm = problem()
    calm.train(calm.engine("first"), 25)
    assert len(caplog.messages) == 1


def test_losses_of_a_watched_loop_are_those_of_a_loop_that_nobody_watches():
    torch.manual_seed(0)
    plain, watched = problem(perceptron), problem(perceptron)
    engine = watched.engine("first")
    for _ in range(3):
        one = F.cross_entropy(plain.model(plain.x[:N]), plain.y[:N])
        one.backward()
        plain.optimizer.step()
        plain.optimizer.zero_grad()
        with engine.step(range(N)):
            two = F.cross_entropy(watched.model(watched.x[:N]), watched.y[:N])
            two.backward()
            watched.optimizer.step()
            watched.optimizer.zero_grad()
        assert torch.equal(one, two)


@pytest.mark.filterwarnings("ignore:weights were changed by something else")
@pytest.mark.parametrize("order", ["first", "second", "trapezoid", "integrated"])
def test_frozen_weights_that_change_between_steps_are_no_longer_those_of_before(order):
    """What was known of the validation loss is forgotten, as it is where a trained weight is written to."""
    values = []
    for touched in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()
        model[0].requires_grad_(False)
        x, y = torch.randn(12, 4, dtype=torch.float64), torch.randint(3, (12,))
        optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)

        def loss(rows, model=model, x=x, y=y):
            return torch.nn.functional.cross_entropy(model(x[rows]), y[rows])

        engine = InRunShapley(model, optimizer, 12, order, validation=lambda loss=loss: loss(slice(8, None)))
        for rows in torch.arange(8).split(4):
            with engine.step(rows):
                loss(rows).backward()
                optimizer.step()
                optimizer.zero_grad()
            with torch.no_grad():
                model[0].weight.mul_(1.5)
                if touched:
                    model[2].weight.add_(0)
        values.append(engine.values())
    assert np.array_equal(*values)
