import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inrun_bench.attribution.products.project_dot import project_dot
from tests.attribution.products.cases import TOLERANCE, draw, error


def exact(a, b, probe):
    """Scores from the samples' weight gradients, formed, in float64: [V, B]."""
    gradients = torch.einsum("bto,bti->boi", b.double(), a.double())
    return torch.einsum("boi,voi->vb", gradients, probe.double())


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("samples", "positions", "d_in", "d_out"),
    [(3, 5, 7, 9), (1, 1, 1, 1), (37, 1, 40, 33), (2, 35, 17, 70), (5, 3, 65, 2)],
)
def test_agrees_with_the_weight_gradients(backend, dtype, samples, positions, d_in, d_out):
    a, b = draw(samples, positions, d_in, dtype=dtype), draw(samples, positions, d_out, dtype=dtype, seed=1)
    probe = draw(d_out, d_in, seed=2)
    truth = exact(a, b, probe[None])[0]
    assert error(project_dot(a, b, probe, backend=backend), truth) <= TOLERANCE[dtype]


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40), st.integers(1, 3))
def test_any_shape(samples, positions, d_in, d_out, probes):
    factors = draw(samples, positions, d_in), draw(samples, positions, d_out, seed=1), draw(probes, d_out, d_in, seed=2)
    scale = exact(*(x.abs() for x in factors))
    scores = project_dot(*factors, backend="triton")
    assert ((scores - exact(*factors)).abs() <= 1e-6 * scale).all()


def test_more_tiles_than_a_group():
    a, b, probes = draw(300, 33), draw(300, 40), draw(2, 40, 33)  # 10 row tiles, 4 column tiles
    assert error(project_dot(a, b, probes, backend="triton"), exact(a[:, None], b[:, None], probes)) <= 1e-5


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_several_probes_are_scored_as_one_by_one(backend):
    a, b, probes = draw(3, 4, 37), draw(3, 4, 6), draw(3, 6, 37)
    together = project_dot(a, b, probes, backend=backend)
    assert together.shape == (3, 3)
    for row, probe in zip(together, probes, strict=True):
        assert torch.equal(row, project_dot(a, b, probe, backend=backend))


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_one_position_needs_no_axis(backend):
    a, b, probe = draw(6, 5), draw(6, 3), draw(3, 5)
    assert torch.equal(
        project_dot(a, b, probe, backend=backend), project_dot(a[:, None], b[:, None], probe, backend=backend)
    )


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_padding_is_not_read(backend):
    a, b, probe = draw(4, 40, 6), draw(4, 40, 5), draw(5, 6)
    lengths = torch.tensor([40, 0, 3, 33])
    padding = torch.arange(40) >= lengths[:, None]
    truth = exact(a.masked_fill(padding[..., None], 0), b, probe[None])[0]
    for x in (a, b):
        x[padding] = torch.nan
    scores = project_dot(a, b, probe, lengths=lengths, backend=backend)
    assert error(scores, truth) <= 1e-5
    assert scores[1] == 0


def test_any_strides():
    a, probe = draw(7, 3, 4).permute(1, 2, 0), draw(7, 9).t()  # [3, 4, 7], [9, 7]
    b = draw(3, 1, 9, seed=3).expand(3, 4, 9)  # the gradient of a mean over positions
    truth = exact(a, b, probe[None])[0]
    assert error(project_dot(a, b, probe, backend="triton"), truth) <= 1e-5
    assert (
        error(project_dot(a[:, ::2], b[:, ::2], probe, backend="triton"), exact(a[:, ::2], b[:, ::2], probe[None])[0])
        < 1e-5
    )


def test_the_depth_is_cut_where_tiles_are_few():
    a, b, probe = draw(3, 9), draw(3, 1100), draw(1100, 9)
    assert error(project_dot(a, b, probe, backend="triton"), exact(a[:, None], b[:, None], probe[None])[0]) <= 1e-5


def test_the_same_bits_from_run_to_run():
    a, b, probe = draw(3, 20, 37), draw(3, 20, 35), draw(35, 37)
    assert torch.equal(project_dot(a, b, probe, backend="triton"), project_dot(a, b, probe, backend="triton"))


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_a_small_probe_survives_float16(backend):
    a, b = draw(4, 3, 6, dtype=torch.float16), draw(4, 3, 5, dtype=torch.float16)
    probe = draw(5, 6) * 1e-9
    assert error(project_dot(a, b, probe, backend=backend), exact(a, b, probe[None])[0]) <= 1e-2


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_dtypes_may_differ(backend):
    a, b, probe = draw(4, 3, 6, dtype=torch.bfloat16), draw(4, 3, 5), draw(5, 6)
    assert error(project_dot(a, b, probe, backend=backend), exact(a, b, probe[None])[0]) <= 1e-2


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, 3)])
def test_nothing_scores_nothing(shape):
    for width in (0, 4):
        scores = project_dot(torch.zeros(*shape, 5), torch.ones(*shape, width), torch.ones(width, 5), backend="triton")
        assert torch.equal(scores, torch.zeros(shape[0]))


def test_double_precision_is_kept_by_the_twin():
    a, b, probe = draw(2, 3, 4).double(), draw(2, 3, 5).double(), draw(5, 4).double()
    torch.testing.assert_close(project_dot(a, b, probe), exact(a, b, probe[None])[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": torch.ones(3)}, r"a must be \[B, T, d_in\] or \[B, d_in\], got \[3\]"),
        ({"b": torch.ones(2, 4, 5)}, r"b must be \[2, 3, d_out\].*got \[2, 4, 5\]"),
        ({"probe": torch.ones(4, 5)}, r"probe must be \[5, 4\] or \['V', 5, 4\], got \[4, 5\]"),
        ({"lengths": torch.ones(3, dtype=torch.int64)}, r"lengths must be integers \[2\], got torch.int64 \[3\]"),
        ({"input_precision": "bf16"}, "input_precision must be one of ieee, tf32, tf32x3, got 'bf16'"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    arguments = {"a": torch.ones(2, 3, 4), "b": torch.ones(2, 3, 5), "probe": torch.ones(5, 4)} | change
    with pytest.raises(ValueError, match=message):
        project_dot(**arguments)
