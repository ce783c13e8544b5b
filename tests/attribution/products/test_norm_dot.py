import pytest
import torch
from torch.nn import functional

from inrun_bench.attribution.products.norm_dot import layer_norm_dot, rms_norm_dot
from tests.attribution.products.cases import TOLERANCE, draw, error


def exact(norm, a, b, shape, q_weight, q_bias, eps):
    """Scores from autograd's gradients of scale and shift, sample by sample, in float64."""
    scores = []
    for a_i, b_i in zip(a.double(), b.double(), strict=True):
        weight, bias = (torch.ones(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
        if norm is layer_norm_dot:
            functional.layer_norm(a_i, shape, weight, bias, eps).backward(b_i)
        else:
            functional.rms_norm(a_i, shape, weight, eps).backward(b_i)
        pairs = ((weight, q_weight), (bias, q_bias))
        scores.append(sum((p.grad * q.double()).sum() for p, q in pairs if q is not None))
    return torch.stack(scores)


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1, 2), (37, 64), (2, 3, 65), (2, 2, 2, 300)])
class TestAgreesWithAutograd:
    @pytest.mark.parametrize("trained", ["both", "weight", "bias"])
    def test_layer_norm(self, backend, dtype, shape, trained):
        a, b, width = draw(*shape, dtype=dtype) + 3, draw(*shape, dtype=dtype, seed=1), shape[-1:]
        q_weight = None if trained == "bias" else draw(*width, seed=2)
        q_bias = None if trained == "weight" else draw(*width, seed=3)
        scores = layer_norm_dot(a, b, 1, q_weight, q_bias, 1e-5, backend=backend)
        assert error(scores, exact(layer_norm_dot, a, b, width, q_weight, q_bias, 1e-5)) <= TOLERANCE[dtype]

    def test_rms_norm(self, backend, dtype, shape):
        a, b, width = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=1), shape[-1:]
        q = draw(*width, seed=2)
        scores = rms_norm_dot(a, b, 1, q, 1e-6, backend=backend)
        assert error(scores, exact(rms_norm_dot, a, b, width, q, None, 1e-6)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_several_dimensions_are_normalised_together(backend):
    a, b, q_weight, q_bias = draw(3, 2, 4, 5), draw(3, 2, 4, 5, seed=1), draw(4, 5), draw(4, 5, seed=2)
    truth = exact(layer_norm_dot, a, b, (4, 5), q_weight, q_bias, 1e-5)
    assert error(layer_norm_dot(a, b, 2, q_weight, q_bias, backend=backend), truth) <= 1e-5


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rms_norm_defaults_to_the_layers_eps(backend, dtype):
    a, b, q = draw(3, 8, dtype=dtype) * 1e-4, draw(3, 8), draw(8)
    truth = (functional.rms_norm(a, (8,)).double() * q.double() * b.double()).sum(1)
    assert error(rms_norm_dot(a, b, 1, q, backend=backend), truth) <= TOLERANCE[dtype]


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_a_large_mean_is_taken_off_before_squares_are_summed(backend):
    a, b, q_weight, q_bias = draw(3, 4, 50) + 1000, draw(3, 4, 50), draw(50), draw(50)
    truth = exact(layer_norm_dot, a, b, (50,), q_weight, q_bias, 1e-5)
    # the mean's own rounding, 3e-5, remains; the difference of the two sums would be off by 6e-2
    assert error(layer_norm_dot(a, b, 1, q_weight, q_bias, backend=backend), truth) <= 1e-4


def test_any_strides():
    a, q = draw(20, 3, 4).permute(1, 2, 0), draw(20, 2)[:, 0]
    b = draw(3, 1, 20).expand(3, 4, 20)  # the gradient of a mean over positions
    for x, y in ((a, b), (a[:, ::2], b[:, ::2])):
        truth = exact(layer_norm_dot, x, y, (20,), q, q, 1e-5)
        assert error(layer_norm_dot(x, y, 1, q, q, backend="triton"), truth) <= 1e-5


def test_programs_visit_several_rows():
    a, b, q = draw(20, 850, 2), draw(20, 850, 2, seed=1), draw(2)  # more tiles of 32 rows than programs
    truth = (functional.rms_norm(a.double(), (2,), q.double(), 1e-6) * b.double()).sum((1, 2))
    assert error(rms_norm_dot(a, b, 1, q, 1e-6, backend="triton"), truth) <= 1e-5


def test_the_same_bits_from_run_to_run():
    a, b, q = draw(3, 20, 37), draw(3, 20, 37), draw(37)
    first, again = (layer_norm_dot(a, b, 1, q, q, backend="triton") for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_dtypes_may_differ(backend):
    a, b, q = draw(3, 4, 8).half(), draw(3, 4, 8), draw(8)
    truth = exact(layer_norm_dot, a, b, (8,), q, q, 1e-5)
    assert error(layer_norm_dot(a, b, 1, q, q, backend=backend), truth) <= 1e-5


def test_rows_too_wide_for_registers_are_the_twins():
    a, b, q = draw(2, 8193), draw(2, 8193), draw(8193)
    truth = exact(rms_norm_dot, a, b, (8193,), q, None, 1e-6)
    assert error(rms_norm_dot(a, b, 1, q, 1e-6, backend="triton"), truth) <= 1e-5


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_nothing_scores_nothing(shape):
    q = torch.ones(shape[-1])
    assert torch.equal(layer_norm_dot(torch.ones(shape), torch.ones(shape), 1, q, q), torch.zeros(shape[0]))


def test_double_precision_is_kept_by_the_twin():
    a, b, q = draw(2, 3, 4).double(), draw(2, 3, 4).double(), draw(4).double()
    truth = exact(layer_norm_dot, a, b, (4,), q, q, 1e-5)
    torch.testing.assert_close(layer_norm_dot(a, b, 1, q, q), truth, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": torch.ones(2, 4, 4)}, r"b must be \[2, 3, 4\], as a is, got \[2, 4, 4\]"),
        ({"normalized_shape_dims": 3}, r"normalized_shape_dims must be 1 to 2, .*got 3"),
        ({"normalized_shape_dims": 0}, r"normalized_shape_dims must be 1 to 2, .*got 0"),
        ({"q_weight": torch.ones(5)}, r"q_weight must be \[4\].*got \[5\]"),
        ({"q_bias": torch.ones(3, 4)}, r"q_bias must be \[4\].*got \[3, 4\]"),
        ({"q_weight": None, "q_bias": None}, "q_weight or q_bias must be a tensor, got None for both"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    arguments = {"a": torch.ones(2, 3, 4), "b": torch.ones(2, 3, 4), "normalized_shape_dims": 1}
    arguments |= {"q_weight": torch.ones(4), "q_bias": torch.ones(4)} | change
    with pytest.raises(ValueError, match=message):
        layer_norm_dot(**arguments)
