import pytest
import torch
from torch import nn

from tasks.architectures import GPT, cnn, mlp


def images(n):
    return torch.randn(n, 1, 12, 12, generator=torch.Generator().manual_seed(0))


def tokens(n):
    return torch.randint(9, (n, 6), generator=torch.Generator().manual_seed(0))


MODELS = {
    "gpt": (lambda: GPT(vocabulary=9, context=8, width=16, heads=4, blocks=2), tokens, (6, 9)),
    "mlp": (lambda: mlp(n_inputs=144, width=8), images, (10,)),
    "cnn": (lambda: cnn(width=8), images, (10,)),
}
each_model = pytest.mark.parametrize("name", MODELS)


def made(name):
    torch.manual_seed(0)
    build, data, shape = MODELS[name]
    return build().double(), (lambda n: data(n) if name == "gpt" else data(n).double()), shape


@each_model
def test_a_model_returns_logits_of_each_sample_and_position(name):
    model, data, shape = made(name)
    assert model(data(5)).shape == (5, *shape)


@each_model
def test_no_layer_couples_the_samples_of_a_batch_or_draws_random_numbers(name):
    model, data, _ = made(name)
    x = data(5)
    assert model.training
    torch.testing.assert_close(model(x)[2:4], model(x[2:4]))


@each_model
def test_every_parameter_takes_part(name):
    model, data, _ = made(name)
    x = data(5)
    (model(x).softmax(-1)[..., 0]).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_a_gpt_sees_nothing_of_what_is_to_come():
    model, data, _ = made("gpt")
    x = data(1)
    other = x.clone()
    other[0, 4] = (x[0, 4] + 1) % 9
    before, after = model(x)[0], model(other)[0]
    torch.testing.assert_close(before[:4], after[:4])
    assert not torch.isclose(before[4:], after[4:]).all(1).any()


def test_a_gpt_tells_positions_apart():
    model, _, _ = made("gpt")
    logits = model(torch.zeros(1, 6, dtype=torch.int64))[0]
    assert not torch.allclose(logits[1], logits[2])


def test_the_sizes_are_those_of_the_published_costs():
    gpt = GPT()
    assert sum(isinstance(m, nn.Linear) for m in gpt.modules()) == 4 * 4 + 1
    assert sum(p.numel() for p in gpt.blocks.parameters()) == 4 * (12 * 256**2 + 13 * 256)
    assert sum(p.numel() for p in mlp().parameters()) == 785 * 1024 + 2 * 1025 * 1024 + 1025 * 10
    assert sum(isinstance(m, nn.Conv2d) for m in cnn().modules()) == 1 + 3 * 2 + 2
