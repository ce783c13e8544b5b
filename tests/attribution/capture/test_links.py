"""What a loop makes between calls of parts of a model: samples in their own rows, or a refusal."""

import pytest
import torch
from torch import nn

from inrun_bench.attribution.capture import calls
from tests.attribution.watched import score_error

B = T = 4
WIDTH = 5


class Parts(nn.Module):
    """A stem, a block, a head, and a layer for what holds no samples."""

    def __init__(self):
        super().__init__()
        self.stem, self.block, self.side = nn.Linear(WIDTH, 6), nn.Linear(6, 6), nn.Linear(WIDTH, 6)
        self.table, self.head = nn.Embedding(9, WIDTH), nn.Linear(6, 3)

    def forward(self, h):
        return self.head(torch.tanh(h).cumsum(1).mean(1))


def samples(*shape):
    torch.manual_seed(0)
    return torch.randn(12, *shape, dtype=torch.float64), torch.randint(3, (12,))


def noise(model, _):
    draw = torch.randn if model.training else torch.ones
    return model.side(draw(T, WIDTH, dtype=torch.float64))


def some_rows(model, _):
    return model.side(model.table.weight[:T])


def looked_up(model, _):
    return model.side(model.table(torch.tensor([3, 1, 4, 1])))


@pytest.mark.parametrize("side", [noise, some_rows, looked_up])
def test_a_part_called_on_as_many_rows_as_samples_that_are_none_is_exact_or_refused(side):
    x, y = samples(T, 6)

    def call(model, x):
        return model(x + torch.tanh(side(model, x)))

    with pytest.raises(ValueError, match=r"'side' \(Linear\).*does not keep them apart|joins parameter 'side"):
        score_error(Parts(), x, y, B, call=call)
    told = {"": 0, "side": None, "table": None}
    assert score_error(Parts(), x, y, B, call=call, batch_axis=told) < 1e-10


def mixed(h):
    return h - h.mean(0)


def shifted(h):
    return h.roll(1, 0)


@pytest.mark.parametrize("between", [mixed, shifted])
def test_a_loop_that_mixes_samples_between_parts_is_refused(between):
    x, y = samples(3, WIDTH)
    with pytest.raises(ValueError, match=r"'stem' \(Linear\).*does not keep them apart"):
        score_error(Parts(), x, y, B, call=lambda model, x: model(between(model.stem(x))))


@pytest.mark.parametrize("where", [1, 2])
def test_a_part_that_is_called_again_is_looked_at_each_time(where):
    """What it returned the second time goes on to another part than what it returned the first time."""
    x, y = samples(3, WIDTH)

    def call(model, x):
        h = model.stem(x)
        for time in (1, 2):
            h = h + torch.tanh(model.block(h))
            h = mixed(h) if time == where else h
        return model(h)

    with pytest.raises(ValueError, match="does not keep them apart"):
        score_error(Parts(), x, y, B, call=call)


def residual(model, x):
    h = model.stem(x)
    h = h + torch.tanh(model.block(h))
    return model(h + model.block(h))


def two_branches(model, x):
    return model(model.stem(x) * torch.sigmoid(model.side(x)))


def without_graph_first(model, x):
    with torch.no_grad():
        model.stem(x)
    return model(model.stem(x))


@pytest.mark.parametrize("call", [residual, two_branches, without_graph_first])
@pytest.mark.parametrize("time", [3, 8])
def test_what_loops_make_of_parts_is_exact(call, time):
    x, y = samples(time, WIDTH)
    assert score_error(Parts(), x, y, B, call=call, steps=2) < 1e-10


def test_gradients_that_a_loop_keeps_are_its_own():
    x, y = samples(3, WIDTH)
    made = []

    def call(model, x):
        h = model.stem(x)
        h2 = torch.tanh(h)
        if model.training:
            h.retain_grad()
            h2.retain_grad()
            made.append((h, h2))
        return model(h2)

    assert score_error(Parts(), x, y, B, call=call, steps=1) < 1e-10
    for plain, watched in zip(*made, strict=True):  # the plain run has passed back twice: by sample, and for its step
        torch.testing.assert_close(2 * watched.grad, plain.grad)


