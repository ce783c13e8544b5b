"""Which axis numbers the samples is observed: exact wherever sizes coincide, refused where nobody can know.

Training never notices.
"""

import copy
import math
import random
import threading
import weakref
from contextlib import nullcontext, suppress
from enum import Enum
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from inrun_bench import InRunShapley
from inrun_bench.attribution.capture import observation as observing
from inrun_bench.attribution.capture.batch_axis import Unclear
from inrun_bench.attribution.capture.observation import Call
from inrun_bench.attribution.capture.twin import twin_of
from tests.attribution.brute_force import relative_error
from tests.attribution.problem import N, classes, problem
from tests.attribution.watched import score_error

STEPS = 2


class Encoder(nn.Module):
    """Attention over positions, samples first or second."""

    def __init__(self, width, time, batch_first):
        super().__init__()
        self.inner, self.head = nn.Linear(width, 4), nn.Linear(4, 3)
        layer = nn.TransformerEncoderLayer(4, 2, 4, dropout=0.0, batch_first=batch_first)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.batch_first = batch_first

    def forward(self, x):
        return self.head(self.layers(self.inner(x)).mean(1 if self.batch_first else 0))


class Recurrent(nn.Module):
    """The last state, [layers x directions, B, hidden]."""

    def __init__(self, width, time, kind, layers, hidden, batch_first=True, **more):
        super().__init__()
        self.inner = kind(width, hidden, layers, batch_first=batch_first, **more)
        self.head = nn.Linear(hidden, 3)

    def forward(self, x):
        output, state = self.inner(x)
        last = state[0] if isinstance(state, tuple) else state
        return self.head(last[-1] + output.mean(1 if self.inner.batch_first else 0))


class Positions(nn.Module):
    """Embedded and bare positions, a matrix that mixes them, and a token of its own that is looked up once."""

    def __init__(self, width, time):
        super().__init__()
        self.embedded, self.bare = nn.Embedding(time, width), nn.Parameter(torch.randn(time, width))
        self.token, self.head = nn.Embedding(1, width), nn.Linear(2 * width, 3)
        self.register_buffer("mixing", torch.tril(torch.ones(time, time)))

    def forward(self, x):
        h = torch.tanh(x + self.embedded(torch.arange(x.shape[1])) + self.mixing.to(x.dtype) @ self.bare)
        token = self.token(torch.zeros(1, dtype=torch.long)).repeat(len(x), 1)
        return self.head(torch.cat([h.cumsum(1)[:, -1], token], 1))


class Convolution(nn.Module):
    def __init__(self, width, time):
        super().__init__()
        self.inner, self.norm, self.head = nn.Conv1d(width, 4, 2, padding=1), nn.GroupNorm(2, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.inner(x.transpose(1, 2)))).mean(2))


class LoopedAndTied(nn.Module):
    """One layer called once a position on what came before, and its weight used as an argument of a function."""

    def __init__(self, width, time):
        super().__init__()
        self.inner, self.head = nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x):
        h = x[:, 0]
        for position in range(x.shape[1]):
            h = torch.tanh(self.inner(h) + x[:, position])
        return self.head(nn.functional.linear(h, self.inner.weight.t()))


class Folded(nn.Module):
    """Positions folded into the batch."""

    def __init__(self, width, time):
        super().__init__()
        self.each, self.head = nn.Linear(width, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = torch.tanh(self.each(x.flatten(0, 1))).view(*x.shape[:2], -1)
        return self.head(h.cumsum(1)[:, -1])


class Parametrized(nn.Module):
    """Weights that are computed from others."""

    def __init__(self, width, time):
        super().__init__()
        self.inner = nn.utils.parametrizations.weight_norm(nn.Linear(width, 4))
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
        self.turn, self.head = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.turn(torch.tanh(self.spectral(self.inner(x.cumsum(1)[:, -1])))))


class Conditional(nn.Module):
    """A part that is not always called, and samples that meet each other nowhere."""

    def __init__(self, width, time):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        return self.head(torch.tanh((self.first if self.calls % 2 else self.second)(x.cumsum(1)[:, -1])))


FORMS = {  # of width and number of positions: the model, and the axis that numbers the samples
    "encoder, batch first": (lambda d, t: Encoder(d, t, True), 0),
    "encoder, batch second": (lambda d, t: Encoder(d, t, False), 1),
    "gru": (lambda d, t: Recurrent(d, t, nn.GRU, 2, d), 0),
    "gru, batch second": (lambda d, t: Recurrent(d, t, nn.GRU, 2, d, batch_first=False), 1),
    "lstm, both directions": (lambda d, t: Bidirectional(d, t), 0),
    "lstm with dropout": (lambda d, t: Recurrent(d, t, nn.LSTM, 2, 3, dropout=0.3), 0),
    "positions": (Positions, 0),
    "convolution": (Convolution, 0),
    "looped and tied": (LoopedAndTied, 0),
    "folded": (Folded, 0),
    "parametrized": (Parametrized, 0),
}


class Bidirectional(nn.Module):
    def __init__(self, width, time):
        super().__init__()
        self.inner, self.head = nn.LSTM(width, width, 2, batch_first=True, bidirectional=True), nn.Linear(2 * width, 3)

    def forward(self, x):
        return self.head(self.inner(x)[0][:, -1])


