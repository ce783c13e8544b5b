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
