"""What begins with a batch that tells nothing: the values are exact to the end of the run, or it is refused."""

import pytest
import torch
from torch import nn

from inrun_bench.attribution.capture import calls, links
from inrun_bench.attribution.capture.observation import is_looked_at_again, mask_of, masks_of
from tests.attribution.watched import score_error

B, T, WIDTH = 4, 3, 5
BATCHES = 9  # the eighth call is looked at


def test_the_second_the_eighth_the_32nd_call_and_so_on_are_looked_at_again():
    assert [times for times in range(1, 1000) if is_looked_at_again(times)] == [2, 8, 32, 128, 512]
    found = {tuple(mask_of(B, 2 << 2 * turn).tolist()) for turn in range(40)}
    assert found <= {tuple(mask.tolist()) for mask in masks_of(B)}
    assert len(found) > 1


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
    with pytest.raises(ValueError, match=r"seen in the first call of the model .* does not hold in call [28]: "):
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


@pytest.mark.parametrize(("call", "counts"), [(lambda model, x: model(x), (2, 0)), (in_parts, (4, 3))])
def test_looking_again_changes_nothing_and_is_rare(call, counts, monkeypatch):
    x, y = batches(0)
    looked, asked = [], []
    look, ask = calls.contradiction, links.Links._check
    monkeypatch.setattr(calls, "contradiction", lambda *args, **known: looked.append(1) or look(*args, **known))
    monkeypatch.setattr(links.Links, "_check", lambda *args: asked.append(1) or ask(*args))
    assert score_error(Mixing(), x, y, B, steps=BATCHES, call=call) < 1e-10
    assert (len(looked), len(asked)) == counts