def samples(dim, width, time, batch, steps=STEPS):
    n = (steps + 1) * batch
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, time, width, generator=generator, dtype=torch.float64)
    return x.movedim(0, dim).contiguous(), torch.randint(3, (n,), generator=generator)


sizes = st.sampled_from([1, 2, 4, 8])


@settings(max_examples=30)
@given(st.sampled_from(sorted(FORMS)), sizes, sizes, sizes)
def test_whatever_sizes_coincide_scores_are_exact_and_training_is_what_it_would_have_been(name, batch, time, width):
    build, dim = FORMS[name]
    torch.manual_seed(0)
    x, y = samples(dim, width, time, batch)
    assert score_error(build(width, time), x, y, batch, dim=dim, steps=STEPS) < 1e-10


@pytest.mark.parametrize("name", sorted(FORMS))
@pytest.mark.parametrize("size", [2, 4])
def test_all_sizes_alike(name, size):
    build, dim = FORMS[name]
    torch.manual_seed(0)
    x, y = samples(dim, size, size, size)
    assert score_error(build(size, size), x, y, size, dim=dim, steps=STEPS) < 1e-10


def test_an_input_with_a_leading_axis_of_one_leaves_training_alone():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x):  # [1, B, 5]
            return self.head(torch.tanh(self.inner(x)).sum(0))

    torch.manual_seed(0)
    x, y = torch.randn(1, 24, 5, dtype=torch.float64), torch.randint(3, (24,))
    assert score_error(Sum(), x, y, 8, dim=1) < 1e-10


def test_attention_that_drops_weights_is_exact():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.inner(x).mean(1))

    torch.manual_seed(0)
    x, y = torch.randn(24, 4, 8, dtype=torch.float64), torch.randint(3, (24,))
    model = Model()
    assert model.inner.self_attn.dropout == 0.1
    assert score_error(model, x, y, 8) < 1e-10


class Positions(nn.Module):
    """Treats each position alone; `mixed` then makes one output a sample of them."""

    def __init__(self, mixed):
        super().__init__()
        self.inner, self.head, self.mixed = nn.Linear(4, 4), nn.Linear(4, 3), mixed

    def forward(self, x):
        logits = self.head(torch.tanh(self.inner(x)))
        return logits.mean(1) if self.mixed else logits


@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("others", [2, 4, 7])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("time", [N, N + 1])
def test_calls_on_others_than_the_batch_do_not_say_which_axis_numbers_it(time, mixed, others, with_gradient):
    """Their second axis has as many rows as there are samples."""
    p = problem(lambda: Positions(mixed), shape=(time, 4))
    p.loss = lambda model, x, y, reduction="mean": classes(
        lambda x: model(x) if mixed else model(x).mean(1), x, y, reduction
    )
    engine = p.engine("first")
    for _ in range(4):
        expected = p.brute_force().scores("first")
        booked = len(engine.ledger.steps)
        with suppress(ValueError), engine.step(range(N)):
            with torch.set_grad_enabled(with_gradient):
                p.model(torch.randn(others, N, 4, dtype=torch.float64))
            p.take_step()
        for entry in engine.ledger.steps[booked:]:
            assert relative_error(entry.scores, expected) < 1e-10
    assert with_gradient or (time == N and not mixed) or len(engine.ledger.steps) == 4


def test_as_many_positions_as_samples_are_none_where_outputs_are_of_other_rows():
    p = problem(lambda: Positions(True), shape=(N, 4))
    with pytest.raises(ValueError, match=r"the model's output: .* it mixes samples"), p.engine("first").step(range(N)):
        p.model(p.x[: N + 2]).sum().backward()


@pytest.mark.parametrize("before", [0, 2])
def test_sizes_that_coincide_later_leave_known_what_was_seen_before(before):
    p = problem(lambda: Positions(False), shape=(N + 1, 4))
    p.loss = lambda model, x, y, reduction="mean": classes(lambda x: model(x).mean(1), x, y, reduction)
    engine = p.engine("first")
    p.check("first", engine=engine, steps=before)
    p.x = p.x[:, :N]
    if before:
        p.check("first", engine=engine, steps=2)
    else:
        with pytest.raises(ValueError, match="several axes"):
            p.check("first", engine=engine)


