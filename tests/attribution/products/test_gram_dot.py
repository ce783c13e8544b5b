import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inrun_bench.attribution.products.gram_dot import gram_dot
from inrun_bench.attribution.products.project_dot import project_dot
from tests.attribution.products.cases import TOLERANCE, draw, error


def problem(samples, positions, columns, d_in, d_out, dtype=torch.float32):
    shapes = ((samples, positions, d_in), (samples, positions, d_out), (columns, d_in), (columns, d_out))
    return [draw(*shape, dtype=dtype, seed=seed) for seed, shape in enumerate(shapes)]


def exact(a, b, a_val, b_val):
    """Scores from the weight gradients, formed, in float64."""
    gradients = torch.einsum("bto,bti->boi", b.double(), a.double())
    return torch.einsum("boi,no,ni->b", gradients, b_val.double(), a_val.double())


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("samples", "positions", "columns", "d_in", "d_out"),
    [(3, 5, 4, 7, 9), (1, 1, 1, 1, 1), (37, 1, 33, 40, 3), (2, 35, 70, 17, 34), (5, 3, 1, 65, 2)],
)
def test_agrees_with_the_weight_gradients(backend, dtype, samples, positions, columns, d_in, d_out):
    factors = problem(samples, positions, columns, d_in, d_out, dtype)
    assert error(gram_dot(*factors, backend=backend), exact(*factors)) <= TOLERANCE[dtype]


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_any_shape(samples, positions, columns, d_in, d_out):
    factors = problem(samples, positions, columns, d_in, d_out)
    scale = exact(*(x.abs() for x in factors))
    assert ((gram_dot(*factors, backend="triton") - exact(*factors)).abs() <= 1e-6 * scale).all()


def test_agrees_with_the_projection_on_the_validation_gradient():
    a, b, a_val, b_val = problem(4, 6, 5, 8, 7)
    projected = project_dot(a, b, b_val.t() @ a_val, backend="triton")
    torch.testing.assert_close(gram_dot(a, b, a_val, b_val, backend="triton"), projected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_validation_positions_add_up(backend):
    a, b, a_val, b_val = problem(4, 3, 40, 6, 5)
    parts = [gram_dot(a, b, a_val[part], b_val[part], backend=backend) for part in (slice(0, 7), slice(7, None))]
    torch.testing.assert_close(gram_dot(a, b, a_val, b_val, backend=backend), sum(parts), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_one_position_needs_no_axis(backend):
    a, b, a_val, b_val = problem(6, 1, 4, 5, 3)
    assert torch.equal(
        gram_dot(a[:, 0], b[:, 0], a_val, b_val, backend=backend), gram_dot(a, b, a_val, b_val, backend=backend)
    )


def test_any_strides():
    a, a_val = draw(7, 3, 4).permute(1, 2, 0), draw(7, 5).t()  # [3, 4, 7], [5, 7]
    b, b_val = draw(3, 1, 9).expand(3, 4, 9), draw(1, 9).expand(5, 9)  # gradients of means over positions
    assert error(gram_dot(a, b, a_val, b_val, backend="triton"), exact(a, b, a_val, b_val)) <= 1e-5
    a, b = a[:, ::2], b[:, ::2]
    assert error(gram_dot(a, b, a_val, b_val, backend="triton"), exact(a, b, a_val, b_val)) <= 1e-5


def test_the_same_bits_from_run_to_run():
    factors = problem(3, 20, 37, 35, 37)
    assert torch.equal(gram_dot(*factors, backend="triton"), gram_dot(*factors, backend="triton"))


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_small_gradients_survive_float16(backend):
    a, b, a_val, b_val = problem(4, 3, 5, 6, 7)
    factors = [x.half() for x in (a, b * 1e-4, a_val, b_val * 1e-4)]
    assert error(gram_dot(*factors, backend=backend), exact(*factors)) <= 1e-2


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_dtypes_may_differ(backend):
    a, b, a_val, b_val = problem(4, 3, 5, 6, 7)
    factors = (a.bfloat16(), b, a_val, b_val.half())
    assert error(gram_dot(*factors, backend=backend), exact(*factors)) <= 1e-5


@pytest.mark.parametrize("shape", [(0, 3, 2, 4, 5), (2, 0, 2, 4, 5), (2, 3, 0, 4, 5), (2, 3, 2, 0, 5), (2, 3, 2, 4, 0)])
def test_nothing_scores_nothing(shape):
    assert torch.equal(gram_dot(*problem(*shape), backend="triton"), torch.zeros(shape[0]))


def test_double_precision_is_kept_by_the_twin():
    factors = problem(2, 3, 4, 5, 6, torch.float64)
    torch.testing.assert_close(gram_dot(*factors), exact(*factors), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": torch.ones(3)}, r"a must be \[B, T, d_in\] or \[B, d_in\], got \[3\]"),
        ({"b": torch.ones(2, 4, 5)}, r"b must be \[2, 3, d_out\].*got \[2, 4, 5\]"),
        ({"a_val": torch.ones(6, 5)}, r"a_val must be \['N', 4\], as wide as a, got \[6, 5\]"),
        ({"b_val": torch.ones(7, 5)}, r"b_val must be \[6, 5\], got \[7, 5\]"),
        ({"input_precision": "bf16"}, "input_precision must be one of ieee, tf32, tf32x3, got 'bf16'"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    arguments = dict(zip(("a", "b", "a_val", "b_val"), problem(2, 3, 6, 4, 5), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        gram_dot(**arguments)
