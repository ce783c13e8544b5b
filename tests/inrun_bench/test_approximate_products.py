"""Approximate probe products: how far off they may be, and when they are exact."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inrun_bench.attribution.families.linear import linear_weight
from inrun_bench.experiments.gpu.approximate_products import (
    float8_project_dot,
    low_rank,
    low_rank_project_dot,
    score_error,
)


def case(batch, positions, d_in, d_out, rank=None, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    probe = normal(d_out, d_in) if rank is None else normal(d_out, rank) @ normal(rank, d_in)
    a, b = normal(batch, positions, d_in), normal(batch, positions, d_out)
    return a, b, probe, linear_weight(None, a.double(), b.double(), probe.double())


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 20), st.integers(1, 20), st.integers(0, 99))
def test_float8_scores_are_as_near_as_its_three_bits_allow(batch, positions, d_in, d_out, seed):
    a, b, probe, exact = case(batch, positions, d_in, d_out, seed=seed)
    terms = torch.einsum("bto,oi,bti->b", b.abs(), probe.abs(), a.abs())  # what a score is the signed sum of
    assert ((float8_project_dot(a, b, probe) - exact).abs() <= 0.14 * terms + 1e-6).all()  # 1 - (1 + 2^-4)^2


def test_the_error_of_float8_shrinks_against_its_terms():
    errors = []
    for width in (16, 256):
        a, b, probe, exact = case(16, 4, width, width)
        errors.append(score_error(float8_project_dot(a, b, probe), exact))
    assert errors[0] < 0.1
    assert errors[1] < 0.06


def test_float8_does_not_depend_on_the_scale_of_its_inputs():
    a, b, probe, _ = case(4, 3, 16, 16)
    plain = float8_project_dot(a, b, probe)
    scaled = float8_project_dot(a, b * 2.0**-30, probe * 2.0**20)
    torch.testing.assert_close(scaled * 2.0**10, plain, rtol=1e-6, atol=0)
    assert not float8_project_dot(a, torch.zeros_like(b), probe).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_probe_of_low_rank_is_exact(dtype):
    a, b, probe, exact = case(6, 3, 20, 12, rank=4, dtype=dtype)
    left, right = low_rank(probe, 4)
    assert left.shape == (12, 4)
    assert right.shape == (4, 20)
    assert score_error(low_rank_project_dot(a, b, left, right), exact) < 1e-5
    whole = low_rank(case(6, 3, 20, 12, dtype=dtype)[2], 12)
    torch.testing.assert_close(whole[0] @ whole[1], case(6, 3, 20, 12, dtype=dtype)[2], rtol=1e-4, atol=1e-5)


def test_more_rank_is_nearer_and_near_the_best_there_is():
    decay = torch.diag(0.5 ** torch.arange(16.0))
    a, b, probe, _ = case(64, 2, 16, 16)
    u, _, v = torch.linalg.svd(probe)
    probe = u @ decay @ v
    exact = linear_weight(None, a.double(), b.double(), probe.double())
    errors = []
    for rank in (1, 2, 4, 8):
        left, right = low_rank(probe, rank)
        best = torch.linalg.matrix_norm(decay[rank:, rank:])
        assert torch.linalg.matrix_norm(probe - left @ right) <= 1.01 * best
        errors.append(score_error(low_rank_project_dot(a, b, left, right), exact))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01


def test_the_random_stream_is_left_alone():
    before = torch.random.get_rng_state()
    one, other = low_rank(torch.eye(4), 2), low_rank(torch.eye(4), 2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one[0], other[0])


@pytest.mark.parametrize("rank", [0, 5])
def test_a_rank_that_is_none(rank):
    with pytest.raises(ValueError, match=rf"rank must lie in 1 \.\. 4 for a probe of shape \[4, 6\], got {rank}"):
        low_rank(torch.zeros(4, 6), rank)