class Switched(nn.Module):
    """A layer whose samples lie along another axis where a switch of its own, or of its configuration, says so."""

    def __init__(self):
        super().__init__()
        self.inner, self.head, self.second, self.log = nn.Linear(WIDTH, 4), nn.Linear(4, 3), False, ""

    def forward(self, x, config=None):
        second = self.second or (config is not None and config.second)
        h = torch.tanh(self.inner(x.transpose(0, 1) if second else x)).cumsum(0 if second else 1)
        return self.head(h.transpose(0, 1) if second else h).mean(1)


class Config:
    def __init__(self, second):
        self.second = second


@pytest.mark.parametrize("where", ["attribute", "configuration"])
def test_a_switch_is_part_of_a_call_s_form(where):
    x, y = samples(T, WIDTH)
    steps = iter(range(100))

    def call(model, x):
        second = model.training and (next(steps) // 2) % 2 == 1  # each step is taken by both runs
        if where == "configuration":
            return model(x, Config(second))
        model.second = second
        return model(x)

    x, y = torch.cat([x, -x]), torch.cat([y, y])
    assert score_error(Switched(), x, y, B, call=call, steps=4) < 1e-10


def test_settings_that_always_change_are_not_observed_for_ever(monkeypatch):
    x, y = torch.randn(100, T, WIDTH, dtype=torch.float64), torch.randint(3, (100,))
    counted = []
    monkeypatch.setattr(calls, "observe", lambda *args, own=calls.observe: counted.append(1) or own(*args))
    steps = iter(range(100))

    def call(model, x):
        model.log = f"call {next(steps)}"
        return model(x)

    assert score_error(Switched(), x, y, B, call=call, steps=20) < 1e-10
    assert len(counted) == calls.MANY


def compiled_where_watched():
    """Return how to call a model, compiled where it is the watched one of the two runs."""
    runs = []

    def call(model, *args):
        if not any(model is one for one, _ in runs):
            runs.append((model, torch.compile(model, backend="aot_eager") if runs else model))
        return next(run for one, run in runs if one is model)(*args)

    return call


class Branching(nn.Module):
    """One more layer where a switch or an argument says so, and that may see samples along the second axis."""

    def __init__(self, turned):
        super().__init__()
        self.inner, self.more, self.head = nn.Linear(WIDTH, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.on, self.turned = False, turned

    def forward(self, x, on=False):
        h = torch.tanh(self.inner(x)).cumsum(1)
        if self.on or on:
            h = self.more(h)
            if self.turned:
                h = self.inner(x.transpose(0, 1)).cumsum(0).transpose(0, 1) + h
        return self.head(h).mean(1)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("by", ["switch", "argument"])
def test_a_compiled_model_that_goes_another_way_later_is_exact_or_refused(by, turned):
    x, y = samples(T, WIDTH)
    x, y = torch.cat([x, -x]), torch.cat([y, y])
    run, models, trained = compiled_where_watched(), [], iter(range(100))

    def call(model, x):
        if not any(model is one for one in models):
            models.append(model)
        if model is models[0] and not model.training:  # its validation, with which each step begins
            on = next(trained) >= 2
            for one in models:
                one.on = on and by == "switch"
            call.on = on
        return run(model, x, call.on) if by == "argument" else run(model, x)

    try:
        if by == "switch" and not turned:
            assert score_error(Branching(turned), x, y, B, call=call, steps=4) < 1e-10
            return
        reason = r"'inner' \(Linear\): its calls had different axes" if by == "switch" else "called with .True. beside"
        with pytest.raises(Exception, match=reason):  # of whatever kind torch's compiler makes of it
            score_error(Branching(turned), x, y, B, call=call, steps=4)
    finally:
        torch._dynamo.reset()
