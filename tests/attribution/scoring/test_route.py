"""Probes that come late: every way gives the same scores, at the memory and under the conditions that it promises."""

import logging

import numpy as np
import pytest
import torch

from inrun_bench.attribution.scoring.scores import TermSums
from tests.attribution.brute_force import relative_error
from tests.attribution.problem import N, problem

LATE_ORDERS = ("second", "midpoint", "trapezoid", "integrated")


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


@pytest.mark.parametrize("way", ["keep", "jvp"])
@pytest.mark.parametrize("optimizer", [sgd, adamw])
@pytest.mark.parametrize("order", ["first", *LATE_ORDERS])
def test_keeping_and_forward_mode_are_exact(order, optimizer, way):
    p = problem(optimizer=optimizer, options={"late": way})
    engine = p.check(order, tolerance=1e-9, losses=p.losses)
    assert engine.choices["late"] == way
    assert (engine.choices["kept_bytes"] > 0) == (way == "keep")


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("order", LATE_ORDERS)
def test_splitting_rounds_the_correction_and_nothing_else(order, clipped):
    clip = {
        "between": lambda m: torch.nn.utils.clip_grad_norm_(m.parameters(), 0.5),
        "received": lambda g: g * min(1.0, float(0.5 / (g.norm() + 1e-6))),
    }
    p = problem(optimizer=sgd, **(clip if clipped else {}))
    brute = p.brute_force()
    exact, first = brute.scores(order), brute.scores("first")
    engine = p.engine(order, late="split")
    with engine.step(range(N)):
        p.take_step()
    error = np.linalg.norm(engine.values() - exact)
    correction = np.linalg.norm(exact - first)
    assert 0 < error < 2**-20 * correction  # float64 kept as float32


def test_magnitudes_of_joined_sums_know_no_sign():
    """What is known of the probe has a negative factor where the optimiser maximises; what rounding may do has not."""
    sums = torch.tensor([[3.0], [-2.0]], dtype=torch.float64)
    one = TermSums([{"a"}, {"b"}], [1e-16, 1e-16], sums, sums.abs())
    joined = one.times(-2.0).joined(one)
    assert joined.sums.flatten().tolist() == [-6.0, 4.0, 3.0, -2.0]
    assert joined.magnitudes.flatten().tolist() == [6.0, 4.0, 3.0, 2.0]


@pytest.mark.parametrize("optimizer", [sgd, adamw])
@pytest.mark.parametrize("order", ["first", *LATE_ORDERS])
def test_half_precision_is_known_where_losses_are_cast_to_a_finer_kind(order, optimizer):
    scores = {}
    for way in ("keep", "jvp"):
        p = problem(optimizer=optimizer, options={"late": way})
        p.model, p.x = p.model.bfloat16(), p.x.bfloat16()
        p.optimizer, p.run = optimizer(p.model), lambda x, model=p.model: model(x).float()
        engine = p.engine(order)
        for _ in range(3):
            with engine.step(range(N), losses=p.losses):
                p.take_step()
        scores[way] = np.concatenate([step.scores for step in engine.ledger.steps])
    assert relative_error(scores["jvp"], scores["keep"]) < 0.05


def test_splitting_keeps_half_the_bytes():
    kept = {}
    for way in ("keep", "split"):
        p = problem(optimizer=sgd)
        engine = p.engine("midpoint", late=way)
        with engine.step(range(N)) as step:
            p.batch_loss().backward()
            kept[way] = sum(t.numel() * t.element_size() for term in step.route._kept for t in term.tensors)
            p.optimizer.step()
    assert kept["split"] == kept["keep"] / 2


@pytest.mark.parametrize(
    ("optimizer", "losses", "way"),
    [(sgd, True, "jvp"), (adamw, True, "jvp"), (sgd, False, "split"), (adamw, False, "keep")],
)
def test_the_budget_decides(optimizer, losses, way, caplog):
    caplog.set_level(logging.INFO)
    p = problem(optimizer=optimizer)
    engine = p.engine("midpoint", memory_budget=100)
    ways = []
    options = {"losses": p.losses} if losses else {}

    def step():
        with engine.step(range(N), **options):
            p.take_step()
        ways.append(engine.choices["late"])

    step()
    if way == "keep":
        with pytest.warns(RuntimeWarning, match="more than the budget of 100; pass losses="):
            step()
    else:
        step()
        assert f"late probes: {way}" in caplog.text
    step()
    assert ways == ["keep", way, way]  # what it takes is known after the first


def test_an_ample_budget_keeps():
    p = problem(optimizer=sgd)
    engine = p.check("midpoint", losses=p.losses)
    assert engine.choices["late"] == "keep"


def test_scores_of_all_ways_agree_over_a_run():
    values = []
    for way in ("keep", "split", "jvp"):
        p = problem(optimizer=sgd)
        engine = p.engine("second", late=way)
        for _ in range(4):
            with engine.step(range(N), losses=p.losses):
                p.take_step()
        values.append(engine.values())
    assert relative_error(values[1], values[0]) < 1e-6
    assert relative_error(values[2], values[0]) < 1e-10


def test_ways_that_cannot_be_taken():
    p = problem(optimizer=adamw)
    with pytest.raises(ValueError, match="late must be one of 'auto', 'keep', 'split', 'jvp', got 'later'"):
        p.engine("second", late="later")
    with pytest.raises(ValueError, match="memory_budget must not be negative, got -1"):
        p.engine("second", memory_budget=-1)
    with pytest.raises(ValueError, match="late='split' needs an optimiser whose slope is known"):
        p.check("midpoint", engine=p.engine("midpoint", late="split"))
    with pytest.raises(ValueError, match=r"late='jvp' needs the samples' losses: pass losses= to step\(\)"):
        p.check("midpoint", engine=p.engine("midpoint", late="jvp"))


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (lambda p: p.losses().sum(), r"one loss a sample of the step, 5 in all, got a tensor of shape \[\]"),
        (lambda p: p.losses()[:3], r"one loss a sample of the step, 5 in all, got a tensor of shape \[3\]"),
        (lambda p: 2 * p.losses(), "scores add up to .* but the gradient's dot product with the probe is"),
    ],
)
def test_losses_that_are_not_those_of_the_step(losses, message):
    p = problem(optimizer=sgd)
    engine = p.engine("midpoint", late="jvp")
    with pytest.raises(ValueError, match=message), engine.step(range(N), losses=lambda: losses(p)):
        p.take_step()
    assert len(engine.ledger.steps) == 0
