import math

import pytest
import torch

from inrun_bench.attribution.products import adam_secant as product
from tests.attribution.products.cases import draw

NUMBERS = [0.7, 0.3, 0.5, 0.9, 0.02]
EPS = 1e-3


def adam_secant(w, g, moments, numbers, **options):
    (read,) = product.adam_secant([w], [g], [moments], [numbers], **options)
    return read


def step(w, g, m, v, numbers, decay):
    """u(g) by element, as torch computes it, in Python's own numbers."""
    k, gain, carried, kept, decayed = numbers
    h = g + (decayed * w if decay == "coupled" else 0.0)
    u = (carried * m + gain * h) / (math.sqrt((k * h) ** 2 + kept * v) + EPS)
    return u + (decayed * w if decay == "decoupled" else 0.0)


def case(*shape, state=True):
    w, g, m, v = (draw(*shape, seed=seed) for seed in range(4))
    return w, g, (m, v.square()) if state else None


def truth(w, g, moments, numbers, decay):
    """The secant and u(0) from two steps."""
    m, v = moments or (torch.zeros_like(w), torch.zeros_like(w))
    slope, empty = [], []
    for w_j, g_j, m_j, v_j in zip(*(x.double().flatten().tolist() for x in (w, g, m, v)), strict=True):
        empty.append(step(w_j, 0.0, m_j, v_j, numbers, decay))
        slope.append((step(w_j, g_j, m_j, v_j, numbers, decay) - empty[-1]) / g_j)
    return (torch.tensor(x, dtype=torch.float64).reshape(w.shape) for x in (slope, empty))


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("decay", ["none", "coupled", "decoupled"])
@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("shape", [(7,), (5, 3), (2, 3, 900)])
def test_the_secant_is_that_of_two_steps(backend, decay, state, shape):
    w, g, moments = case(*shape, state=state)
    slope, empty = adam_secant(w, g, moments, NUMBERS, eps=EPS, decay=decay, backend=backend)
    wanted, rest = truth(w, g, moments, NUMBERS, decay)
    torch.testing.assert_close(slope.double(), wanted, rtol=1e-3, atol=1e-3 * wanted.abs().mean().item())
    torch.testing.assert_close(empty.double(), rest, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decay", ["none", "coupled", "decoupled"])
@pytest.mark.parametrize(
    ("kind", "scale"),
    [*((kind, scale) for kind in (torch.float32, torch.bfloat16) for scale in (1.0, 1e-25, 0.0)), (torch.float16, 1.0)],
)
def test_kernel_and_twin_agree_where_two_steps_would_cancel(decay, kind, scale):
    w, g, (m, v) = case(3, 700)
    w, g, m, v = (x.to(kind) for x in (w, g * scale, m, v * scale * scale))
    eps = 1e-2 if kind == torch.float16 else 1e-8
    given = (w, g, (m, v), NUMBERS)
    (one, of_one), (two, of_two) = (
        adam_secant(*given, eps=eps, decay=decay, backend=backend) for backend in ("triton", "torch")
    )
    assert one.dtype == torch.float32
    assert of_one.dtype == kind
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6 * two.abs().mean().item())
    torch.testing.assert_close(of_one, of_two, rtol=1e-5 if kind == torch.float32 else 1e-2, atol=1e-30)


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_any_strides(backend):
    w, g, (m, v) = case(4, 6)
    turned = (w.t(), g.t(), (m.t(), v.t()))
    for got, wanted in zip(
        adam_secant(*turned, NUMBERS, eps=EPS, decay="coupled", backend=backend),
        adam_secant(w, g, (m, v), NUMBERS, eps=EPS, decay="coupled", backend="torch"),
        strict=True,
    ):
        torch.testing.assert_close(got.t(), wanted)


def test_bad_arguments_are_named():
    w, g, moments = case(3, 2)
    with pytest.raises(ValueError, match=r"shaped like the weights, \[3, 2\], got \[2, 3\]"):
        adam_secant(w, g.t(), None, NUMBERS, eps=EPS)
    with pytest.raises(ValueError, match="decay must be one of 'none', 'coupled', 'decoupled', got 'l2'"):
        adam_secant(w, g, moments, NUMBERS, eps=EPS, decay="l2")


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_many_parameters_at_once_are_what_each_is_alone(backend):
    kinds = [torch.float32, torch.bfloat16]
    shapes = [(3,), (9000,), (0,), (1,), (64,), (2, 8192)]
    cases = [case(*shape, state=number % 3 > 0) for number, shape in enumerate(shapes * 2)]
    cases = [
        (w.to(kinds[number % 2]), g.to(kinds[number % 2]), moments) for number, (w, g, moments) in enumerate(cases)
    ]
    numbers = torch.tensor([NUMBERS], dtype=torch.float64) * torch.linspace(0.5, 2.0, len(cases))[:, None]
    together = product.adam_secant(
        *map(list, zip(*cases, strict=True)), numbers, eps=EPS, decay="coupled", backend=backend
    )
    for got, given, own in zip(together, cases, numbers, strict=True):
        wanted = adam_secant(*given, own.tolist(), eps=EPS, decay="coupled", backend=backend)
        for x, y in zip(got, wanted, strict=True):
            assert x.shape == given[0].shape
            torch.testing.assert_close(x, y)