def test_axes_hold_for_other_sizes():
    """Observed once, for each form of the arguments: a batch of another size, or of as many positions as samples."""
    torch.manual_seed(0)
    model = Encoder(3, 4, batch_first=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(5, 12, 3, dtype=torch.float64), torch.randint(3, (12,))
    loss = nn.functional.cross_entropy
    engine = InRunShapley(model, optimizer, 12, "first", validation=lambda: loss(model(x), y))
    for size in (3, 5, 4):
        plain = copy.deepcopy(model)
        probe = torch.autograd.grad(loss(plain(x), y), list(plain.parameters()))
        each = loss(plain(x[:, :size]), y[:size], reduction="none")
        expected = [
            0.1 * float(sum((g * v).sum() for g, v in zip(gradient, probe, strict=True)))
            for gradient in (
                torch.autograd.grad(one / size, list(plain.parameters()), retain_graph=True) for one in each
            )
        ]
        with engine.step(range(size)):
            loss(model(x[:, :size]), y[:size]).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert engine.ledger.steps[-1].scores.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_one_exchange_is_not_believed_where_it_leaves_two_axes():
    """Samples that differ at the last position alone: the last sample changes one row of either axis."""

    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(2, 5), nn.Linear(5, 3)

        def forward(self, x):  # [B, 2 B]
            h = x.view(len(x), -1, 2).transpose(0, 1)
            return self.head(torch.tanh(self.inner(h)).cumsum(0).mean(0))

    torch.manual_seed(0)
    x, y = torch.ones(12, 8, dtype=torch.float64), torch.randint(3, (12,))
    x[:, -2:] = torch.randn(12, 2, dtype=torch.float64)
    assert score_error(TimeFirst(), x, y, 4) < 1e-10


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.inner(x) - self.inner(x).mean(0))


class Experts(nn.Module):
    """Each sample goes to one of two experts."""

    def __init__(self):
        super().__init__()
        self.experts, self.head = nn.ModuleList(nn.Linear(5, 6) for _ in range(2)), nn.Linear(6, 3)

    def forward(self, x):
        which, h = (x[:, 0] > 0).long(), x.new_zeros(len(x), 6)
        for number, expert in enumerate(self.experts):
            h[which == number] = expert(x[which == number])
        return self.head(h)


class Shuffled(nn.Module):
    """As many rows as samples, in another order."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        order = x[:, 0].argsort()
        return self.head(torch.tanh(self.inner(x[order]))[order.argsort()])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (Mixing, r"the model's output: .*it mixes samples, sees a part of them, .*in all layers with batch_axis=axis"),
        (Experts, r"layer 'experts.0' \(Linear\): .*(depends on the samples' values|sees a part of them)"),
        (Shuffled, r"layer 'inner' \(Linear\): .*has them in another order.*batch_axis={'inner': axis}"),
    ],
)
def test_what_has_no_batch_axis_is_refused_with_the_layer_and_what_to_pass(build, message):
    torch.manual_seed(0)
    x, y = torch.randn(24, 5, dtype=torch.float64), torch.randint(3, (24,))
    with pytest.raises(ValueError, match=message):
        score_error(build(), x, y, 8)


class Free(nn.Module):
    """Any function of a hidden state, between two linear maps."""

    def __init__(self, between):
        super().__init__()
        self.inner, self.head, self.between = nn.Linear(5, 6), nn.Linear(6, 3), between

    def forward(self, x):
        return self.head(self.between(torch.tanh(self.inner(x))))


@pytest.mark.parametrize(
    "between",
    [
        lambda h: h - h[:2].mean(0),
        lambda h: h.cumsum(0),
        *[lambda h, distance=distance: h + h.roll(distance, 0) for distance in range(1, 5)],
        lambda h: h.flip(0),
        lambda h: h[h[:, 0].argsort()],
        lambda h: torch.cat([h[-1:], h[1:]]),
        lambda h: h / h.norm(),
    ],
    ids=[
        "support set",
        "running sum",
        *(f"{distance} apart" for distance in range(1, 5)),
        "flipped",
        "sorted",
        "first is last",
        "common norm",
    ],
)
def test_whatever_mixes_or_moves_samples_is_refused(between):
    torch.manual_seed(0)
    x, y = torch.randn(24, 5, dtype=torch.float64), torch.randint(3, (24,))
    with pytest.raises(ValueError, match="changes in other places than their rows"):
        score_error(Free(between), x, y, 8)


def test_an_output_of_which_two_axes_number_the_samples_is_refused():
    """A matrix with samples on its diagonal: each changes one row and one column alone."""

    class Diagonal(nn.Module):
        def __init__(self):
            super().__init__()
            self.each, self.head = nn.Linear(1, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(torch.tanh(self.each(torch.diag_embed(x.sum(1))[..., None])).sum(1))

    torch.manual_seed(0)
    x, y = torch.randn(24, 5, dtype=torch.float64), torch.randint(3, (24,))
    with pytest.raises(ValueError, match=r"layer 'each'.*several axes of its output.*may number the 8 samples"):
        score_error(Diagonal(), x, y, 8)
    assert score_error(Diagonal(), x, y, 8, batch_axis={"each": 0}) < 1e-10


class Guided(nn.Module):
    """Twice as many rows as samples, those without a condition first."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        without, given = torch.tanh(self.inner(torch.cat([torch.zeros_like(x), x]))).chunk(2)
        return self.head(given - without)


def test_rows_of_samples_behind_others_are_no_folded_samples():
    torch.manual_seed(0)
    x, y = torch.randn(12, 5, dtype=torch.float64), torch.randint(3, (12,))
    with pytest.raises(ValueError, match=r"layer 'inner' \(Linear\): .*changes in other places"):
        score_error(Guided(), x, y, 4)


