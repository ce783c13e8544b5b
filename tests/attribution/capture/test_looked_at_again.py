"""What begins with a batch that tells nothing: the values are exact to the end of the run, or it is refused."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from inrun_bench import InRunShapley
from inrun_bench.attribution.capture import calls, links
from inrun_bench.attribution.capture.observation import is_looked_at_again
from tests.attribution.watched import score_error

B, T, WIDTH = 8, 3, 5
BATCHES = 15  # the second, the fifth and the 14th call are looked at


def test_later_calls_are_looked_at_again_even_and_odd_ones():
    assert [times for times in range(1, 1000) if is_looked_at_again(times)] == [2, 5, 14, 41, 122, 365]


class Mixing(nn.Module):
    """Mixes samples as much as `part` says; the number of operations is always the same."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(WIDTH, 6), nn.Linear(6, 3)
        self.calls = 0

    def forward(self, x):
        h = torch.tanh(self.stem(x))
        return self.head(self.mixed(h, x).mean(1))

    def mixed(self, h, _x):
        return h


class Warming(Mixing):
    """A factor that is zero in the first calls."""

    first = 1

    def mixed(self, h, _x):
        if self.training:
            self.calls += 1
        return h + 0.3 * float(self.calls > self.first) * h.roll(1, 0)


class WarmingLonger(Warming):
    first = 5


class Sorting(Mixing):
    """Sorts its samples by length, and does not put them back: first, all are of one length."""

    def mixed(self, h, x):
        order = torch.argsort((x[:, :, 0] > 0).sum(1), stable=True)
        return h[order]


class SortedAndPutBack(Mixing):
    """The same for a layer, whose samples are in another order then."""

    def __init__(self):
        super().__init__()
        self.block = nn.Linear(6, 6)

    def mixed(self, h, x):
        order = torch.argsort((x[:, :, 0] > 0).sum(1), stable=True)
        return torch.tanh(self.block(h[order]))[torch.argsort(order)]


def batches(first):
    """Return samples of which those of the first batches have a first number above zero throughout."""
    torch.manual_seed(0)
    x = torch.randn(B * (BATCHES + 1), T, WIDTH, dtype=torch.float64)
    x[: first * B, :, 0] = x[: first * B, :, 0].abs() + 0.1
    return x, torch.randint(3, (len(x),))


@pytest.mark.parametrize(
    ("model", "first"), [(Warming, 0), (WarmingLonger, 0), (Sorting, 1), (Sorting, 3), (SortedAndPutBack, 1)]
)
def test_a_model_that_mixes_samples_only_later_is_refused(model, first):
    x, y = batches(first)
    with pytest.raises(ValueError, match=r"seen in the first call of the model .* does not hold in call (2|5|14): "):
        score_error(model(), x, y, B, steps=BATCHES)


class InParts(nn.Module):
    """Called in two parts by its loop."""

    def __init__(self):
        super().__init__()
        self.part, self.rest, self.calls = nn.Linear(WIDTH, WIDTH), Mixing(), 0

    def forward(self, x):
        return self.rest(x)


@pytest.mark.parametrize("first", [1, 5])
def test_a_loop_that_mixes_between_parts_only_later_is_refused(first):
    x, y = batches(0)

    def call(model, x):
        model.calls += model.training
        h = model.part(x)
        return model(h + 0.3 * float(model.calls > first) * h.roll(1, 0))

    with pytest.raises(ValueError, match="does not keep them apart"):
        score_error(InParts(), x, y, B, steps=BATCHES, call=call)


def in_parts(model, x):
    return model.head(torch.tanh(model.stem(x)).mean(1))


@pytest.mark.parametrize(("call", "counts"), [(lambda model, x: model(x), (3, 0)), (in_parts, (6, 4))])
def test_looking_again_changes_nothing_and_is_rare(call, counts, monkeypatch):
    x, y = batches(0)
    looked, asked = [], []
    look, ask = calls.Call.contradiction, links.Links._check
    monkeypatch.setattr(calls.Call, "contradiction", lambda *args: looked.append(1) or look(*args))
    monkeypatch.setattr(links.Links, "_check", lambda *args: asked.append(1) or ask(*args))
    assert score_error(Mixing(), x, y, B, steps=BATCHES, call=call) < 1e-10
    assert (len(looked), len(asked)) == counts


