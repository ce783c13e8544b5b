"""Scores out of the weight gradient: the layer's own gradients, and every sample's dot product beside them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from inrun_bench.attribution.capture.fused import Scored, scored_call
from inrun_bench.attribution.families import find_scored_backward
from inrun_bench.attribution.products.wgrad_dot import CHUNK_BYTES

small = st.integers(1, 4)


@st.composite
def linear(draw):
    inner = draw(st.lists(small, max_size=2))
    layer = nn.Linear(draw(small), draw(small), bias=draw(st.booleans()))
    return layer, (draw(small), *inner, layer.in_features)


@st.composite
def convolution(draw):
    dims = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 2))
    kernel, stride, dilation, padding = (
        tuple(draw(st.lists(st.integers(low, high), min_size=dims, max_size=dims)))
        for low, high in ((1, 3), (1, 2), (1, 2), (0, 2))
    )
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    layer = kind(
        2 * groups,
        draw(st.integers(1, 2)) * groups,
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
    )
    return layer, (draw(small), 2 * groups, *(draw(st.integers(5, 7)) for _ in range(dims)))


def run(layer, a, b, probes):
    """Output, gradients of input, weight and bias, and scores, by the rule."""
    found = []
    keys = {"weight_key": "w", "bias_key": None if layer.bias is None else "c"}
    call = Scored(
        layer, find_scored_backward(layer), probes=probes, receive=lambda scores, _kind: found.append(scores), **keys
    )
    a = a.detach().requires_grad_()
    output = scored_call(call, a)
    parameters = [p for p in (layer.weight, layer.bias) if p is not None]
    gradients = torch.autograd.grad(output, [a, *parameters], b)
    return output.detach(), gradients, found[0]


def by_hand(layer, a, b, probes):
    a = a.detach().requires_grad_()
    parameters = [p for p in (layer.weight, layer.bias) if p is not None]
    output = layer(a)
    gradients = torch.autograd.grad(output, [a, *parameters], b)
    scores = torch.empty(len(probes), len(a), dtype=torch.float64)
    for i in range(len(a)):
        own = torch.autograd.grad(layer(a[i : i + 1]), parameters, b[i : i + 1])
        for row, probe in enumerate(probes):
            scores[row, i] = sum((g * q).sum() for g, q in zip(own, probe.values(), strict=False)).double()
    return output.detach(), gradients, scores


@settings(max_examples=60)
@given(st.one_of(linear(), convolution()), st.integers(1, 3), st.integers(0, 2**16))
def test_gradients_are_the_layers_own_and_scores_those_of_single_samples(case, n_probes, seed):
    layer, shape = case
    layer.double()
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    a = normal(*shape)
    b = normal(*layer(a).shape)
    probes = [
        {"w": normal(*layer.weight.shape), **({} if layer.bias is None else {"c": normal(*layer.bias.shape)})}
        for _ in range(n_probes)
    ]
    output, gradients, scores = run(layer, a, b, probes)
    expected_output, expected_gradients, expected_scores = by_hand(layer, a, b, probes)
    torch.testing.assert_close(output, expected_output, rtol=1e-12, atol=1e-12)
    for got, expected in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(scores, expected_scores, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("d", [3, 600])  # many samples a chunk, and one
def test_single_precision_and_both_sizes_of_chunks(d):
    torch.manual_seed(0)
    assert (d * d * 4 < CHUNK_BYTES["cpu"] // 7) == (d == 3)
    layer = nn.Linear(d, d)
    a, b, q = torch.randn(7, 5, d), torch.randn(7, 5, d), {"w": torch.randn(d, d), "c": torch.randn(d)}
    _, gradients, scores = run(layer, a, b, [q])
    exact = by_hand(layer.double(), a.double(), b.double(), [{k: v.double() for k, v in q.items()}])
    assert (scores.double() - exact[2]).norm() < 1e-5 * exact[2].norm()
    for got, expected in zip(gradients, exact[1], strict=True):
        assert (got.double() - expected).norm() < 1e-5 * expected.norm()


def test_output_does_not_change_by_a_bit():
    torch.manual_seed(0)
    for layer, shape in ((nn.Linear(8, 5), (4, 6, 8)), (nn.Conv2d(3, 4, 3, padding=1), (4, 3, 8, 8))):
        a = torch.randn(*shape)
        b = torch.randn_like(layer(a))
        output, (for_input, *_), _ = run(layer, a, b, [{"w": layer.weight.detach(), "c": layer.bias.detach()}])
        a.requires_grad_()
        assert torch.equal(output, layer(a))
        torch.testing.assert_close(for_input, torch.autograd.grad(layer(a), a, b)[0])


def test_what_a_map_does_not_serve_is_left_to_the_ghost_rules():
    assert find_scored_backward(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")) is None
    assert find_scored_backward(nn.Conv1d(2, 2, 3, padding="same")) is None
    assert find_scored_backward(nn.ConvTranspose2d(2, 2, 3)) is None

    class Own(nn.Linear):
        pass

    assert find_scored_backward(Own(2, 2)) is None
    for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d):
        assert find_scored_backward(kind(2, 2, *(() if kind is nn.Linear else (1,)))) is not None


def test_second_derivatives_are_refused_by_torch_and_not_silently_wrong():
    layer = nn.Linear(3, 2)
    a = torch.randn(4, 3, requires_grad=True)
    call = Scored(
        layer, find_scored_backward(layer), "w", None, [{"w": torch.zeros(2, 3)}], lambda _scores, _kind: None
    )
    (gradient,) = torch.autograd.grad(scored_call(call, a).square().sum(), a, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