class Grid(nn.Module):
    """Positions that are made with the help of the samples, whose device and type they take."""

    def __init__(self, make):
        super().__init__()
        self.inner, self.position, self.head = nn.Linear(5, 6), nn.Linear(1, 6), nn.Linear(6, 3)
        self.make = make

    def forward(self, x):
        h = self.inner(x) + self.position(self.make(x)[:, None])
        return self.head(torch.tanh(h).cumsum(1).mean(1))


@pytest.mark.parametrize("positions", [3, 4, 8])
@pytest.mark.parametrize(
    "make",
    [
        lambda x: torch.linspace(0, 1, x.shape[1]).to(x),
        lambda x: torch.arange(x.shape[1]).type_as(x),
        lambda x: torch.ones_like(x[0, :, 0]).cumsum(0),
    ],
    ids=["to", "type_as", "ones_like"],
)
def test_constants_made_with_the_help_of_samples_are_no_samples(make, positions):
    torch.manual_seed(0)
    x, y = torch.randn(12, positions, 5, dtype=torch.float64), torch.randint(3, (12,))
    assert score_error(Grid(make), x, y, 4) < 1e-10


class Operator(nn.Module):
    """Functions at points that all samples share, as many as there are samples."""

    def __init__(self):
        super().__init__()
        self.branch, self.trunk = nn.Linear(5, 6), nn.Linear(2, 6)

    def forward(self, x, points):
        return torch.tanh(self.branch(x)) @ torch.tanh(self.trunk(points)).t()


def test_arguments_that_all_samples_share_are_no_samples():
    torch.manual_seed(0)
    x, y = torch.randn(12, 5, dtype=torch.float64), torch.randn(12, 4, dtype=torch.float64)
    points = torch.randn(4, 2, dtype=torch.float64)

    def loss(output, y, reduction="mean"):
        each = (output - y).square().mean(1)
        return each.mean() if reduction == "mean" else each

    with pytest.raises(ValueError, match=r"the model's output: .*it mixes samples"):
        score_error(Operator(), x, y, 4, loss=loss, call=lambda model, x: model(x, points))


def test_axes_that_an_argument_turns_are_observed_for_each_of_its_values():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.GRU(5, 6), nn.Linear(6, 3)

        def forward(self, x, turned):
            return self.head(self.inner(x if turned else x.transpose(0, 1))[0][-1])

    torch.manual_seed(0)
    x, y = torch.randn(12, 4, 5, dtype=torch.float64), torch.randint(3, (12,))
    turns = iter(range(100))

    def call(model, x):
        turned = next(turns) // 4 % 2
        return model(x.transpose(0, 1) if turned else x, turned)

    assert score_error(Turned(), x, y, 4, call=call) < 1e-10


@pytest.mark.parametrize("width", [4, 6])
def test_operations_outside_of_modules_are_exact_or_refused(width):
    class Loose(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.table = nn.Linear(5, width), nn.Parameter(torch.randn(4, width))
            self.scale, self.head = nn.Parameter(torch.ones(width)), nn.Linear(width, 3)

    def call(model, x):
        window = torch.linspace(0, 1, 4, dtype=x.dtype)[:, None]
        h = model.inner(x) + model.table * window
        return model.head((torch.tanh(h).flatten(0, 1) * model.scale).view(*x.shape[:2], -1).cumsum(1).mean(1))

    torch.manual_seed(0)
    x, y = torch.randn(12, 4, 5, dtype=torch.float64), torch.randint(3, (12,))
    with pytest.raises(ValueError, match="is not clear which axis"):
        score_error(Loose(), x, y, 4, call=call, batch_axis={"inner": 0, "head": 0})


def test_two_axes_that_may_both_number_samples_are_refused_unless_one_is_named():
    """A model that treats each position alone treats each sample alone, too: nothing tells the two apart."""
    torch.manual_seed(0)

    class Each(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 3)

        def forward(self, x):
            return self.inner(x)

    def loss(output, y, reduction="mean"):
        each = (output - y[:, None, None]).square().mean((1, 2))
        return each.mean() if reduction == "mean" else each

    x, y = torch.randn(24, 8, 5, dtype=torch.float64), torch.randn(24, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"several axes of the arguments have the length of the batch, 8.*batch_axis"):
        score_error(Each(), x, y, 8, loss=loss)
    assert score_error(Each(), x, y, 8, loss=loss, batch_axis=0) < 1e-10
    assert score_error(Each(), x, y, 8, loss=loss, batch_axis={"inner": 0}) < 1e-10
    assert score_error(Each(), x[:, :7], y, 8, loss=loss) < 1e-10


def test_a_part_that_was_not_called_when_the_model_was_observed_is_refused_and_not_guessed():
    torch.manual_seed(0)
    x, y = samples(0, 4, 4, 4)
    with pytest.raises(ValueError, match=r"layer 'second' \(Linear\): it was not called when the model was observed"):
        score_error(Conditional(4, 4), x, y, 4)


def test_samples_that_are_all_alike_are_told_apart_where_they_are_real_numbers():
    x, y = samples(0, 3, 3, 4, steps=2)
    x[:4] = x[0]
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3))
    assert score_error(model, x, y, 4, steps=2) < 1e-10


