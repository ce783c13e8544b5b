"""Layers without a name of their own: found by what they do, scored by what their backward pass makes of samples."""

import pytest
import torch
from torch import nn

from inrun_bench.attribution.families import find_rules


class RootMeanSquare(nn.Module):
    """As language models have it; Gemma's multiplies with 1 + weight."""

    def __init__(self, width, plus=0.0):
        super().__init__()
        self.weight, self.eps, self.plus = nn.Parameter(torch.rand(width)), 1e-6, plus

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (self.plus + self.weight)


class Softened(nn.Module):
    """Not affine in its weights."""

    def __init__(self, width):
        super().__init__()
        self.slope, self.shift = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))

    def forward(self, x):
        return torch.tanh(x * self.slope) + self.shift**2


FOUND = {
    "norm": lambda: RootMeanSquare(5),
    "norm of 1 + w": lambda: RootMeanSquare(5, plus=1.0),
    "not affine": lambda: Softened(5),
}


def scores_and_expected(layer, x, **q):
    (rule,) = find_rules(layer)
    output = layer(x)
    b = torch.randn_like(output)
    expected = []
    for row, own in zip(output, b, strict=True):
        weights = [getattr(layer, name) for name in q]
        gradients = torch.autograd.grad(row, weights, own, retain_graph=True)
        expected.append(sum((g * q[name]).sum() for g, name in zip(gradients, q, strict=True)))
    with torch.no_grad():
        return rule.score(layer, x, b, [q.get(name) for name in rule.parameters], "torch"), torch.stack(expected)


@pytest.mark.parametrize("shape", [(3,), (4, 2), (1, 5), (2, 5, 5)])
@pytest.mark.parametrize("name", FOUND)
def test_scores_are_those_of_each_samples_backward_pass(name, shape):
    torch.manual_seed(0)
    layer = FOUND[name]().double()
    q = {name: torch.randn_like(p) for name, p in layer.named_parameters()}
    got, expected = scores_and_expected(layer, torch.randn(*shape, 5, dtype=torch.float64), **q)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


def test_one_of_two_parameters_may_be_frozen():
    torch.manual_seed(0)
    layer = Softened(5).double()
    got, expected = scores_and_expected(layer, torch.randn(3, 5, dtype=torch.float64), slope=torch.rand(5).double())
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


def test_settings_are_those_of_the_call():
    torch.manual_seed(0)
    layer = RootMeanSquare(5).double()
    (rule,) = find_rules(layer)
    layer.eps = 3.0
    x, b, q = (torch.randn(3, 5, dtype=torch.float64) for _ in range(3))
    output = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 3.0) * q[0]
    torch.testing.assert_close(rule.score(layer, x, b, [q[0]], "torch"), (output * b).sum(1))


def test_a_layer_is_left_as_it_is_and_its_hooks_are_not_called():
    layer = RootMeanSquare(5)
    called = []
    layer.register_forward_hook(lambda *_: called.append(1))
    (rule,) = find_rules(layer)
    rule.score(layer, torch.rand(2, 5), torch.rand(2, 5), [torch.rand(5)], "torch")
    assert not called
    assert layer.weight.grad is None


class Mixing(RootMeanSquare):
    def forward(self, x):
        return super().forward(x) + x.mean(-2, keepdim=True)


class Channels(RootMeanSquare):
    def forward(self, x):
        return x * self.weight[:, None]


class Drawing(RootMeanSquare):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


class Single(RootMeanSquare):
    """Computes in single precision, whatever it is given."""

    def forward(self, x):
        return (x.float() * self.weight.float()).type_as(x)


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(5, 5))

    def forward(self, x):
        return x @ self.weight


class Listed(RootMeanSquare):
    def __init__(self, width):
        super().__init__(width)
        self.scales = [1.0]


def with_child():
    layer = RootMeanSquare(5)
    layer.child = nn.Identity()
    return layer


def with_buffer():
    layer = RootMeanSquare(5)
    layer.register_buffer("statistics", torch.zeros(5))
    return layer


OTHERS = {
    "mixes positions": lambda: Mixing(5),
    "along another axis": lambda: Channels(5),
    "draws": lambda: Drawing(5),
    "in single precision": lambda: Single(5),
    "a matrix": Table,
    "holds a list": lambda: Listed(5),
    "a child": with_child,
    "a buffer": with_buffer,
    "torch's own": lambda: nn.LSTMCell(5, 5),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_forms_have_no_rule(name):
    assert find_rules(OTHERS[name]().double()) == ()
