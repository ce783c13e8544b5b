"""What a loop makes between calls of parts of a model: samples in their own rows, or a refusal."""

import random
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from inrun_bench import InRunShapley
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


@pytest.fixture
def counted(monkeypatch):
    """A list that grows by one whenever a call is observed."""
    times = []
    monkeypatch.setattr(calls.Call, "observe", lambda call, own=calls.Call.observe: times.append(1) or own(call))
    return times


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


def behind_a_skip(model, x):
    h = model.stem(x)
    return model(model.block(h) + mixed(h))


def only_later(model, x):
    h = model.stem(x)
    later = model.training and next(model.steps) >= 1
    return model(mixed(h) if later else h)


@dataclass
class Kept:
    """What objects that modules return may be like: they hold each other."""

    h: torch.Tensor
    name: str

    def __post_init__(self):
        self.other = SimpleNamespace(owner=self)


class Wrapped(Parts):
    """Its stem returns an object."""

    def __init__(self):
        super().__init__()
        self.stem = Keeping()


class Keeping(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(WIDTH, 6)

    def forward(self, x):
        return Kept(self.inner(x), "h")


@pytest.mark.parametrize("call", [behind_a_skip, only_later])
def test_a_loop_that_mixes_samples_where_it_is_hard_to_see_is_refused(call):
    x, y = samples(3, WIDTH)
    model = Parts()
    model.steps = None

    def called(one, x):
        one.steps = one.steps or iter(range(100))
        return call(one, x)

    with pytest.raises(ValueError, match=r"'stem' \(Linear\).*does not keep them apart"):
        score_error(model, x, y, B, call=called)


@pytest.mark.parametrize("between", [mixed, torch.tanh])
def test_outputs_in_objects_are_looked_at(between):
    x, y = samples(3, WIDTH)

    def call(model, x):
        return model(between(model.stem(x).h))

    if between is torch.tanh:
        assert score_error(Wrapped(), x, y, B, call=call) < 1e-10
        return
    with pytest.raises(ValueError, match=r"'stem' \(Keeping\).*does not keep them apart"):
        score_error(Wrapped(), x, y, B, call=call)


def test_random_numbers_behind_a_link_are_those_of_training():
    """`score_error` compares training to the bit."""
    x, y = samples(3, WIDTH)

    def call(model, x):
        h = torch.nn.functional.dropout(model.stem(x), 0.5, model.training)
        return model(torch.nn.functional.dropout(model.block(h), 0.5, model.training))

    assert score_error(Parts(), x, y, B, call=call) < 1e-10


def test_a_checkpoint_between_parts_is_looked_through():
    x, y = samples(3, WIDTH)

    def call(model, x):
        h = model.stem(x)
        return model(h + checkpoint(lambda h: torch.tanh(model.block(h)), h, use_reentrant=False))

    assert score_error(Parts(), x, y, B, call=call) < 1e-10


@pytest.mark.parametrize("axes", ["observed", 0])
def test_what_cannot_be_looked_through_is_refused(axes):
    torch.manual_seed(0)
    model = Parts()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = samples(3, WIDTH)

    def loss(rows):
        h = checkpoint(torch.tanh, model.stem(x[rows].float()), use_reentrant=True)
        return nn.functional.cross_entropy(model(h), y[rows])

    def validation():
        return nn.functional.cross_entropy(model(torch.tanh(model.stem(x[8:].float()))), y[8:])

    engine = InRunShapley(model, optimizer, 12, "first", validation=validation, batch_axis=axes)
    reason = r"autograd cannot be asked(.|\n)*use_reentrant=False\), or say"
    with nullcontext() if axes == 0 else pytest.raises(ValueError, match=reason), engine.step(torch.arange(B)):
        loss(slice(0, B)).backward()
        optimizer.step()
    assert len(engine.ledger.steps) == (axes == 0)


@pytest.mark.parametrize("order", ["first", "integrated", "second"])
def test_a_checkpoint_is_computed_anew_in_the_mode_of_its_call(order):
    """A validation loss is differentiated after its closure has returned, and put the model back into training."""
    values = []
    for through in (lambda function, x: function(x), lambda *given: checkpoint(*given, use_reentrant=False)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(WIDTH, 6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 3)).double()
        x, y = samples(WIDTH)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def loss(rows, training, model=model, through=through, x=x, y=y):
            model.train(training)
            value = nn.functional.cross_entropy(model[3](through(model[:3], x[rows])), y[rows])
            model.train()
            return value

        engine = InRunShapley(
            model,
            optimizer,
            len(y),
            order,
            validation=lambda loss=loss: loss(slice(8, None), training=False),
            batch_axis=0,
        )
        for rows in torch.arange(8).split(B):
            torch.manual_seed(1)
            with engine.step(rows):
                loss(rows, training=True).backward()
                optimizer.step()
                optimizer.zero_grad()
        values.append(engine.values())
    np.testing.assert_allclose(values[1], values[0], rtol=1e-9)


def test_parts_of_the_whole_batch_at_each_step_are_exact():
    """The same numbers once more are no sign of a constant where it is seen whose rows they become."""
    x, y = samples(3, WIDTH)
    x, y = x[:B].repeat(4, 1, 1), y[:B].repeat(4)
    assert score_error(Parts(), x, y, B, call=lambda model, x: model(model.stem(x)), steps=3) < 1e-10


@pytest.mark.parametrize("frozen", ["all", "bias"])
@pytest.mark.parametrize("rules", ["auto", "weight-gradient"])
def test_a_layer_that_is_frozen_for_a_call_has_no_part_in_it(frozen, rules):
    """As a discriminator is in the generator's step."""
    x, y = samples(3, WIDTH)

    def call(model, x):
        judged = model(model.stem(x))
        layer = model.head if frozen == "all" else model.head.bias
        layer.requires_grad_(False)
        fooled = model(model.block(model.stem(x)))
        layer.requires_grad_(True)
        return judged - fooled

    if frozen == "all":
        last_digits = rules == "weight-gradient"
        assert score_error(Parts(), x, y, B, call=call, rules=rules, last_digits=last_digits) < 1e-10
        return
    with pytest.raises(ValueError, match=r"'head' \(Linear\) was called while some of its parameters were frozen"):
        score_error(Parts(), x, y, B, call=call, rules=rules)


@pytest.mark.parametrize(
    "way", [lambda model, x: model(model.stem(x)), lambda model, x: model.head(model.stem(x)).mean(1)]
)
def test_a_layer_whose_weights_begin_with_zero_is_exact(way):
    torch.manual_seed(0)
    model = Parts()
    for p in (*model.head.parameters(), *model.stem.parameters()):
        nn.init.zeros_(p)
    x, y = samples(3, WIDTH)
    assert score_error(model, x, y, B, call=way, steps=3) < 1e-10


class Gated(nn.Module):
    """A branch that mixes samples, or positions, behind a gate that is closed at first."""

    def __init__(self, axis):
        super().__init__()
        self.inner, self.head, self.gate, self.axis = nn.Linear(WIDTH, 4), nn.Linear(4, 3), nn.Linear(4, 4), axis
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, x):
        h = torch.tanh(self.inner(x))
        return self.head(h + self.gate(h.mean(self.axis, keepdim=True))).mean(1)


