"""The cost model: what it must say whatever its constants are, and what it says at sizes that were timed."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inrun_bench.attribution.families.costs import (
    CONVOLUTION_PRICE,
    LINEAR_PRICE,
    CallSizes,
    fastest,
    predicted_seconds,
)

sizes = st.integers(1, 4096)
calls = st.builds(
    CallSizes,
    samples=st.integers(1, 256),
    positions=sizes,
    d_in=sizes,
    d_out=sizes,
    price=st.sampled_from([LINEAR_PRICE, CONVOLUTION_PRICE]),
    probes=st.integers(1, 3),
    validation_positions=st.one_of(st.none(), sizes),
    device=st.sampled_from(["cpu", "cuda", "mps"]),
)


@given(calls)
def test_the_fastest_rule_is_the_one_predicted_to_be(call):
    seconds = predicted_seconds(call)
    assert seconds[fastest(call)] == min(seconds.values())
    assert ("gram" in seconds) == (call.validation_positions is not None)


@given(calls)
def test_more_positions_never_favour_projecting(call):
    more = dataclasses.replace(call, positions=2 * call.positions, validation_positions=None)
    if fastest(dataclasses.replace(call, validation_positions=None)) == "weight-gradient":
        assert fastest(more) == "weight-gradient"


@given(calls)
def test_more_validation_positions_never_favour_factors_for_long_inputs(call):
    if call.validation_positions is None or call.samples * call.positions * (call.d_in + call.d_out) < (
        call.d_in * call.d_out
    ):
        return
    more = dataclasses.replace(call, validation_positions=2 * call.validation_positions)
    if fastest(call) != "gram":
        assert fastest(more) != "gram"


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (CallSizes(8, 256, 256, 1024, LINEAR_PRICE), "weight-gradient"),  # sequences
        (CallSizes(8, 64, 256, 1024, LINEAR_PRICE), "weight-gradient"),
        (CallSizes(64, 1, 1024, 1024, LINEAR_PRICE), "project"),  # one position a sample
        (CallSizes(64, 1, 1024, 1024, LINEAR_PRICE, validation_positions=300), "gram"),
        (CallSizes(8, 256, 256, 1024, LINEAR_PRICE, validation_positions=2048), "weight-gradient"),
        (CallSizes(32, 196, 576, 64, CONVOLUTION_PRICE), "project"),  # 64 channels of 14 x 14
        (CallSizes(32, 784, 576, 64, CONVOLUTION_PRICE), "weight-gradient"),  # of 28 x 28
        (CallSizes(32, 49, 1152, 128, CONVOLUTION_PRICE), "project"),
        (CallSizes(32, 784, 288, 32, CONVOLUTION_PRICE), "weight-gradient"),
    ],
)
def test_choices_at_sizes_that_were_timed(call, rule):
    assert fastest(call) == rule
