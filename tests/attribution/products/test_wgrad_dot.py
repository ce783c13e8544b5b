"""The weight gradient with scores: kernel and twin against float64, and against each other."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inrun_bench.attribution.products.wgrad_dot import wgrad_dot

pytest.importorskip("triton")
from inrun_bench.attribution.products.backend import interpreted, interpreter_obstacle
from inrun_bench.attribution.products.triton import wgrad, wgrad_work

OBSTACLE = interpreter_obstacle() if interpreted() else "no interpreter"
by_kernel = pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))
BACKENDS = ["torch", pytest.param("triton", marks=by_kernel)]
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """What a kernel leaves unset is NaN."""
    empty, empty_like = torch.empty, torch.empty_like
    monkeypatch.setattr(torch, "empty", lambda *size, **kind: empty(*size, **kind).fill_(torch.nan))
    monkeypatch.setattr(torch, "empty_like", lambda x, **kind: empty_like(x, **kind).fill_(torch.nan))


def problem(n_samples, n_positions, d_in, d_out, dtype=torch.float32, probes=(), seed=0):
    rng = torch.Generator().manual_seed(seed)
    shapes = [(n_samples, n_positions, d_in), (n_samples, n_positions, d_out), (*probes, d_out, d_in), (*probes, d_out)]
    a, b, q, c = (torch.randn(shape, generator=rng) for shape in shapes)
    return a.to(dtype), b.to(dtype), q, c


def exact(a, b, probe, bias_probe=None, kept=None):
    """Form all per-sample gradients in float64."""
    a, b, probe = a.double(), b.double(), probe.double()
    if kept is not None:
        a, b = (x.masked_fill(~kept[..., None], 0) for x in (a, b))
    gradients = torch.einsum("btm,btn->bmn", b, a)
    scores = torch.einsum("bmn,...mn->...b", gradients, probe)
    if bias_probe is None:
        return gradients.sum(0), scores
    return gradients.sum(0), b.sum((0, 1)), scores + torch.einsum("btm,...m->...b", b, bias_probe.double())


def error(found, expected):
    assert found.shape == expected.shape
    return float((found.double() - expected).norm() / expected.norm().clamp(min=1e-30))


def agree(found, expected, tolerance):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert error(one, other) <= tolerance


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_agrees_with_float64(backend, dtype):
    a, b, q, c = problem(3, 21, 35, 18, dtype)
    agree(wgrad_dot(a, b, q, bias_probe=c, backend=backend), exact(a, b, q, c), TOLERANCES[dtype])
    agree(wgrad_dot(a, b, q, backend=backend), exact(a, b, q), TOLERANCES[dtype])


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=8)
@given(shape=st.tuples(*[st.integers(1, 4), st.integers(1, 20), st.integers(1, 40), st.integers(1, 20)]))
def test_any_shape(backend, shape):
    a, b, q, c = problem(*shape)
    agree(wgrad_dot(a, b, q, bias_probe=c, backend=backend), exact(a, b, q, c), 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_probes_are_scored_as_each_alone(backend):
    a, b, q, c = problem(3, 9, 20, 17, probes=(3,))
    found = wgrad_dot(a, b, q, bias_probe=c, backend=backend)
    agree(found, exact(a, b, q, c), 1e-5)
    for probe, bias_probe, scores in zip(q, c, found[-1], strict=True):
        alone = wgrad_dot(a, b, probe, bias_probe=bias_probe, backend=backend)[-1]
        torch.testing.assert_close(alone, scores, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_counts_nothing_whatever_it_holds(backend):
    a, b, q, c = problem(4, 19, 20, 17)
    lengths = torch.tensor([19, 0, 7, 30])
    kept = torch.arange(19) < lengths[:, None]
    expected = exact(a, b, q, c, kept)
    a[~kept], b[~kept] = torch.nan, torch.inf
    agree(wgrad_dot(a, b, q, bias_probe=c, lengths=lengths, backend=backend), expected, 1e-5)
    agree(wgrad_dot(a, b, q, bias_probe=c, lengths=kept, backend=backend), expected, 1e-5)
    scattered = torch.rand(4, 19, generator=torch.Generator().manual_seed(1)) < 0.5
    a, b, q, c = problem(4, 19, 20, 17)
    found = wgrad_dot(a, b, q, bias_probe=c, lengths=scattered, backend=backend)
    agree(found, exact(a, b, q, c, scattered), 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_as_they_come_from_autograd(backend):
    a, b, q, c = problem(3, 9, 20, 17)
    cases = [
        (a, b[:, :1, :1].expand(3, 9, 17)),  # of a sum
        (a.transpose(1, 2).contiguous().transpose(1, 2), b.transpose(0, 1).contiguous().transpose(0, 1)),
        (a[:, ::2], b[:, ::2]),
        (a[..., ::2], b.flip(0)),
    ]
    for one, other in cases:
        probe = q[:, : one.shape[-1]]
        found = wgrad_dot(one, other, probe, bias_probe=c, backend=backend)
        agree(found, exact(one, other, probe, c), 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_takes_the_layout_of_the_probe(backend):
    a, b, q, c = problem(3, 9, 20, 17)
    transposed = q.t().contiguous().t()
    found = wgrad_dot(a, b, transposed, bias_probe=c, backend=backend)
    agree(found, exact(a, b, q, c), 1e-5)
    assert found[0].t().is_contiguous()


@pytest.mark.parametrize("backend", BACKENDS)
def test_positions_of_any_shape(backend):
    a, b, q, _ = problem(6, 4, 10, 7)
    flat = exact(a.reshape(2, 12, 10), b.reshape(2, 12, 7), q)
    agree(wgrad_dot(a.reshape(2, 3, 4, 10), b.reshape(2, 3, 4, 7), q, backend=backend), flat, 1e-5)
    agree(wgrad_dot(a[:, 0], b[:, 0], q, backend=backend), exact(a[:, :1], b[:, :1], q), 1e-5)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_nothing_in_nothing_out(backend, shape):
    a, b, q, c = problem(*shape)
    grad, _, scores = wgrad_dot(a, b, q, bias_probe=c, backend=backend)
    assert grad.shape == q.shape
    assert scores.shape == shape[:1]
    torch.testing.assert_close(grad, torch.zeros_like(q))


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits_at_each_run(backend):
    a, b, q, c = problem(5, 17, 40, 20)
    first, second = (wgrad_dot(a, b, q, bias_probe=c, backend=backend) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_promotes_what_autocast_left_apart_and_keeps_double():
    a, b, q, _ = problem(3, 5, 6, 4, torch.bfloat16)
    agree(wgrad_dot(a, b.float(), q), exact(a, b, q), 1e-5)
    grad, scores = wgrad_dot(a.double(), b.double(), q.double())
    assert grad.dtype == scores.dtype == torch.float64


@by_kernel
@pytest.mark.parametrize("variant", ["one", "two", "descriptors", "descriptors by column", "flatten"])
@pytest.mark.parametrize(("splits", "chunks"), [(2, 1), (5, 3)])
def test_variants_of_the_kernel(variant, splits, chunks):
    a, b, q, c = problem(4, 40, 40, 20, probes=(2,))
    config = replace(
        wgrad.INTERPRETED,
        one_accumulator=variant != "two",
        descriptors=variant.startswith("descriptors"),
        flatten=variant == "flatten",
    )
    work = wgrad_work.Work(config, splits, chunks, 16 if chunks > 1 else 48)
    probes = q.transpose(1, 2).contiguous().transpose(1, 2) if "column" in variant else q
    agree(wgrad_work.launch(a, b, probes, c, None, "ieee", work), exact(a, b, q, c), 1e-5)
    lengths = torch.tensor([40, 3, 0, 33])
    a[1, 3:], b[3, 33:] = torch.nan, torch.nan
    kept = torch.arange(40) < lengths[:, None]
    agree(wgrad_work.launch(a, b, probes, c, lengths, "ieee", work), exact(a, b, q, c, kept), 1e-5)


@by_kernel
def test_one_accumulator_loses_what_the_running_sum_rounds():
    """Its error is that of the running sum: harmless for like scores, one in the sum's last digit for small ones."""
    a, b, q, _ = problem(16, 16, 32, 16)
    scale = torch.ones(16)
    scale[8:] = 1e-4  # 8 small scores on top of 8 large ones
    b = b * scale[:, None, None]
    expected = exact(a, b, q)[1]
    running = expected.cumsum(0).abs().max()
    errors = {}
    for one in (False, True):
        work = wgrad_work.Work(replace(wgrad.INTERPRETED, one_accumulator=one), 1, 1, 16)
        grad, _, scores = wgrad_work.launch(a, b, q[None], None, None, "ieee", work)
        assert error(grad, exact(a, b, q)[0]) <= 1e-6
        errors[one] = (scores[0] - expected).abs()
    assert (errors[False] <= 2e-5 * expected.abs() + 1e-9).all()
    assert (errors[True] <= 2e-6 * running).all()  # a few roundings of the running sum
    like, small = ((errors[True] / expected.abs())[half] for half in (slice(8), slice(8, None)))
    assert like.median() <= 1e-6
    assert 1e-5 <= small.median() <= 1e-2  # of scores 1e-4 the size of the others