class Masked(nn.Module):
    """Its samples meet, and some of what it returns is masked."""

    def __init__(self, mask, mixes):
        super().__init__()
        self.inner, self.mask, self.mixes = nn.Linear(WIDTH, 4), mask, mixes

    def forward(self, x):
        h = torch.tanh(self.inner(x)).cumsum(1)[:, -1]
        h = h - h.mean(0) if self.mixes else h
        return h.masked_fill(torch.tensor([False, False, False, True]), self.mask)


@pytest.mark.parametrize("mask", [-float("inf"), -9e15, -1e9])
def test_a_mask_in_the_output_drowns_nothing(mask):
    x, y = samples(3, WIDTH)
    assert score_error(Masked(mask, mixes=False), x, y, B) < 1e-10
    with pytest.raises(ValueError, match="changes in other places than their rows"):
        score_error(Masked(mask, mixes=True), x, y, B)


class Asking(nn.Module):
    """Asks whether a parameter is zero, and mixes samples, or hides it, then."""

    def __init__(self, frozen, as_mask):
        super().__init__()
        self.inner, self.head, self.flag = nn.Linear(WIDTH, 4), nn.Linear(4, 3), nn.Parameter(torch.zeros(3))
        self.flag.requires_grad_(not frozen)
        self.as_mask = as_mask

    def forward(self, x):
        h = self.head(torch.tanh(self.inner(x)).cumsum(1)).mean(1)
        if self.as_mask:
            return (h - h.mean(0)).masked_fill(self.flag.bool(), 0.0)
        return h if self.flag.any() else h - h.mean(0)


