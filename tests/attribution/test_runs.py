"""Whole runs: batches in parts, several validation sets, groups, streaming, resuming."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from inrun_bench import InRunShapley
from inrun_bench.attribution import Integrated, ParquetPages
from tests.attribution.brute_force import relative_error
from tests.attribution.problem import N, perceptron, problem

ORDERS = ("first", "second", "midpoint", "trapezoid", "integrated")
SAMPLES = 30


class Run:
    """A run over 30 samples in batches of 6, with everything that a checkpoint must hold."""

    def __init__(self, order="trapezoid", optimizer=torch.optim.AdamW, seed=0, **options):
        torch.manual_seed(seed)
        self.model = perceptron().double()
        self.x, self.y = torch.randn(SAMPLES + 8, 4).double(), torch.randint(3, (SAMPLES + 8,))
        self.optimizer = optimizer(self.model.parameters(), lr=0.05)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 3, 0.7)
        self.batches = [i for _ in range(3) for i in torch.randperm(SAMPLES).split(6)]
        self.engine = InRunShapley(self.model, self.optimizer, SAMPLES, order, validation=self.validation, **options)

    def validation(self):
        return F.cross_entropy(self.model(self.x[SAMPLES:]), self.y[SAMPLES:])

    def train(self, start=0, stop=None):
        for index in self.batches[start:stop]:
            with self.engine.step(index):
                F.cross_entropy(self.model(self.x[index]), self.y[index]).backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
                self.optimizer.step()
                self.optimizer.zero_grad()
            self.schedule.step()
        return self

    def parts(self):
        return {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule, "inrun": self.engine}


SETTINGS = {
    "in memory": {},
    "streamed": {},
    "in factors": {"rules": "gram"},  # which rests on sizes that the first step shows
    "beyond the budget": {"memory_budget": 1},  # which rests on what the first step kept
    "lagged": {"tolerance": 0.9},  # which rests on certificates, and on the slopes of the last step
}


@pytest.mark.filterwarnings("ignore:a step's late probe keeps:RuntimeWarning")
@pytest.mark.parametrize(
    ("order", "setting", "optimizer"),  # every pair of them once
    [
        (order, setting, (torch.optim.SGD, torch.optim.AdamW)[(i + j) % 2])
        for i, order in enumerate(ORDERS)
        for j, setting in enumerate(SETTINGS)
    ],
)
def test_a_resumed_run_is_that_run_to_the_last_bit(order, setting, optimizer, tmp_path):
    def run(name):
        pages = ParquetPages(tmp_path / name, rows_per_part=20) if setting == "streamed" else None
        return Run(
            "first" if setting == "lagged" else order,
            optimizer,
            pages=pages,
            labels=np.arange(SAMPLES) % 3,
            **SETTINGS[setting],
        )

    whole = run("whole").train()
    broken = run("broken").train(stop=7)
    torch.save({name: part.state_dict() for name, part in broken.parts().items()}, tmp_path / "checkpoint")
    broken.train(7, 9)  # lost with the machine
    resumed = run("broken")
    state = torch.load(tmp_path / "checkpoint", weights_only=True)
    for name, part in resumed.parts().items():
        part.load_state_dict(state[name])
    resumed.train(7)
    np.testing.assert_array_equal(resumed.engine.values(), whole.engine.values())
    one, other = resumed.engine.ledger, whole.engine.ledger
    assert len(one.steps) == len(other.steps) == len(whole.batches)
    for mine, theirs in zip(one.steps, other.steps, strict=True):
        np.testing.assert_array_equal(mine.scores, theirs.scores)
        assert mine.drop == pytest.approx(theirs.drop, abs=1e-15)
    for label, totals in one.groups().items():
        np.testing.assert_array_equal(totals, other.groups()[label])


def test_a_state_of_other_validation_sets_is_refused():
    one, other = Run(), Run(seed=1)
    other.engine = InRunShapley(other.model, other.optimizer, SAMPLES, validation={"a": other.validation})
    with pytest.raises(ValueError, match="the state is of validation sets 'validation'; this engine has 'a'"):
        other.engine.load_state_dict(one.engine.state_dict())
    with pytest.raises(RuntimeError, match="a step is open"), one.engine.step([0]):
        one.engine.load_state_dict({})


def test_detaching_brings_what_is_left_to_disk(tmp_path):
    run = Run(pages=ParquetPages(tmp_path / "pages")).train()
    run.engine.detach()
    assert len(ParquetPages(tmp_path / "pages")) == len(run.batches)


def test_streamed_and_kept_ledgers_are_the_same(tmp_path):
    kept = Run("integrated").train()
    streamed = Run("integrated", pages=ParquetPages(tmp_path / "pages", rows_per_part=15)).train()
    np.testing.assert_array_equal(kept.engine.values(), streamed.engine.values())
    assert kept.engine.ledger.accounts == streamed.engine.ledger.accounts
    assert streamed.engine.ledger.steps.buffered <= 15


@pytest.mark.parametrize("order", ORDERS)
def test_drops_add_up_to_the_fall_of_the_validation_loss_over_the_run(order):
    run = Run(order)
    before = run.validation().item()
    run.train()
    accounts = run.engine.ledger.accounts
    assert accounts["drop"] == pytest.approx(before - run.validation().item(), abs=1e-13)
    total = accounts["samples"] + accounts["optimizer"] + accounts["residual"]
    assert total == pytest.approx(accounts["drop"], abs=1e-13)


@pytest.mark.parametrize("order", ["first", "trapezoid"])
def test_a_validation_loss_of_the_engine_is_asked_once_a_step(order):
    """The loss after a step is that before the next; the trapezoid rule reuses the gradient as well."""
    run = Run(order, torch.optim.SGD)
    calls = []
    plain = run.validation
    run.engine = InRunShapley(
        run.model, run.optimizer, SAMPLES, order, validation=lambda: calls.append(1) or plain(), rules="project"
    )
    run.train()
    twice = 2  # in the first step, to see whether it is the same
    assert len(calls) == twice + len(run.batches) + (order == "trapezoid")  # which needs one to start with
    _ = run.engine.ledger
    assert len(calls) == twice + len(run.batches) + 1


@pytest.mark.parametrize("rules", ["auto", "weight-gradient"])
@pytest.mark.parametrize("order", ORDERS)
def test_several_validation_sets(order, rules):
    p = problem(optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9))
    own = p.validation
    sets = {"one": lambda m: own(m), "other": lambda m: m(torch.ones(2, 4).double()).square().mean()}
    probe = Integrated(12) if order == "integrated" else order
    closures = {name: lambda f=f: f(p.model) for name, f in sets.items()}
    engine = InRunShapley(p.model, p.optimizer, N, probe, validation=closures, rules=rules)
    for _ in range(3):
        expected = {}
        for name, f in sets.items():
            p.validation = lambda m=None, f=f: f(p.model if m is None else m)
            expected[name] = p.brute_force().scores(order)
        with engine.step(range(N)):
            p.take_step()
        for name, ledger in engine.ledgers.items():
            assert relative_error(ledger.steps[-1].scores, expected[name]) < 1e-9
    assert not np.allclose(engine.values("one"), engine.values("other"))
    with pytest.raises(ValueError, match="several validation sets, 'one', 'other': name one"):
        engine.values()
    with pytest.raises(ValueError, match="validation must be one of 'one', 'other', got 'third'"):
        engine.values("third")
    with pytest.raises(ValueError, match="several validation sets"):
        _ = engine.ledger


def test_steps_may_take_turns_between_the_engines_validation_loss_and_their_own():
    p = problem()
    engine = p.engine("first")
    drops = []
    for closure in (None, lambda: p.model(torch.ones(1, 4).double()).square().sum(), None):
        measure = closure or p.validation
        before = measure().item()
        with engine.step(range(N), validation=closure):
            p.take_step()
        drops.append(before - measure().item())
    assert [entry.drop for entry in engine.ledger.steps] == pytest.approx(drops, abs=1e-12)


def test_validation_sets_of_the_step():
    p = problem()
    engine = InRunShapley(p.model, p.optimizer, N, "first")
    sets = {"a": p.validation, "b": lambda: p.model(torch.ones(1, 4).double()).square().sum()}
    for _ in range(2):
        with engine.step(range(N), validation=sets):
            p.take_step()
    assert set(engine.ledgers) == {"a", "b"}
    with pytest.raises(ValueError, match="must stay the same over a run: 'a', 'b'; got 'a'"):
        engine.step(range(N), validation={"a": p.validation}).__enter__()
    with pytest.raises(ValueError, match="at least one validation set, got an empty mapping"):
        engine.step(range(N), validation={}).__enter__()
    with pytest.raises(ValueError, match="pages must be a mapping"):
        InRunShapley(p.model, p.optimizer, N, validation=sets, pages=[])


@pytest.mark.parametrize("rules", ["auto", "weight-gradient"])
@pytest.mark.parametrize("order", ORDERS)
def test_batches_in_parts(order, rules):
    """Gradient accumulation: the scores are those of the whole batch in one pass."""
    whole, parts = problem(), problem()
    one, other = whole.engine(order, rules=rules), parts.engine(order, rules=rules)
    for _ in range(3):
        with one.step(range(N)):
            whole.take_step()
        with other.step() as step:
            for index in ([0, 1], [2, 3, 4]):
                step.batch(index)
                loss = F.cross_entropy(parts.model(parts.x[index]), parts.y[index], reduction="sum") / N
                loss.backward()
            parts.optimizer.step()
            parts.optimizer.zero_grad()
    assert relative_error(other.values(), one.values()) < 1e-12
    assert other.ledger.steps[0].index.tolist() == list(range(N))


def test_parts_may_be_differentiated_together_and_hold_a_sample_twice():
    p = problem()
    engine = p.engine("first")
    v = torch.autograd.grad(p.validation(), list(p.model.parameters()))
    with engine.step() as step:
        losses = []
        for index in ([0, 1], [1, 2]):  # sample 1 in two views
            step.batch(index)
            losses.append(F.cross_entropy(p.model(p.x[index]), p.y[index], reduction="sum"))
        sum(losses).backward()
        p.optimizer.step()
    expected = np.zeros(N)
    twin = problem()
    for i, weight in ((0, 1), (1, 2), (2, 1)):
        loss = F.cross_entropy(twin.model(twin.x[i : i + 1]), twin.y[i : i + 1])
        g = torch.autograd.grad(loss, list(twin.model.parameters()))
        expected[i] = weight * 0.1 * sum(float((a * b).sum()) for a, b in zip(g, v, strict=True))
    assert relative_error(engine.values(), expected) < 1e-10


def test_a_step_without_any_index():
    p = problem()
    engine = p.engine("first")
    with pytest.raises(ValueError, match="the step has no index"), engine.step():
        p.take_step()


def test_gradients_that_were_there_before():
    p = problem()
    engine = p.engine("first")
    p.batch_loss().backward()  # and nobody cleared them
    with pytest.raises(ValueError, match=r"scores add up to .*zero_grad"), engine.step(range(N)):
        p.take_step()
    p.optimizer.zero_grad()
    p.check("first", engine=engine)


def test_sums_of_losses_give_contributions_of_the_sum():
    p = problem()
    q = copy.deepcopy(p)
    q.optimizer = torch.optim.SGD(q.model.parameters(), lr=0.1 / N)
    mean, total = p.engine("midpoint"), q.engine("midpoint")
    with mean.step(range(N)):
        p.take_step()
    with total.step(range(N)):
        F.cross_entropy(q.model(q.x[:N]), q.y[:N], reduction="sum").backward()
        q.optimizer.step()
    assert relative_error(total.values(), mean.values()) < 1e-10


def test_sequences_with_padding():
    """Padded positions have no gradient, and a sample's score is that of its tokens."""

    def loss(model, x, y, reduction="mean"):
        losses = F.cross_entropy(model(x).transpose(1, 2), x[..., 0].long().clamp(0, 2), reduction="none")
        mask = torch.arange(x.shape[1]) < 1 + (x[:, 0, 0].abs() * 10).long()[:, None] % x.shape[1]
        by_sample = (losses * mask).sum(1)
        return by_sample.mean() if reduction == "mean" else by_sample

    problem(shape=(6, 4), loss=loss).check("midpoint")
    problem(shape=(6, 4), loss=loss, options={"rules": "weight-gradient"}).check("first")


def test_what_changed_gradients_element_by_element_is_known_after_resuming():
    """Clipping by value that begins in mid-run: told of at once, exact from the next step on, resumed or not."""
    bound = 0.02
    p = problem()
    engine = p.engine("first")
    p.train(engine, 3)
    p.between = lambda model: torch.nn.utils.clip_grad_value_(model.parameters(), bound)
    p.received = lambda g: g.clamp(-bound, bound)
    with pytest.warns(RuntimeWarning, match="could not be foreseen"):
        p.train(engine, 2)
    state = engine.state_dict()
    engine.detach()
    resumed = p.engine("first")
    resumed.load_state_dict(state)
    p.check("first", engine=resumed, steps=1)
    p.model[0].requires_grad_(False)  # watched anew, and known still
    p.check("first", engine=resumed, steps=1)