def test_work_covers_all_samples_and_keeps_processors_busy():
    for single in (False, True):
        for descriptors in (False, True):
            for shape in [(1, 1024, 768, 768), (16, 1024, 768, 3072), (8, 100, 50, 10), (512, 128, 64, 64)]:
                work = wgrad_work.choose_work(*shape, single, descriptors, 132)
                assert work.chunks * work.chunk_positions >= shape[1]
                assert work.chunk_positions % work.config.block_t == 0
                per_split = -(-shape[0] * work.chunks // work.splits)
                assert (work.splits - 1) * per_split < shape[0] * work.chunks <= work.splits * per_split
                assert not (single and work.config.one_accumulator)
    assert wgrad_work.choose_work(16, 1024, 768, 768, False, True, 132).splits > 1
    assert wgrad_work.choose_work(4, 2048, 4096, 14336, False, True, 132).splits == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": torch.ones(3)}, r"a must be \[B, T, d_in\] or \[B, d_in\]"),
        ({"b": torch.ones(3, 5, 4)}, r"b must be \[3, 4, d_out\]"),
        ({"probe": torch.ones(5, 4)}, r"probe must be \[d_out, d_in\] = \[6, 5\]"),
        ({"bias_probe": torch.ones(5)}, r"bias_probe must be \[6\]"),
        ({"lengths": torch.ones(3)}, "lengths must be integers or booleans, got torch.float32"),
        ({"lengths": torch.ones(4, dtype=torch.int32)}, r"must be \[3\], got shape \(4,\)"),
        ({"lengths": torch.ones(3, 5, dtype=torch.bool)}, r"must be \[3, 4\], got shape \(3, 5\)"),
        ({"input_precision": "half"}, "input_precision must be one of"),
        ({"backend": "cuda"}, "backend must be one of"),
        ({"a": torch.ones(3, 4, 5, dtype=torch.int32)}, "a must be of a floating dtype"),
    ],
)
def test_bad_input(change, message):
    fine = {"a": torch.ones(3, 4, 5), "b": torch.ones(3, 4, 6), "probe": torch.ones(6, 5)}
    with pytest.raises(ValueError, match=message):
        wgrad_dot(**(fine | change))