# --- what lies behind the first sight ---


class Reaching(Warming):
    """In whose later calls some samples see others."""

    def __init__(self, target, source):
        super().__init__()
        sees = torch.zeros(B, B, dtype=torch.float64)
        sees[target, source] = 1.0
        self.register_buffer("sees", sees)

    def mixed(self, h, _x):
        self.calls += self.training
        return h + 0.3 * float(self.calls > 1) * torch.einsum("ij,jtd->itd", self.sees, h)


PAIRS = {
    "all see the first": (slice(1, None), slice(0, 1)),
    "the first sees all": (0, 5),
    "odd ones see even ones": (slice(1, None, 2), slice(0, None, 2)),
    "even ones see odd ones": (slice(0, None, 2), slice(1, None, 2)),
    "the second half sees the first": (slice(4, None), slice(0, 4)),
    "the last sees its neighbour": (7, 6),
}


@pytest.mark.parametrize(("target", "source"), PAIRS.values(), ids=PAIRS)
def test_whoever_sees_whom_is_seen(target, source):
    x, y = batches(0)
    with pytest.raises(ValueError, match=r"does not hold in call (2|5|14)"):
        score_error(Reaching(target, source), x, y, B, steps=BATCHES)


@pytest.mark.parametrize("name", ["stem", "head"])
def test_what_is_said_of_one_layer_does_not_hide_the_others(name):
    x, y = batches(0)
    with pytest.raises(ValueError, match="does not hold in call"):
        score_error(Warming(), x, y, B, steps=BATCHES, batch_axis={name: 0})


class MixingOnce(Mixing):
    """In one call alone."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def mixed(self, h, _x):
        self.calls += self.training
        return h + 0.3 * float(self.calls == self.at) * h.roll(1, 0)


def test_calls_without_gradients_take_no_turns():
    """The second call with gradients is looked at, though it is the third."""
    x, y = batches(0)

    def call(model, x):
        out = model(x)
        if model.training and model.calls == 1:
            with torch.no_grad():
                model(x)
        return out

    with pytest.raises(ValueError, match="does not hold in call 2"):
        score_error(MixingOnce(3), x, y, B, steps=BATCHES, call=call)


class Tasks(MixingOnce):
    """A model of two settings."""

    def __init__(self, at):
        super().__init__(at)
        self.second = False


def test_each_setting_has_turns_of_its_own():
    """Of two settings the second has its own second call looked at, which is the fifth of both."""
    x, y = batches(0)

    def call(model, x):
        model.second = model.training and model.calls in (3, 4)
        return model(x)

    with pytest.raises(ValueError, match="does not hold in call 2"):
        score_error(Tasks(5), x, y, B, steps=BATCHES, call=call)


@pytest.mark.parametrize("mixes", ["the model", "the loop"])
def test_after_a_contradiction_there_are_no_values(mixes):
    x, y = batches(0)
    model = (InParts() if mixes == "the loop" else Warming()).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def validation():
        loss = cross_entropy(model.eval()(x[:B]), y[:B])
        model.train()
        return loss

    engine = InRunShapley(model, optimizer, len(y), "first", validation=validation)

    def called(step, index):
        if mixes == "the model":
            return model(x[index])
        h = model.part(x[index])
        return model.rest(h + 0.3 * float(step > 0) * h.roll(1, 0))

    refused = 0
    for step in range(4):
        index = torch.arange(B) + B * step
        try:
            with engine.step(index):
                cross_entropy(called(step, index), y[index]).backward()
                optimizer.step()
        except ValueError:
            refused += 1
        optimizer.zero_grad()
    assert refused == 3
    with pytest.raises(ValueError, match=r"there are no values: .*(does not hold|does not keep them apart)"):
        engine.values()


# --- what is sound goes on ---


class Kinds(Mixing):
    """An embedding of kinds, which are all the same in the first batches."""

    def __init__(self):
        super().__init__()
        self.kind = nn.Embedding(4, 6)

    def mixed(self, h, x):
        return h + self.kind((x[:, :, 0] < 0).long())


class FadedIn(Mixing):
    """A branch that a number fades in."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Linear(6, 6)

    def mixed(self, h, _x):
        self.calls += self.training
        return h + torch.tanh(self.branch(h * float(self.calls > 1)))