@pytest.mark.parametrize("constant", [False, True])
def test_weights_of_zero_cost_one_pass_more(constant, monkeypatch):
    """As many as biases mostly are: what is done with other numbers is compared with one pass as it is."""

    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head, self.token = nn.Linear(3, 4), nn.Linear(4, 3), nn.Embedding(2, 4)

        def forward(self, x):
            token = self.token(torch.zeros_like(x[:, 0], dtype=torch.long)) if constant else 0.0  # made of samples
            return self.head(torch.tanh(self.inner(x)) + token)

    passes = []
    monkeypatch.setattr(observing, "twin_of", lambda *args, **how: passes.append(1) or twin_of(*args, **how))
    counted = []
    for zero in (False, True):
        model = Biased()
        for layer in (model.inner, model.head):
            nn.init.constant_(layer.bias, float(not zero))
        parameters = dict(model.named_parameters())
        layers = {model.inner: "inner", model.head: "head", model.token: "token"}
        found = Call.of(model, (torch.randn(4, 3),), {}, 4, layers, parameters).observe()
        assert found.layers == {"inner": [0], "head": [0]} | ({"token": [None]} if constant else {})
        counted.append(len(passes))
        passes.clear()
    assert counted[1] == counted[0] + 1


def test_a_batch_that_tells_nothing_is_forgotten():
    """All of its samples are one; the next batch, of the same form, tells."""
    p = problem(lambda: nn.Sequential(nn.Embedding(9, 3), nn.Flatten(), nn.Linear(6, 3)), shape=(2,), ids=9)
    engine, x = p.engine("first"), p.x.clone()
    p.x[:N] = x[0]
    with pytest.raises(ValueError, match="along which rows differ"):
        p.train(engine, 1)
    p.optimizer.zero_grad()
    p.x = x
    p.check("first", engine=engine)


def test_what_a_model_raises_is_told_with_its_cause():
    class Raises(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, x):
            h = self.inner(x)
            if len(x) == N:
                raise LookupError("no such word")
            return h

    p = problem(Raises)
    engine = p.engine("first")
    with pytest.raises(ValueError, match=r"run beside training, which failed: .*no such word") as caught:
        p.train(engine)
    assert isinstance(caught.value.__cause__, LookupError)


CHANCES = {"torch": lambda: float(torch.rand(())), "python": random.random, "numpy": lambda: np.random.rand()}  # noqa: NPY002
GENERATORS = {
    "torch's, its own": (torch.Generator, lambda own: float(torch.rand((), generator=own))),
    "numpy's, its own": (lambda: np.random.default_rng(0), lambda own: own.random()),
    "numpy's older, its own": (lambda: np.random.RandomState(0), lambda own: own.rand()),
    "python's, its own": (lambda: random.Random(0), lambda own: own.random()),  # noqa: S311
}


class Dropped(nn.Module):
    """Layers that a step leaves out by chance (arXiv 1909.11556), and bare parameters with them; samples second."""

    def __init__(self, width, chance):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.scales = nn.ParameterList(torch.rand(width) for _ in range(4))
        make, self.draw = GENERATORS.get(chance, (lambda: None, lambda _: CHANCES[chance]()))
        self.head, self.generator = nn.Linear(width, 3), make()

    def forward(self, x):
        x = x.transpose(0, 1).cumsum(0)
        way = [not self.training or self.draw(self.generator) < 0.5 for _ in self.layers]
        for taken, layer, scale in zip(way, self.layers, self.scales, strict=True):
            x = x + torch.tanh(layer(x)) * scale if taken else x
        return self.head(x).transpose(0, 1).mean(1)


@pytest.mark.parametrize("chance", [*CHANCES, *GENERATORS])
def test_layers_that_are_met_later_are_observed_when_they_are_met(chance):
    """Random numbers are those of training, each generator's, and training's are what they would have been."""

    def call(model, x):
        random.seed(torch.initial_seed())
        np.random.seed(torch.initial_seed())  # noqa: NPY002
        return model(x)

    torch.manual_seed(0)
    x, y = samples(0, 4, 4, 4, steps=8)
    assert score_error(Dropped(4, chance), x, y, 4, call=call, steps=8) < 1e-10