@pytest.mark.parametrize(("frozen", "as_mask"), [(False, False), (True, False), (True, True)])
def test_a_model_that_asks_whether_its_weights_are_zero_is_observed_as_it_is(frozen, as_mask):
    x, y = samples(3, WIDTH)
    with pytest.raises(ValueError, match="changes in other places than their rows"):
        score_error(Asking(frozen, as_mask), x, y, B)


@pytest.mark.parametrize("inplace", [nn.ReLU(inplace=True), nn.Hardtanh(inplace=True)])
@pytest.mark.parametrize("rules", ["auto", "weight-gradient"])
def test_a_layer_s_output_may_be_written_into(inplace, rules):
    """That of a linear map with a bias is a view, of what it has made of positions in a row."""
    x, y = samples(3, WIDTH)
    model = nn.Sequential(nn.Linear(WIDTH, 6), inplace, nn.Linear(6, 12), inplace, nn.Flatten(), nn.Linear(36, 3))
    last_digits = rules == "weight-gradient"
    assert score_error(model, x, y, B, rules=rules, last_digits=last_digits) < 1e-10


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_a_step_that_was_interrupted_leaves_nothing_behind(kind):
    x, y = samples(3, WIDTH)
    values = []
    for interrupted in (False, True):
        torch.manual_seed(0)
        model = Secret(turned=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def loss(rows, model=model):
            return nn.functional.cross_entropy(model(x[rows].float()), y[rows])

        def interrupt(*_):
            raise kind

        engine = InRunShapley(model, optimizer, 12, "first", validation=lambda loss=loss: loss(slice(8, None)))
        for number, rows in enumerate(torch.arange(8).split(2)):
            if interrupted and number:
                handle = model.head.register_forward_pre_hook(interrupt)
                with pytest.raises(kind), engine.step((rows + 2) % 8):
                    model(x[(rows + 2) % 8].float())
                handle.remove()
            with engine.step(rows):
                loss(rows).backward()
                optimizer.step()
                optimizer.zero_grad()
        values.append(engine.values())
    assert np.array_equal(*values)


def noted(_module, _args, output):
    output.norm().item()


def mixing(_module, _args, output):
    return mixed(output)


@pytest.mark.parametrize("which", ["inner", "head"])
def test_hooks_of_the_user_s_may_look_at_what_layers_return_but_not_mix_it(which):
    x, y = (torch.cat([each, each]) for each in samples(T, WIDTH))
    steps = iter(range(100))

    def call(model, x):
        if model.training and next(steps) >= 4:
            getattr(model, which).register_forward_hook(noted)
        return model(x)

    assert score_error(Secret(False), x, y, B, call=call, steps=4) < 1e-10
    model = Secret(False)
    getattr(model, which).register_forward_hook(mixing)
    with pytest.raises(ValueError, match=r"did not return the same .*a hook that changes what a module returns"):
        score_error(model, x, y, B)


def test_what_a_closed_gate_hides_is_seen():
    x, y = samples(3, WIDTH)
    assert score_error(Gated(1), x, y, B, steps=3) < 1e-10
    with pytest.raises(ValueError, match="changes in other places than their rows"):
        score_error(Gated(0), x, y, B, steps=3)


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


def faint_on_the_way(model, x):
    h = model.stem(x)
    return model((h + torch.tanh(model.block(h))) * 1e150 * 1e-150)


@pytest.mark.parametrize("call", [residual, two_branches, without_graph_first, faint_on_the_way])
@pytest.mark.parametrize("time", [3, 8])
@pytest.mark.parametrize("rules", ["auto", "weight-gradient"])
def test_what_loops_make_of_parts_is_exact(call, time, rules):
    """Also where it is looked back through a layer that scores its samples in its own backward pass."""
    x, y = samples(time, WIDTH)
    last_digits = rules == "weight-gradient"
    assert score_error(Parts(), x, y, B, call=call, rules=rules, last_digits=last_digits) < 1e-10


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


def test_gradients_that_a_loop_keeps_on_the_way_are_its_own():
    """Where autograd is asked, it adds to what tensors between two calls keep: next to nothing."""
    x, y = samples(3, WIDTH)
    made = []

    def call(model, x):
        h = torch.tanh(model.stem(x))
        if model.training:
            h.retain_grad()
            made.append(h)
        return model(h * 2)

    assert score_error(Parts(), x, y, B, call=call, steps=1) < 1e-10
    plain, watched = made
    assert torch.equal(2 * watched.grad, plain.grad) or (2 * watched.grad - plain.grad).abs().max() < 1e-16


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


def test_settings_that_always_change_are_not_observed_for_ever(counted):
    x, y = torch.randn(100, T, WIDTH, dtype=torch.float64), torch.randint(3, (100,))
    steps = iter(range(100))

    def call(model, x):
        model.log = f"call {next(steps)}"
        return model(x)

    assert score_error(Switched(), x, y, B, call=call, steps=20) < 1e-10
    assert len(counted) == calls.MANY


class Secret(nn.Module):
    """Goes another way where something says so that is no switch: with samples along the second axis, or not."""

    def __init__(self, turned):
        super().__init__()
        self.inner, self.head, self.turned, self.says = nn.Linear(WIDTH, 4), nn.Linear(4, 3), turned, lambda: False

    def forward(self, x):
        if not self.says():
            return self.head(torch.tanh(self.inner(x)).cumsum(1)).mean(1)
        if not self.turned:
            return self.head(2 * torch.tanh(self.inner(x)).cumsum(1)).mean(1)
        return self.head(torch.tanh(self.inner(x.transpose(0, 1))).cumsum(0).transpose(0, 1)).mean(1)


SECRETS = {
    "a number": lambda model, on: setattr(model, "number", int(on)) or (lambda: model.number == 1),
    "an array's element": lambda model, on: lambda: np.bool_(on),
    "nothing or an object": lambda model, on: lambda: (object() if on else None) is not None,
    "a dictionary": lambda model, on: lambda: {"on": on}["on"],
    "a tensor": lambda model, on: lambda: bool(torch.ones(1) * on),
    "chance": lambda model, on: random.seed(on) or (lambda: random.random() < 0.5),  # noqa: S311 - .84, .13
}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("secret", SECRETS)
def test_another_way_is_seen_whatever_has_decided_on_it(secret, turned):
    x, y = (torch.cat([each, each]) for each in samples(T, WIDTH))
    steps = iter(range(100))

    def call(model, x):
        model.says = SECRETS[secret](model, model.training and next(steps) >= 4)  # each step is taken by both runs
        return model(x)

    if not turned:
        assert score_error(Secret(turned), x, y, B, call=call, steps=4) < 1e-10
        return
    with pytest.raises(ValueError, match=r"went another way than in any call before, where it cannot.*: inner"):
        score_error(Secret(turned), x, y, B, call=call, steps=4)


def test_arguments_that_always_change_are_not_observed_for_ever(counted):
    x, y = torch.randn(100, T, WIDTH, dtype=torch.float64), torch.randint(3, (100,))
    steps = iter(range(1000))

    class Told(Secret):
        def forward(self, x, _step, _files):
            return super().forward(x)

    def call(model, x):
        return model(x, next(steps), {"files": [f"{next(steps)}.txt"]})

    assert score_error(Told(False), x, y, B, call=call, steps=20) < 1e-10
    assert len(counted) == calls.MANY


ONCE = []  # what a function finds among its module's names is no state of the model that could be compared


def test_another_way_that_cannot_be_repeated_is_refused():
    x, y = (torch.cat([each, each]) for each in samples(T, WIDTH))
    steps = iter(range(100))

    def call(model, x):
        ONCE[:] = [model.training and next(steps) >= 4]
        model.says = lambda: bool(ONCE) and ONCE.pop()  # true the first time that it is asked, and never again
        return model(x)

    with pytest.raises(ValueError, match=r"\(Secret\) did not return the same .*something that cannot be repeated"):
        score_error(Secret(False), x, y, B, call=call, steps=4)
    steps = iter(range(100))
    assert score_error(Secret(False), x, y, B, call=call, steps=4, batch_axis=0) < 1e-10


def test_each_way_is_observed_once(counted):
    x, y = torch.randn(100, T, WIDTH, dtype=torch.float64), torch.randint(3, (100,))
    steps = iter(range(100))

    def call(model, x):
        on = model.training and next(steps) // 2 % 2 == 1
        model.says = lambda: on
        return model(x)

    assert score_error(Secret(False), x, y, B, call=call, steps=20) < 1e-10
    assert len(counted) == 2


def compiled_where_watched(backend):
    """Return how to call a model, compiled where it is the watched one of the two runs."""
    runs = []

    def call(model, *args):
        if not any(model is one for one, _ in runs):
            runs.append((model, torch.compile(model, backend=backend) if runs else model))
        return next(run for one, run in runs if one is model)(*args)

    return call


class Branching(nn.Module):
    """One more layer where a switch or an argument says so, and that may see samples along the second axis."""

    def __init__(self, turned):
        super().__init__()
        self.inner, self.more, self.head = nn.Linear(WIDTH, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.on, self.number, self.turned = False, 0, turned

    def forward(self, x, on=False):
        h = torch.tanh(self.inner(x)).cumsum(1)
        if self.on or on > 0.5 or self.number:
            h = self.more(h)
            if self.turned:
                h = self.inner(x.transpose(0, 1)).cumsum(0).transpose(0, 1) + h
        return self.head(h).mean(1)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("by", ["switch", "argument", "number", "attribute"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_that_goes_another_way_later_is_exact_or_refused(backend, by, turned):
    x, y = samples(T, WIDTH)
    x, y = torch.cat([x, -x]), torch.cat([y, y])
    run, models, trained = compiled_where_watched(backend), [], iter(range(100))

    def call(model, x):
        if not any(model is one for one in models):
            models.append(model)
        if model is models[0] and not model.training:  # its validation, with which each step begins
            on = next(trained) >= 2
            for one in models:
                one.on, one.number = on and by == "switch", int(on and by == "attribute")
            call.on = on
        given = {"argument": [call.on], "number": [float(call.on)]}.get(by, [])
        return run(model, x, *given)

    try:
        if not turned and by in ("switch", "argument"):
            assert score_error(Branching(turned), x, y, B, call=call, steps=4) < 1e-10
            return
        reason = "its calls had different axes|not seen which axis numbers|: inner: its layers or"
        with pytest.raises(Exception, match=reason):  # of whatever kind torch's compiler makes of it
            score_error(Branching(turned), x, y, B, call=call, steps=4)
    finally:
        torch._dynamo.reset()