class Folded(Mixing):
    def forward(self, x):
        h = torch.tanh(self.stem(x.reshape(-1, WIDTH)))
        return self.head(h.reshape(len(x), -1, 6).mean(1))


class Trimmed(Mixing):
    """Cuts what no sample of the batch needs."""

    def forward(self, x):
        lengths = (x[:, :, 0] > 0).sum(1).clamp(min=1)
        longest = int(lengths.max())
        real = torch.arange(longest) < lengths[:, None]
        h = torch.tanh(self.stem(x[:, :longest])) * real[..., None]
        return self.head(h.sum(1) / lengths[:, None])


class Noisy(Mixing):
    """Draws noise for real positions alone."""

    def mixed(self, h, x):
        real = x[:, :, 0] > 0
        noise = torch.zeros_like(h)
        if self.training:
            noise[real] = torch.randn(int(real.sum()), 6, dtype=h.dtype)
        return h + 0.1 * noise


class Remembering(Mixing):
    """Keeps a tensor of its graph, and a number, in an object of its own."""

    def __init__(self):
        super().__init__()
        self.state = SimpleNamespace(last=None, calls=0)
        self.seen = defaultdict(list)

    def mixed(self, h, _x):
        self.state.last = h
        self.seen["h"].append(h)
        self.state.calls += self.training
        return h * (1 + 0.1 * self.state.calls)


class RememberingAndWarming(Remembering):
    """And mixes samples later."""

    def mixed(self, h, x):
        return super().mixed(h, x) + 0.3 * float(self.state.calls > 1) * h.roll(1, 0)


def test_a_graph_that_an_object_keeps_hides_nothing():
    x, y = batches(0)
    with pytest.raises(ValueError, match="does not hold in call"):
        score_error(RememberingAndWarming(), x, y, B, steps=BATCHES)


SOUND = {
    "kinds": (Kinds, 3),
    "faded in": (FadedIn, 0),
    "trimmed": (Trimmed, 3),
    "noise of real positions": (Noisy, 1),
    "remembering": (Remembering, 0),
}


@pytest.mark.parametrize(("model", "first"), SOUND.values(), ids=SOUND)
def test_what_a_first_batch_did_not_tell_may_be_sound(model, first):
    x, y = batches(first)
    assert score_error(model(), x, y, B, steps=BATCHES) < 1e-10


def test_a_position_alone_is_no_other_axis_than_several():
    x, y = batches(0)

    def call(model, x):
        model.calls += model.training
        return model(x[:, :1] if model.calls in (4, 5) else x)

    assert score_error(Folded(), x, y, B, steps=BATCHES, call=call) < 1e-10


def test_arguments_that_told_nothing_at_first_are_not_exchanged_later():
    """As many prototypes as samples, zero at first."""
    x, y = batches(0)

    class Near(Mixing):
        def forward(self, x, prototypes):
            h = torch.tanh(self.stem(x)).mean(1)
            return self.head(h + (h @ prototypes.T).softmax(1) @ prototypes)

    torch.manual_seed(1)
    prototypes = torch.randn(B, 6, dtype=torch.float64)

    def call(model, x):
        model.calls += model.training
        return model(x, prototypes * float(model.calls > 1))

    assert score_error(Near(), x, y, B, steps=BATCHES, call=call) < 1e-10


def test_what_is_handed_over_beside_tensors_is_not_changed():
    x, y = batches(0)

    class Metered(Mixing):
        def forward(self, x, meter):
            meter.samples += len(x) * self.training
            return super().forward(x)

    meters = {}

    def call(model, x):
        return model(x, meters.setdefault(id(model), SimpleNamespace(samples=0)))

    assert score_error(Metered(), x, y, B, steps=BATCHES, call=call) < 1e-10
    counted = sorted(meter.samples for meter in meters.values())
    assert counted[-1] == counted[-2]
