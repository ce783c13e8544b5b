"""Clipping of a stack against ``torch.nn.utils.clip_grad_norm_`` of one model at a time."""

import torch

from tasks import stacks


def gradients():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([0.0, 0.01, 1.0, 30.0], dtype=torch.float64)  # of four models, the first one without samples
    shapes = {"weight": (3, 5), "bias": (3,), "scale": ()}
    random = {n: torch.randn(4, *s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}
    return {name: g * sizes.view(-1, *[1] * (g.ndim - 1)) for name, g in random.items()}


def test_each_model_is_clipped_by_its_own_norm_as_torch_would():
    together = stacks.clipped(gradients(), 2.0)
    for model in range(4):
        alone = [torch.zeros_like(g[model], requires_grad=True) for g in gradients().values()]
        for parameter, gradient in zip(alone, gradients().values(), strict=True):
            parameter.grad = gradient[model].clone()
        torch.nn.utils.clip_grad_norm_(alone, 2.0)
        for parameter, gradient in zip(alone, together.values(), strict=True):
            torch.testing.assert_close(gradient[model], parameter.grad, rtol=1e-14, atol=0)


def test_short_gradients_are_left_as_they_are_and_long_ones_have_the_norm_allowed():
    factors = stacks.clip_factors(gradients(), 2.0)
    assert factors[:2].tolist() == [1.0, 1.0]
    rows = torch.cat([g.reshape(4, -1) for g in stacks.clipped(gradients(), 2.0).values()], dim=1)
    torch.testing.assert_close(rows[2:].norm(dim=1), torch.full((2,), 2.0, dtype=torch.float64), rtol=1e-6, atol=0)


def test_derivatives_are_those_of_finite_differences_and_those_of_a_zero_gradient_are_one():
    names, rows = zip(*((name, g[1:].requires_grad_()) for name, g in gradients().items()), strict=True)
    assert torch.autograd.gradcheck(
        lambda *g: tuple(stacks.clipped(dict(zip(names, g, strict=True)), 2.0).values()), rows
    )
    zero = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(stacks.clipped({"weight": zero}, 2.0)["weight"].sum(), zero)
    assert slope.tolist() == [[1.0, 1.0, 1.0]]
