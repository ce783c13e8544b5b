"""A step whose numbers are on their way: when it is booked, what is told of it and when, and what it holds."""

import gc
import logging
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from inrun_bench import InRunShapley
from inrun_bench.attribution import First
from tests.attribution.brute_force import relative_error
from tests.attribution.problem import N, problem

ORDERS = ("first", "second", "midpoint", "trapezoid", "integrated")
CLIPPED = {
    "plain": lambda _model: None,
    "clipped by norm": lambda m: nn.utils.clip_grad_norm_(m.parameters(), 1.0),
    "clipped by value": lambda m: nn.utils.clip_grad_value_(m.parameters(), 1.0),
}
LATE = 5  # well after the steps that are waited for


def heavy_ball(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


@pytest.mark.parametrize(
    ("order", "setting", "optimizer"),  # every pair of them at least once
    [
        (order, setting, (heavy_ball, adamw)[(i + j) % 2])
        for i, order in enumerate(ORDERS)
        for j, setting in enumerate(CLIPPED)
    ],
)
def test_looking_at_every_step_changes_no_bit(order, setting, optimizer):
    between = CLIPPED[setting]
    runs = []
    for steps_at_a_time in (1, 7):
        p = problem(optimizer=optimizer, between=between)
        runs.append(p.engine(order, late="keep" if setting == "clipped by value" else "auto"))
        for _ in range(7 // steps_at_a_time):
            p.train(runs[-1], steps_at_a_time)  # and ask for values
    one, other = (inrun.ledger for inrun in runs)
    assert len(one.steps) == len(other.steps) == 7
    for seen, unseen in zip(one.steps, other.steps, strict=True):
        np.testing.assert_array_equal(seen.scores, unseen.scores)
        assert (seen.optimizer, seen.drop) == (unseen.optimizer, unseen.drop)


def test_a_loss_is_what_it_was_when_it_was_returned():
    """A graph that is captured and played again writes each loss over the last."""
    p, twin = problem(), problem()
    returned = []

    def validation():
        for loss in returned:
            loss.data.zero_()
        returned.append(p.validation())
        return returned[-1]

    inrun = InRunShapley(p.model, p.optimizer, N, "trapezoid", validation=validation)
    p.train(inrun, 2 * LATE)
    expected = twin.engine("trapezoid")
    twin.train(expected, 2 * LATE)
    np.testing.assert_array_equal(inrun.ledger.by_step["drop"], expected.ledger.by_step["drop"])


class Broken(First):
    """Knows no direction at one step; training is left as it is."""

    def __init__(self, step=LATE):
        self.wait = step

    def direction(self, step):
        v = super().direction(step)
        self.wait -= 1
        return v if self.wait >= 0 or self.wait < -1 else [q * float("nan") for q in v]


NOT_FINITE = r"step 5: the score of sample 0 is not finite, first in layer '3' \(Linear\)"


def same_but_for(one, other, missing):
    kept = [entry for number, entry in enumerate(other) if number not in missing]
    assert len(one) == len(kept)
    for mine, theirs in zip(one, kept, strict=True):
        np.testing.assert_array_equal(mine.scores, theirs.scores)
        assert (mine.optimizer, mine.drop) == (theirs.optimizer, theirs.drop)


@pytest.mark.parametrize("asked", [False, True])
def test_a_bad_step_is_told_when_the_next_has_been_taken_or_values_are_asked_for_and_not_booked(asked):
    sound, p = problem(optimizer=heavy_ball), problem(optimizer=heavy_ball)
    expected = sound.engine("first")
    sound.train(expected, LATE + 4)
    inrun = p.engine(Broken())

    def step():
        with inrun.step(range(N)):
            p.take_step()

    for _ in range(LATE + 1):
        step()
    with pytest.raises(FloatingPointError, match=NOT_FINITE) as caught:
        inrun.values() if asked else step()
    assert caught.value.__notes__ == ["Found in the numbers of step 5, which is not booked."]
    p.train(inrun, 3 if asked else 2)
    assert len(expected.ledger.steps) == LATE + 4
    same_but_for(inrun.ledger.steps, expected.ledger.steps, {LATE})


@pytest.mark.parametrize("ask", ["ledger", "state", "detach"])
def test_whoever_asks_for_the_books_learns_of_a_bad_step(ask):
    p = problem()
    inrun = p.engine(Broken())
    for _ in range(LATE + 1):
        with inrun.step(range(N)):
            p.take_step()
    questions = {"ledger": lambda: inrun.ledger, "state": inrun.state_dict, "detach": inrun.detach}
    with pytest.raises(FloatingPointError, match=NOT_FINITE):
        questions[ask]()
    assert len(inrun.ledger.steps) == LATE
    assert np.isfinite(inrun.values()).all()
    assert ask != "detach" or not p.optimizer._optimizer_step_pre_hooks


def test_sums_and_layers_are_checked_a_step_later():
    p = problem()
    inrun = p.engine("first")
    p.train(inrun, LATE)
    p.batch_loss().backward()  # and nobody clears it
    with inrun.step(range(N)):
        p.take_step()
    with pytest.raises(ValueError, match=r"step 5: the samples' scores add up to"), inrun.step(range(N)):
        p.take_step()
    forward = type(p.model[3]).forward
    p.run = lambda x: forward(p.model[3], p.model[:3](x))
    with inrun.step(range(N)):
        p.take_step()
    with pytest.raises(ValueError, match=r"step 7: parameter '3.weight' has a gradient, but nothing was seen"):
        _ = inrun.ledger
    p.run = None
    p.check("first", engine=inrun, steps=1)
    assert len(inrun.ledger.steps) == LATE + 2  # without 5 and 7


def test_a_pending_step_holds_nothing_of_the_size_of_weights_or_activations():
    p = problem(optimizer=adamw)
    inrun = p.engine("first")
    p.train(inrun, LATE)
    with inrun.step(range(N)) as step:
        p.batch_loss().backward()
        large = [weakref.ref(x) for term in step.route._kept for x in term.tensors]
        p.optimizer.step()
        taken, update = step.taken, step.received.update
        large += [weakref.ref(x) for x in (*taken.before, *taken.received.gradients, *update.slope, *update.empty)]
        del taken, update
        p.optimizer.zero_grad()
    assert large
    del step
    gc.collect()
    assert inrun._pending is not None
    assert all(reference() is None for reference in large)


def test_going_back_to_a_checkpoint_drops_the_step_on_its_way():
    p = problem()
    inrun = p.engine(Broken())
    p.train(inrun, LATE)
    state, values = inrun.state_dict(), inrun.values()
    with inrun.step(range(N)):
        p.take_step()
    inrun.load_state_dict(state)
    np.testing.assert_array_equal(inrun.values(), values)


def test_an_index_may_be_written_over_while_its_step_is_on_its_way():
    p = problem()
    inrun = p.engine("first")
    index = np.arange(N)
    for _ in range(LATE):
        with inrun.step(index):
            p.take_step()
    index[:] = 0
    assert inrun.ledger.steps[-1].index.tolist() == list(range(N))


@pytest.mark.parametrize("order", ["first", "midpoint"])
def test_a_fused_optimiser_skips_overflowed_steps_unknown_to_the_host(order, caplog):
    """Under GradScaler; its values are those of a run without a scaler, and the skipped steps are not booked."""
    caplog.set_level(logging.INFO)
    runs = []
    for skipped in (None, {0, LATE}):
        p = problem(optimizer=lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, fused=True))
        p.model, p.x = p.model.float(), p.x.float()
        p.optimizer = p.build_optimizer(p.model)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=skipped is not None)
        runs.append(p.engine(order))
        for number in range(9 if skipped is None else 11):
            with runs[-1].step(range(N)):
                factor = 1e38 if skipped and number in skipped else 1.0
                scaler.scale(p.batch_loss() * factor).backward()
                scaler.step(p.optimizer)
                scaler.update()
                p.optimizer.zero_grad()
    plain, scaled = (inrun.ledger.steps for inrun in runs)
    assert len(scaled) == len(plain) == 9
    for one, other in zip(scaled, plain, strict=True):
        assert relative_error(one.scores, other.scores) < 1e-5
        assert one.drop == pytest.approx(other.drop, abs=1e-6)
    assert "step 5: gradients overflowed and the optimiser did not step; not booked" in caplog.text


def biting(p):
    """Clip by value all along, so that nothing is cut off before step 5."""
    inrun = p.engine("first")
    p.between = lambda m: nn.utils.clip_grad_value_(m.parameters(), 100.0)
    p.train(inrun, LATE)
    p.between = lambda m: nn.utils.clip_grad_value_(m.parameters(), 0.01)
    p.received = lambda g: g.clamp(-0.01, 0.01)
    return inrun


def test_clipping_by_value_that_bites_later_is_exact_at_once_where_probes_are_late():
    p = problem(optimizer=adamw)
    p.check("first", engine=biting(p), steps=2, tolerance=1e-9)


def test_clipping_by_value_that_bites_later_is_told_a_step_later_and_followed_then():
    p = problem()
    inrun = biting(p)
    with inrun.step(range(N)):
        p.take_step()
    with pytest.warns(RuntimeWarning, match="step 5: gradients were changed"), inrun.step(range(N)):
        p.take_step()
    with pytest.warns(RuntimeWarning, match="step 6: gradients were changed"):
        p.check("first", engine=inrun, steps=1)
    p.check("first", engine=inrun, steps=1)
