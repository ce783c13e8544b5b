"""Choosing among the samples of a batch before the optimiser steps."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from tests.attribution.brute_force import relative_error
from tests.attribution.problem import N, problem

OPTIMIZERS = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01),
}
MASK = [True, False, True, True, False]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rules", ["auto", "project", "weight-gradient", "gram"])
def test_scores_are_known_before_the_step_and_are_those_that_are_booked(optimizer, rules):
    p = problem(optimizer=OPTIMIZERS[optimizer])
    engine = p.engine("first", rules=rules)
    for _ in range(5):
        expected = p.brute_force().scores("first")
        with engine.step(range(N)) as step:
            p.batch_loss().backward()
            scores = step.scores()
            again = step.scores()
            p.optimizer.step()
            p.optimizer.zero_grad()
        assert relative_error(scores.numpy(), expected) < 1e-10
        np.testing.assert_array_equal(scores, again)
        engine.values()
        np.testing.assert_allclose(engine.ledger.steps[-1].scores, scores, rtol=1e-12)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rules", ["auto", "gram"])
def test_the_optimiser_gets_what_is_kept_and_the_others_score_nothing(optimizer, rules, rescale):
    p, plain = (problem(optimizer=OPTIMIZERS[optimizer]) for _ in range(2))
    engine = p.engine("first", rules=rules)
    mask = torch.tensor(MASK)
    share = N / sum(MASK) if rescale else 1.0
    for _ in range(5):
        brute = p.brute_force()
        with engine.step(range(N), losses=p.losses) as step:
            p.batch_loss().backward()
            step.keep(mask, rescale=rescale)
            p.optimizer.step()
            p.optimizer.zero_grad()
        (plain.losses()[mask] * share).sum().backward()
        plain.optimizer.step()
        plain.optimizer.zero_grad()
        for mine, own in zip(p.model.parameters(), plain.model.parameters(), strict=True):
            assert torch.equal(mine, own)
        engine.values()
        entry = engine.ledger.steps[-1]
        assert (entry.scores[~mask.numpy()] == 0).all()
        if optimizer == "sgd":  # whose slopes ask for no gradient
            expected = brute.scores("first") * mask.numpy() * share
            assert relative_error(entry.scores, expected) < 1e-10


@pytest.mark.parametrize("order", ["second", "integrated"])
@pytest.mark.parametrize("late", ["keep", "jvp", "split"])
def test_late_orders_score_what_is_kept(order, late):
    def received(g):
        return brute.contributions()[torch.tensor(MASK)].sum(0)

    p = problem(optimizer=OPTIMIZERS["sgd"])
    engine = p.engine(order, late=late)
    brute = p.brute_force()
    expected = brute.scores(order)
    with engine.step(range(N), losses=p.losses) as step:
        p.batch_loss().backward()
        with pytest.raises(RuntimeError, match="order='first'"):
            step.scores()
        step.keep(MASK)
        p.optimizer.step()
        p.optimizer.zero_grad()
    entry = engine.ledger.steps[-1]
    assert entry.scores[1] == entry.scores[4] == 0
    assert abs(entry.scores.sum() + entry.optimizer + entry.residual - entry.drop) < 1e-14
    assert relative_error(entry.scores, expected * MASK) < 0.2  # the batch is another one now
    if order == "integrated":
        assert abs(entry.residual) < 1e-5


def test_parts_of_a_batch_are_chosen_from_as_one():
    p = problem(optimizer=OPTIMIZERS["sgd"])
    engine = p.engine("first")
    expected = p.brute_force().scores("first")
    with engine.step(losses=p.losses) as step:
        for part in (slice(0, 2), slice(2, N)):
            step.batch(range(N)[part])
            (p.loss(p.model, p.x[part], p.y[part], "none").sum() / N).backward()
        assert relative_error(step.scores().numpy(), expected) < 1e-10
        step.keep(MASK)
        p.optimizer.step()
    assert relative_error(engine.ledger.steps[-1].scores, expected * MASK) < 1e-10


def test_clipping_after_keeping():
    p = problem(optimizer=OPTIMIZERS["sgd"])
    engine = p.engine("first")
    for _ in range(4):
        expected = p.brute_force().scores("first")
        with engine.step(range(N), losses=p.losses) as step:
            p.batch_loss().backward()
            step.keep(MASK)
            norm = torch.nn.utils.clip_grad_norm_(p.model.parameters(), 0.05)
            p.optimizer.step()
            p.optimizer.zero_grad()
        engine.values()
        clipped = expected * MASK * float(0.05 / (norm + 1e-6))
        assert relative_error(engine.ledger.steps[-1].scores, clipped) < 1e-9


def test_bad_choices():
    p = problem(optimizer=OPTIMIZERS["sgd"])
    engine = p.engine("first")
    with engine.step(range(N), losses=p.losses) as step:
        with pytest.raises(RuntimeError, match=r"scores\(\) was called before the backward pass"):
            step.scores()
        with pytest.raises(RuntimeError, match=r"keep\(\) was called before the backward pass"):
            step.keep(MASK)
        p.batch_loss().backward()
        with pytest.raises(ValueError, match="validation must be one of 'validation', got 'other'"):
            step.scores("other")
        for mask in ([True] * (N - 1), [1.0] * N, [0, 1, 1, 1, 1]):
            with pytest.raises(ValueError, match=f"mask must be a bool for each of the {N} rows, got"):
                step.keep(mask)
        with pytest.raises(ValueError, match="mask keeps no row"):
            step.keep([False] * N)
        step.keep(MASK)
        with pytest.raises(RuntimeError, match="twice"):
            step.keep(MASK)
        p.optimizer.step()
        with pytest.raises(RuntimeError, match=r"after optimizer.step\(\)"):
            step.scores()
        p.optimizer.zero_grad()
    assert len(engine.ledger.steps) == 1
    with engine.step(range(N)) as step:
        p.batch_loss().backward()
        with pytest.raises(ValueError, match="pass losses= to step"):
            step.keep(MASK)
        p.optimizer.step()
        p.optimizer.zero_grad()
    with (
        pytest.raises(ValueError, match="losses must return one loss a sample of the step"),
        engine.step(range(N), losses=lambda: F.cross_entropy(p.model(p.x), p.y, reduction="none")) as step,
    ):
        p.batch_loss().backward()
        step.keep(MASK)
    assert len(engine.ledger.steps) == 2


def dropping():
    return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(16, 3))


def test_masks_of_dropout_are_drawn_again():
    p = problem(dropping, OPTIMIZERS["sgd"])
    p.validation = lambda: p.loss(p.model.eval(), p.x[N:], p.y[N:])
    engine = p.engine("first")
    for _ in range(5):
        with engine.step(range(N), losses=p.losses) as step:
            p.model.train()  # which validation has put it out of
            p.batch_loss().backward()
            before = [w.grad.clone() for w in p.model.parameters()]
            scores = step.scores()
            p.model.train()
            state = torch.get_rng_state()
            step.keep([True] * N)
            assert torch.equal(state, torch.get_rng_state())
            for w, gradient in zip(p.model.parameters(), before, strict=True):
                torch.testing.assert_close(w.grad, gradient, rtol=1e-12, atol=1e-15)
            p.optimizer.step()
            p.optimizer.zero_grad()
        engine.values()
        np.testing.assert_allclose(engine.ledger.steps[-1].scores, scores, rtol=1e-10)


def test_what_is_drawn_between_matters_to_losses_that_draw_alone():
    for build, fails in ((None, False), (dropping, True)):
        p = problem(*([build] if build else []), optimizer=OPTIMIZERS["sgd"])
        p.validation = lambda p=p: p.loss(p.model.eval(), p.x[N:], p.y[N:])
        engine = p.engine("first")
        with engine.step(range(N), losses=p.losses) as step:
            p.model.train()
            p.batch_loss().backward()
            mask = torch.randperm(N) < 3
            if fails:
                with pytest.raises(
                    RuntimeError, match=r"draw what else you need before it, or from a torch\.Generator"
                ):
                    step.keep(mask)
            else:
                step.keep(mask)
            p.optimizer.step()
            p.optimizer.zero_grad()


def refused(p, message, *, losses=None, between=lambda: None, steps=0):
    """Have keep() refused, with everything as it was."""
    engine = p.engine("first")
    for _ in range(steps):
        with engine.step(range(N)):
            p.take_step()
    buffers = [b.clone() for b in p.model.buffers()]
    with engine.step(range(N), losses=losses or p.losses) as step:
        p.batch_loss().backward()
        buffers = [b.clone() for b in p.model.buffers()]
        between()
        before = [w.grad.clone() for w in p.model.parameters()]
        with pytest.raises((RuntimeError, ValueError), match=message):
            step.keep(MASK)
        assert all(map(torch.equal, buffers, p.model.buffers()))
        for w, gradient in zip(p.model.parameters(), before, strict=True):
            assert torch.equal(w.grad, gradient)
        p.optimizer.step()
        p.optimizer.zero_grad()
    engine.values()
    assert len(engine.ledger.steps) == steps + 1


def test_losses_that_are_not_the_batch_s_are_refused():
    p = problem(optimizer=OPTIMIZERS["sgd"])
    refused(p, "losses are not those of the batch: for all rows", losses=lambda: 2 * p.losses())
    refused(p, "losses are not those of the batch: for all rows", losses=lambda: p.losses().flip(0) * torch.arange(N))
    with torch.no_grad():
        known = p.losses()
    refused(p, "losses without a graph", losses=lambda: known)


def test_losses_that_draw_more_are_refused():
    q = problem(optimizer=OPTIMIZERS["sgd"])
    refused(q, "losses draw random numbers, and not those", losses=lambda: q.losses() + 0 * torch.rand(N), steps=4)


@pytest.mark.filterwarnings("ignore:step 5. gradients were changed:RuntimeWarning")
@pytest.mark.parametrize("steps", [0, 5])
def test_gradients_that_have_been_clipped_are_not_undone(steps):
    p = problem(optimizer=OPTIMIZERS["sgd"])
    clip = torch.nn.utils.clip_grad_norm_
    refused(p, "after gradients had been changed", between=lambda: clip(p.model.parameters(), 0.01), steps=steps)


def test_models_that_change_in_each_pass_are_refused():
    class Counting(torch.nn.Sequential):
        def __init__(self):
            super().__init__(torch.nn.Linear(4, 3))
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, x):
            if self.training and torch.is_grad_enabled():
                self.mean.mul_(0.9).add_(0.1 * x.detach().mean())
            return super().forward(x)

    p = problem(Counting, OPTIMIZERS["sgd"])
    p.validation = lambda: p.loss(p.model.eval(), p.x[N:], p.y[N:])
    engine = p.engine("first")
    p.model.train()
    with engine.step(range(N), losses=p.losses) as step:
        p.model.train()
        p.batch_loss().backward()
        mean = p.model.mean.clone()
        with pytest.raises(RuntimeError, match="the model changes its buffer 'mean' in each forward pass"):
            step.keep(MASK)
        assert torch.equal(mean, p.model.mean)
        p.optimizer.step()


def test_no_part_comes_after_the_choice():
    p = problem(optimizer=OPTIMIZERS["sgd"])
    engine = p.engine("first")
    with engine.step(range(N), losses=p.losses) as step:
        p.batch_loss().backward()
        step.keep(MASK)
        with pytest.raises(RuntimeError, match=r"batch\(\) was called after keep\(\)"):
            step.batch([0])
        with pytest.raises(RuntimeError, match=r"scores\(\) was called after keep\(\)"):
            step.scores()
        p.optimizer.step()


def test_what_the_kept_have_nothing_to_do_with_has_a_gradient_of_zeros_where_it_had_one():
    p = problem(optimizer=OPTIMIZERS["adamw"])
    p.model.register_parameter("other", torch.nn.Parameter(torch.ones(3, dtype=torch.float64)))
    p.optimizer = OPTIMIZERS["adamw"](p.model)
    p.optimizer.zero_grad(set_to_none=False)
    p.model.other.grad = torch.zeros(3, dtype=torch.float64)
    engine = p.engine("first")
    with engine.step(range(N), losses=p.losses) as step:
        p.batch_loss().backward()
        step.keep(MASK)
        assert torch.equal(p.model.other.grad, torch.zeros(3, dtype=torch.float64))
        p.optimizer.step()