class Late(nn.Module):
    """A bare parameter that is met in a later step, before any layer that was not."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.token, self.scale, self.step = nn.Parameter(torch.rand(1, 4)), nn.Parameter(torch.rand(4, 4)), 0

    def forward(self, x):
        h = torch.tanh(self.inner(x)).cumsum(1)
        if self.step:
            h = torch.cat([self.token.expand(len(x), 1, 4), h * self.scale], 1)
        return self.head(h).mean(1)


def test_bare_parameters_that_are_met_later_are_observed_when_they_are_met():
    torch.manual_seed(0)
    x, y = samples(0, 4, 4, 4, steps=4)
    steps = iter(range(100))

    def call(model, x):
        if model.training:
            model.step = next(steps) // 2  # each step is taken by both runs
        return model(x)

    assert score_error(Late(), x, y, 4, call=call, steps=4) < 1e-10


class Prompted(nn.Module):
    """A table of as many rows as there are samples, which the loop hands to a part of the model by itself."""

    def __init__(self, rows):
        super().__init__()
        self.table, self.inner, self.head = nn.Parameter(torch.rand(rows, 4)), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(x)).cumsum(1)).mean(1)


@pytest.mark.parametrize(
    "made", [lambda t: t, lambda t: 2 * t, lambda t: t[:4].flip(0)], ids=["as it is", "times", "rows"]
)
def test_a_part_that_is_called_on_parameters_sees_no_samples(made):
    torch.manual_seed(0)
    x, y = samples(0, 4, 4, 4)
    model = Prompted(4)
    assert score_error(model, x, y, 4, call=lambda m, x: m(x + torch.tanh(m.inner(made(m.table))))) < 1e-10


class Layout(Enum):
    FIRST = "first"
    SECOND = "second"


class Laid(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x, layout):
        second = layout is Layout.SECOND
        h = torch.tanh(self.inner(x.transpose(0, 1) if second else x)).cumsum(0 if second else 1)
        return self.head(h.transpose(0, 1) if second else h).mean(1)


def test_a_member_of_an_enumeration_is_part_of_a_call_s_form():
    p = problem(Laid, shape=(N, 4))
    engine = p.engine("first")
    for layout in (Layout.FIRST, Layout.SECOND, Layout.FIRST, Layout.SECOND):
        p.loss = lambda model, x, y, reduction="mean", layout=layout: classes(
            lambda x: model(x, layout), x, y, reduction
        )
        p.check("first", engine=engine, steps=1)


class Task(nn.Module):
    """A layer for each task, told by an attribute; the second task has samples along another axis."""

    def __init__(self, width, turned):
        super().__init__()
        self.shared, self.tasks = nn.Linear(width, width), nn.ModuleList(nn.Linear(width, 3) for _ in range(2))
        self.task, self.turned = 0, turned

    def forward(self, x):
        turned = self.turned and self.task == 1
        h = torch.tanh(self.shared((x.transpose(0, 1) if turned else x).cumsum(0 if turned else 1)))
        return self.tasks[self.task](h.transpose(0, 1) if turned else h).mean(1)


@pytest.mark.parametrize("turned", [False, True])
def test_another_task_is_observed_when_its_layer_is_met_and_refused_where_it_contradicts(turned):
    torch.manual_seed(0)
    x, y = samples(0, 4, 4, 4, steps=4)
    steps = iter(range(100))

    def call(model, x):
        if model.training:
            model.task = (next(steps) // 2) % 2  # each step is taken by both runs
        return model(x)

    if turned:
        with pytest.raises(ValueError, match=r"layer 'shared' \(Linear\): its calls had different axes"):
            score_error(Task(4, turned), x, y, 4, call=call, steps=4)
    else:
        assert score_error(Task(4, turned), x, y, 4, call=call, steps=4) < 1e-10


class Parts(nn.Module):
    """Parts that the loop calls one by one."""

    def __init__(self, positions):
        super().__init__()
        self.token, self.position = nn.Linear(5, 6), nn.Embedding(positions, 6)
        self.constant, self.head = nn.Linear(5, 6), nn.Linear(6, 3)

    def train_step(self, x, table=None):
        h = self.token(x)
        h = h + (self.position(torch.arange(x.shape[1])) if table is None else self.constant(table))
        return self.head(torch.tanh(h).cumsum(1).mean(1))


@pytest.mark.parametrize("positions", [3, 4, 8])
def test_parts_of_a_model_that_are_called_on_positions_are_exact_or_refused(positions):
    torch.manual_seed(0)
    x, y = torch.randn(12, positions, 5, dtype=torch.float64), torch.randint(3, (12,))
    told = {"": 0, "position": None}
    assert score_error(Parts(positions), x, y, 4, call=Parts.train_step, batch_axis=told) < 1e-10
    if positions == 3:
        assert score_error(Parts(positions), x, y, 4, call=Parts.train_step) < 1e-10
        return
    with pytest.raises(ValueError, match=r"layer '(position|token)'.*(may be samples or positions|as many|batch)"):
        score_error(Parts(positions), x, y, 4, call=Parts.train_step)


def test_a_part_that_is_called_on_a_constant_of_as_many_rows_as_samples_is_refused():
    torch.manual_seed(0)
    x, y = torch.randn(12, 4, 5, dtype=torch.float64), torch.randint(3, (12,))
    table = torch.randn(4, 5, dtype=torch.float64)

    def call(model, x):
        return model.train_step(x, table)

    with pytest.raises(ValueError, match=r"'constant' \(Linear\).*does not keep them apart"):
        score_error(Parts(4), x, y, 4, call=call, batch_axis={"token": 0})
    told = {"": 0, "constant": None}
    assert score_error(Parts(4), x, y, 4, call=call, batch_axis=told) < 1e-10

    def straight_into_the_loss(model, x):
        return model.head(torch.tanh(model.token(x[:, 0]))) + model.constant(table)[:, :3]

    with pytest.raises(ValueError, match=r"layer 'constant'.*twice on the same numbers"):
        score_error(Parts(4), x, y, 4, call=straight_into_the_loss)


class Noisy(nn.Module):
    """Random numbers from anywhere, and a state that is kept anywhere."""

    def __init__(self, noise, state=None):
        super().__init__()
        self.inner, self.head, self.noise, self.state = nn.Linear(5, 6), nn.Linear(6, 3), noise, state

    def forward(self, x):
        h = torch.tanh(self.inner(x))
        return self.head(h + self.noise(self, h) if self.training else h)


def count(model, h):
    model.state.calls += 1
    return h * model.state.calls


def remember(model, h):
    model.state[0].mul_(0.9).add_(1.0)
    return h * model.state[0]


@pytest.mark.parametrize(
    ("noise", "state"),
    [
        (lambda _model, h: h * random.random(), lambda: None),  # noqa: S311
        (lambda _model, h: torch.from_numpy(np.random.normal(size=h.shape)), lambda: None),  # noqa: NPY002
        (lambda m, h: torch.randn(h.shape, generator=m.state, dtype=h.dtype), lambda: torch.Generator().manual_seed(3)),
        (count, lambda: SimpleNamespace(calls=0)),
        (remember, lambda: [torch.zeros(1, dtype=torch.float64)]),
    ],
    ids=["random", "numpy", "a generator", "a counter", "a list of tensors"],
)
def test_random_numbers_and_states_of_the_model_are_those_of_training(noise, state):
    """One run after the other, from the same state: what nobody watches, and what somebody does."""
    x, y = torch.randn(12, 5, generator=torch.Generator().manual_seed(1)).double(), torch.arange(12) % 3
    losses = []
    for watched in (False, True):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        model = Noisy(noise, state()).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def validation(model=model):
            mode = model.training
            value = nn.functional.cross_entropy(model.eval()(x), y)
            model.train(mode)
            return value

        engine = InRunShapley(model, optimizer, 12, "first", validation=validation) if watched else None
        for index in torch.arange(12).split(4):
            with engine.step(index) if watched else nullcontext():
                loss = nn.functional.cross_entropy(model(x[index]), y[index])
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[:3] == losses[3:]


def test_a_model_that_changes_its_own_parameters_is_refused():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.kept = nn.Linear(5, 3), nn.Parameter(torch.ones(1), requires_grad=False)

        def forward(self, x):
            self.kept.data.mul_(0.9)
            return self.inner(x) * self.kept

    x, y = torch.randn(12, 5).double(), torch.randint(3, (12,))
    with pytest.raises(RuntimeError, match=r"changes its own parameters.*batch_axis=0"):
        score_error(Own(), x, y, 4)


class Turned(nn.Module):
    """Turns a weight by whole rows, which leaves its norm as it was."""

    def __init__(self):
        super().__init__()
        self.inner, self.kept = nn.Linear(5, 3), nn.Parameter(torch.eye(3), requires_grad=False)

    def forward(self, x):
        self.kept.data = self.kept.data.roll(1, 0)
        return self.inner(x) @ self.kept


def test_a_forward_that_keeps_the_norm_of_what_it_changes_is_refused():
    x, y = torch.randn(12, 5).double(), torch.randint(3, (12,))
    with pytest.raises(RuntimeError, match=r"changes its own parameters.*batch_axis=0"):
        score_error(Turned(), x, y, 4)


def test_a_forward_whose_changes_undo_each_other_after_as_many_passes_as_a_look_takes_is_refused():
    """Two samples: three passes, and a weight of three rows."""
    x, y = torch.randn(12, 5).double(), torch.randint(3, (12,))
    with pytest.raises(RuntimeError, match=r"changes its own parameters.*batch_axis=0"):
        score_error(Turned(), x, y, 2)


@pytest.mark.parametrize("fails_from", [1, 2])
def test_a_forward_that_changes_its_parameters_and_then_fails_is_refused_for_the_change(fails_from):
    class Failing(Turned):
        calls = 0

        def forward(self, x):
            out = super().forward(x)
            Failing.calls += 1
            if Failing.calls >= fails_from:
                raise ValueError("enough")
            return out

    model, x = Failing(), torch.randn(4, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = InRunShapley(model, optimizer, 4, "first", validation=lambda: model.inner(x).sum())
    with pytest.raises(RuntimeError, match="changes its own parameters"), engine.step(torch.arange(4)):
        model(x)


class Steady(nn.Module):
    """A model that a counter changes late: between looks, so that what it returns in one look does not tell."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(x))) * (1.0 if self.count() < 17 else 0.5)


