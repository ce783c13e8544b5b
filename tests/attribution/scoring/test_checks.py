"""Checks of sums: what spares passes over the weights decides nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inrun_bench.attribution.scoring.checks import expect_sums
from inrun_bench.attribution.scoring.scores import TermSums
from inrun_bench.attribution.transfer import Numbers


def refused(sums, magnitudes, probe, gradient, *, unless):
    """Return whether sums are refused; where there is an `unless`, norms of probe and gradient are formed always."""
    numbers, names = Numbers(), list(gradient)
    eps = torch.finfo(next(iter(gradient.values())).dtype).eps
    terms = TermSums([{name} for name in names], [eps] * len(names), sums[:, None], magnitudes[:, None])
    expect_sums(numbers, terms, [probe], gradient, 7, unless=unless)
    try:
        numbers.read()
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@given(
    seed=st.integers(0, 1000),
    cancelled=st.sampled_from([0.0, 0.9, 1.0]),
    off=st.sampled_from([0.0, 1e-9, 1e-7, 1e-5, 2e-5, 5e-5, 1e-4, 1e-3, 0.1, float("nan"), float("inf")]),
    of=st.sampled_from(["dot", "norms"]),
    size=st.sampled_from([0.0, 1e-12, 1.0, 1e12]),
)
def test_norms_are_formed_where_they_decide_and_nowhere_else(kind, seed, cancelled, off, of, size):
    draw = torch.Generator().manual_seed(seed)
    probe = {name: torch.randn(9, dtype=kind, generator=draw) for name in "ab"}
    gradient = {name: torch.randn(9, dtype=kind, generator=draw) * size for name in "ab"}
    for name, q in probe.items():  # as where a sum cancels: a dot product of nothing between vectors that are something
        gradient[name] -= cancelled * (gradient[name] @ q) / (q @ q) * q
    dots = torch.stack([(q * gradient[name]).sum() for name, q in probe.items()]).double()
    norms = torch.stack([q.norm() * gradient[name].norm() for name, q in probe.items()]).double()
    sums = dots + off * (dots.abs() if of == "dot" else norms) * torch.tensor([1.0, 0.0], dtype=torch.float64)
    found = [refused(sums, dots.abs(), probe, gradient, unless=each) for each in (None, torch.tensor(False))]
    assert found[0] == found[1]


@pytest.mark.parametrize("share", [1e-9, 1e-2])
def test_a_sum_that_is_close_needs_no_norms(share, monkeypatch):
    asked = []
    monkeypatch.setattr("inrun_bench.attribution.scoring.checks.norms", lambda xs: asked.append(xs) or torch.ones(1))
    vector = torch.tensor(np.arange(1.0, 4.0))
    expect_sums(
        Numbers(),
        TermSums([{"w"}], [2e-16], torch.tensor([[14.0 * (1 + share)]]), torch.tensor([[14.0]])),
        [{"w": vector}],
        {"w": vector},
        0,
    )
    assert bool(asked) == (share > 1e-3)
