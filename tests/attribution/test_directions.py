"""Probes, as tensors and in factors."""

import pytest
import torch

from inrun_bench.attribution.directions import Factors


def test_factors_are_multiplied_out_in_their_own_precision_whatever_autocast_is_on():
    torch.manual_seed(0)
    inputs, gradients = torch.randn(40, 6), torch.randn(40, 5)
    factors = Factors(inputs, gradients, scale=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        probe = factors.dense()
    torch.testing.assert_close(probe, 0.5 * gradients.T @ inputs)
    assert float(factors.magnitude()) >= float(probe.norm())


def test_a_bound_of_a_probe_that_cancels_is_that_of_what_cancels():
    inputs = torch.eye(3)[:1].repeat(2, 1)
    factors = Factors(inputs, torch.tensor([[1.0, 2.0], [-1.0, -2.0]]), scale=-3.0)
    assert not factors.dense().any()
    assert float(factors.magnitude()) == pytest.approx(3 * 2**0.5 * 10**0.5)