class Uncopied:
    def __init__(self):
        self.lock, self.calls = threading.Lock(), 0


class WithLock(Steady):
    def __init__(self):
        super().__init__()
        self.meter = Uncopied()

    def count(self):
        self.meter.calls += 1
        return self.meter.calls


class WithGenerator(Steady):
    def __init__(self):
        super().__init__()
        self.calls = (number for number in range(1000))

    def count(self):
        return next(self.calls)


class OfClass(Steady):
    calls = 0

    def count(self):
        OfClass.calls += 1
        return OfClass.calls


class OnParameter(Steady):
    def count(self):
        self.inner.weight.calls = getattr(self.inner.weight, "calls", 0) + 1
        return self.inner.weight.calls


class ThroughFunction(Steady):
    """Whose function has closed over the model, and so over its buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.count = lambda: self.calls.add_(1).item()


class ThroughReference(Steady):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.itself = [weakref.ref(self)]

    def count(self):
        return self.itself[0]().calls.add_(1).item()


class InHook(Steady):
    def __init__(self):
        super().__init__()
        calls = [0]

        def hook(_module, args):
            calls[0] += 1
            return (args[0] * (1.0 if calls[0] < 17 else 0.5),)

        self.inner.register_forward_pre_hook(hook)

    def count(self):
        return 0


@pytest.mark.parametrize(
    ("build", "what"),
    [
        (WithLock, r"meter\.calls"),
        (WithGenerator, "calls's place"),
        (OfClass, "attribute 'calls' of class OfClass"),
        (OnParameter, r"inner\._parameters\['weight'\]\.calls"),
        (ThroughFunction, r"_buffers\['calls'\]"),
        (ThroughReference, r"_buffers\['calls'\]"),
        (InHook, r"inner\._forward_pre_hooks.*'calls'\[0\]"),
    ],
)
def test_state_that_a_twin_shares_with_training_is_refused_where_a_pass_changes_it(build, what):
    model, x = build(), torch.randn(4, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = InRunShapley(model, optimizer, 4, validation=lambda: model.inner(x).sum())
    with pytest.raises(RuntimeError, match=f"changes .*{what}.*batch_axis=0"), engine.step(torch.arange(4)):
        model(x)


def test_a_layer_that_a_twin_reaches_of_the_model_itself_is_refused():
    class Through(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(5, 8), nn.Linear(8, 3)
            self.first = lambda x: self.inner(x)

        def forward(self, x):
            return self.outer(torch.tanh(self.first(x)))

    model, x = Through(), torch.randn(4, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = InRunShapley(model, optimizer, 4, validation=lambda: model(x).sum())
    refused = pytest.raises(ValueError, match=r"calls the layer 'inner' of the model itself.*batch_axis")
    with refused, engine.step(torch.arange(4)):
        model(x).sum().backward()
        optimizer.step()


def test_weights_that_are_nan_or_have_no_numbers_are_named():
    x, y = torch.randn(12, 5).double(), torch.randint(3, (12,))
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="all that the model returns is NaN"):
        score_error(model, x, y, 4)
    with pytest.raises(FloatingPointError, match="the score of sample 0 is not finite"):
        score_error(model, x, y, 4, batch_axis=0)
    with torch.device("meta"):
        model[1] = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"on the device 'meta' \('1.weight', '1.bias'\); load them"):
        InRunShapley(model, optimizer, 12)


def test_activations_that_hooks_collect_are_those_of_training():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    activations = []
    model[1].register_forward_hook(lambda _layer, _args, output: activations.append(output))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(12, 5, dtype=torch.float64), torch.randint(3, (12,))
    loss = nn.functional.cross_entropy
    engine = InRunShapley(model, optimizer, 12, "first", validation=lambda: loss(model(x), y))
    with engine.step(range(4)):
        activations.clear()
        total = loss(model(x[:4]), y[:4])
        assert len(activations) == 1
        (total + 0.1 * activations[0].square().mean()).backward()
        optimizer.step()


def test_statistics_of_a_layer_without_a_rule_are_taken_once():
    class Own(nn.InstanceNorm1d):
        pass

    torch.manual_seed(0)
    model = nn.Sequential(Own(3, affine=True, track_running_stats=True), nn.Flatten(), nn.Linear(12, 3))
    x, y = torch.randn(12, 3, 4, dtype=torch.float64), torch.randint(3, (12,))
    assert score_error(model, x, y, 4) < 1e-10


def test_nothing_of_the_model_changes_while_it_is_observed():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.calls, self.seen = nn.Linear(5, 3), 0, []
            self.register_buffer("total", torch.zeros(()))
            self.plain = torch.zeros(1)

        def forward(self, x):
            self.calls += 1
            self.seen.append(len(x))
            self.total += 1
            self.plain += 1
            return self.inner(nn.functional.dropout(x, 0.5))

    torch.manual_seed(0)
    model, x = Counting(), torch.randn(4, 5)
    state = torch.get_rng_state()
    observation = Call.of(model, (x,), {}, 4, {model.inner: "inner"}, dict(model.named_parameters())).observe()
    assert observation.layers == {"inner": [0]}
    assert (model.calls, model.seen, float(model.total), float(model.plain)) == (0, [], 0.0, 0.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_a_twin_computes_with_the_same_weights_and_keeps_what_it_counts_to_itself():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    nn.init.ones_(model[1].bias)
    memo = {}
    twin = twin_of(model, memo)
    x = torch.randn(5, 3)
    assert twin[0].weight is model[0].weight
    assert memo[id(model[0])] is twin[0]
    before = model[1].running_mean.clone()
    output = twin(x)
    assert torch.equal(model[1].running_mean, before)
    assert not torch.equal(twin[1].running_mean, before)
    assert torch.equal(output, model(x))


def test_samples_that_are_all_alike_cannot_be_told_apart():
    model = nn.Embedding(5, 3)
    alike = torch.ones(4, 5, dtype=torch.long)
    observation = Call.of(model, (alike,), {}, 4, {model: ""}, dict(model.named_parameters())).observe()
    assert isinstance(observation.of_layer("", 0), Unclear)
    assert observation.unclear == math.inf
