import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from inrun_bench.attribution.rules import find_rule, ghost_rule, supported_layers
from inrun_bench.attribution.rules.registry import _RULES
from tests.attribution.brute_force import relative_error

sizes = st.integers(1, 6)


@pytest.mark.parametrize("parameter", ["weight", "bias"])
@given(batch=sizes, inner=st.lists(st.integers(1, 4), max_size=2), d_in=sizes, d_out=sizes, seed=st.integers(0, 2**16))
def test_linear_rules_equal_dots_of_per_sample_gradients(parameter, batch, inner, d_in, d_out, seed):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    layer = nn.Linear(d_in, d_out).double()
    a, b = normal(batch, *inner, d_in), normal(batch, *inner, d_out)
    q = normal(*getattr(layer, parameter).shape)
    expected = []
    for i in range(batch):  # b is the gradient of <layer(a), b>
        (gradient,) = torch.autograd.grad((layer(a[i]) * b[i]).sum(), [getattr(layer, parameter)])
        expected.append(float((gradient * q).sum()))
    scores = find_rule(layer, parameter)(layer, a, b, q)
    assert scores.shape == (batch,)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-10, atol=1e-10)


@given(seed=st.integers(0, 2**16))
def test_linear_rules_in_single_precision(seed):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(48, 32)
    a, b, q = (torch.randn(*shape, generator=generator) for shape in ((20, 48), (20, 32), (32, 48)))
    got = find_rule(layer, "weight")(layer, a, b, q)
    expected = find_rule(layer, "weight")(layer, a.double(), b.double(), q.double())
    assert relative_error(got.double().numpy(), expected.numpy()) < 1e-5


def test_a_rule_serves_its_class_and_no_subclass():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    assert find_rule(nn.Linear(2, 2), "weight") is not None
    assert find_rule(Doubled(2, 2), "weight") is None
    assert "Linear" in supported_layers()


def test_users_register_rules_of_their_own():
    class Scale(nn.Module):
        pass

    @ghost_rule(Scale, "factor")
    def rule(_layer, a, b, q):
        return (a * b * q).sum(1)

    try:
        assert find_rule(Scale(), "factor") is rule
        assert "Scale" in supported_layers()
    finally:
        del _RULES[Scale, "factor"]
