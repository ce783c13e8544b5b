"""Programs on stacks against the models themselves, one at a time; closed forms against autograd."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from tasks.architectures import GPT, cnn
from tasks.data import Split
from tasks.objective import CLASSIFICATION, REGRESSION, Objective
from tasks.stacks.objectives import output_gradient, worth
from tasks.stacks.program import program_of
from tasks.stacks.sequential import Chain
from tasks.stacks.stack import stack_of
from tasks.stacks.training import judge
from tasks.stacks.vmapped import Vmapped

IMAGES = (2, 7, 6)
M, B = 4, 5


def flat(*layers, features):
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 3))


CHAINS = {
    "linear": ((6,), lambda: nn.Linear(6, 3)),
    "no bias": ((6,), lambda: nn.Sequential(nn.Linear(6, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False))),
    "relu": ((6,), lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))),
    "relu in place": ((6,), lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(inplace=True), nn.Linear(4, 3))),
    "ends in an activation": ((6,), lambda: nn.Sequential(nn.Linear(6, 3), nn.Sigmoid())),
    "gelu": ((6,), lambda: nn.Sequential(nn.Linear(6, 4), nn.GELU("tanh"), nn.Linear(4, 3))),
    "two layers without an activation": ((6,), lambda: nn.Sequential(nn.Linear(6, 4), nn.Identity(), nn.Linear(4, 3))),
    "activation before any weight": ((6,), lambda: nn.Sequential(nn.Tanh(), nn.Linear(6, 3))),
    "nested, one activation twice": (
        (6,),
        lambda: (lambda act: nn.Sequential(nn.Sequential(nn.Linear(6, 4), act), nn.Sequential(nn.Linear(4, 3), act)))(
            nn.Tanh()
        ),
    ),
    "layer norm": ((6,), lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3))),
    "layer norm of images": (IMAGES, lambda: flat(nn.LayerNorm(IMAGES), features=84)),
    "norm without weights": (
        (6,),
        lambda: nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 3)),
    ),
    "convolutions": (
        IMAGES,
        lambda: flat(nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 3, (2, 3), (1, 2), (0, 1)), features=18),
    ),
    "dilated convolution": (IMAGES, lambda: flat(nn.Tanh(), nn.Conv2d(2, 3, 3, dilation=(3, 2)), features=6)),
    "group norm": (IMAGES, lambda: flat(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), features=80)),
    "average pooling": (
        IMAGES,
        lambda: flat(nn.AvgPool2d(2, 1), nn.Conv2d(2, 3, 2), nn.AvgPool2d((2, 3)), features=6),
    ),
    "max pooling": (
        IMAGES,
        lambda: flat(nn.MaxPool2d(2), nn.Conv2d(2, 3, 2), nn.MaxPool2d((1, 2), 1, dilation=(1, 1)), features=6),
    ),
    "global average": (IMAGES, lambda: flat(nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d(1), features=3)),
}


class Words(nn.Module):
    """A transformer that takes its tokens as numbers of the model's dtype, as tasks hold them."""

    def __init__(self):
        super().__init__()
        self.gpt = GPT(vocabulary=7, context=5, width=8, heads=2, blocks=1)

    def forward(self, x):
        return self.gpt(x.long())


def tied():
    linear = nn.Linear(6, 6)
    return nn.Sequential(linear, nn.Tanh(), linear, nn.Linear(6, 3))


def frozen():
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    model[0].requires_grad_(requires_grad=False)
    return model


OTHERS = {
    "transformer": ((5,), Words),
    "residual network": ((2, 4, 4), lambda: cnn(2, 8, 3)),
    "tied weights": ((6,), tied),
    "frozen weights": ((6,), frozen),
    "grouped convolution": (IMAGES, lambda: flat(nn.Conv2d(2, 4, 3, groups=2), features=80)),
    "convolution padded by name": (IMAGES, lambda: flat(nn.Conv2d(2, 1, 3, padding="same"), features=42)),
    "convolution padded in a circle": (
        IMAGES,
        lambda: flat(nn.Conv2d(2, 1, 3, padding=1, padding_mode="circular"), features=42),
    ),
    "pooling beyond the edge": (IMAGES, lambda: flat(nn.AvgPool2d(2, ceil_mode=True), features=24)),
    "sums over windows": (IMAGES, lambda: flat(nn.AvgPool2d(2, divisor_override=1), features=18)),
    "averages over a grid": (IMAGES, lambda: flat(nn.AdaptiveAvgPool2d((2, 3)), features=12)),
    "layer norm of each position": ((4, 6), lambda: flat(nn.LayerNorm(6), features=24)),
    "padded pooling": (IMAGES, lambda: flat(nn.MaxPool2d(3, padding=1), features=12)),
    "linear on positions": ((4, 6), lambda: flat(nn.Linear(6, 2), nn.ReLU(), features=8)),
}
MODELS = CHAINS | OTHERS


def case(name, objective=CLASSIFICATION):
    """Return a model, its stack of M different models, a batch, and weights of which some are zero."""
    torch.manual_seed(0)
    shape, build = MODELS[name]
    model = build().double()
    stack = stack_of(model, M)
    for parameter in stack.values():
        parameter += 0.3 * torch.randn_like(parameter)
    words = name == "transformer"
    x = torch.randint(7, (B, *shape)).double() if words else torch.randn(B, *shape, dtype=torch.float64)
    y = torch.randint(3, (B, 5) if words else (B,))
    weights = torch.rand(M, B, dtype=torch.float64) * (torch.rand(M, B) < 0.7)
    weights[0] = 0
    return model, stack, x, y if objective is CLASSIFICATION else y.double(), weights


def one(stack, i):
    return {name: parameter[i].clone().requires_grad_() for name, parameter in stack.items()}


def gradient_alone(model, objective, parameters, x, y, weights):
    loss = (objective.losses(functional_call(model, parameters, (x,)), y) * weights).sum()
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def test_chains_of_known_layers_are_served_as_such_and_everything_else_by_vmap():
    for name in MODELS:
        model, _, x, *_ = case(name)
        assert type(program_of(model, CLASSIFICATION, x)) is (Chain if name in CHAINS else Vmapped), name


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_each_model(name):
    model, stack, x, *_ = case(name)
    outputs = program_of(model, CLASSIFICATION, x[:1]).outputs(stack, x[None])
    for i in range(M):
        torch.testing.assert_close(outputs[i].movedim(-1, 0), functional_call(model, one(stack, i), (x,)))


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_each_model_and_descent_subtracts_them(name):
    model, stack, x, y, weights = case(name)
    program = program_of(model, CLASSIFICATION, x[:1])
    before = {key: parameter.clone() for key, parameter in stack.items()}
    gradients = program.gradients(stack, x[None], y[None], weights)
    program.descend(stack, x[None], y[None], weights, 0.3)
    assert set(gradients) == set(stack) == {key for key, p in model.named_parameters() if p.requires_grad}
    for i in range(M):
        alone = gradient_alone(model, CLASSIFICATION, one(before, i), x, y, weights[i])
        for key, gradient in alone.items():
            torch.testing.assert_close(gradients[key][i], gradient, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(stack[key][i], before[key][i] - 0.3 * gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_models_with_samples_of_their_own_are_each_as_if_alone(name):
    model, stack, x, y, weights = case(name)
    own = torch.stack([torch.randperm(B) for _ in range(M)])
    program = program_of(model, CLASSIFICATION, x[:1])
    before = {key: parameter.clone() for key, parameter in stack.items()}
    outputs, gradients = program.outputs(stack, x[own]), program.gradients(stack, x[own], y[own], weights)
    program.descend(stack, x[own], y[own], weights, 0.3)
    for i in range(M):
        torch.testing.assert_close(outputs[i].movedim(-1, 0), functional_call(model, one(before, i), (x[own[i]],)))
        alone = gradient_alone(model, CLASSIFICATION, one(before, i), x[own[i]], y[own[i]], weights[i])
        for key, gradient in alone.items():
            torch.testing.assert_close(gradients[key][i], gradient, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(stack[key][i], before[key][i] - 0.3 * gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_samples_does_not_move(name):
    model, stack, x, y, weights = case(name)
    before = {key: parameter[0].clone() for key, parameter in stack.items()}
    program_of(model, CLASSIFICATION, x[:1]).descend(stack, x[None], y[None], weights, 0.3)
    assert all(torch.equal(stack[key][0], parameter) for key, parameter in before.items())


def test_equal_numbers_in_a_window_of_max_pooling_are_not_counted_twice():
    model, stack, x, y, weights = case("max pooling")
    x = x.round()  # many ties
    program = program_of(model, CLASSIFICATION, x[:1])
    gradients = program.gradients(stack, x[None], y[None], weights)
    alone = gradient_alone(model, CLASSIFICATION, one(stack, 2), x, y, weights[2])
    for key, gradient in alone.items():
        torch.testing.assert_close(gradients[key][2], gradient)


OBJECTIVES = [CLASSIFICATION, REGRESSION]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.name)
def test_closed_forms_of_the_output_gradient_equal_autograd(objective):
    torch.manual_seed(1)
    outputs = torch.randn(M, 1 if objective is REGRESSION else 3, B, dtype=torch.float64)
    y = torch.randn(B, dtype=torch.float64) if objective is REGRESSION else torch.randint(3, (B,))
    weights = torch.rand(M, B, dtype=torch.float64)
    renamed = Objective("other", lambda o, t: objective.losses(o, t), objective.utilities)
    own = torch.stack([y.roll(i) for i in range(M)])
    for targets in (y[None], own):
        closed, by_autograd = (output_gradient(o, outputs, targets, weights) for o in (objective, renamed))
        torch.testing.assert_close(closed, by_autograd, rtol=1e-12, atol=1e-14)
    alone = [output_gradient(objective, outputs[i : i + 1], own[i : i + 1], weights[i : i + 1]) for i in range(M)]
    torch.testing.assert_close(closed, torch.cat(alone), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.name)
@pytest.mark.parametrize("positions", [(), (4,)], ids=["one", "sequence"])
def test_worth_is_the_objective_s_own_word_on_each_model(objective, positions):
    torch.manual_seed(2)
    outputs = torch.randn(M, *positions, 1 if objective is REGRESSION else 3, 20).round(decimals=1)  # with ties
    y = torch.randn(20, *positions) if objective is REGRESSION else torch.randint(3, (20, *positions))
    outputs[1].view(-1)[7] = -torch.inf
    judged = worth(objective, outputs, y)
    assert list(judged) == list(objective.utilities)
    for name, utility in objective.utilities.items():
        expected = torch.stack([utility(o.movedim(-1, 0), y).double() for o in outputs])
        torch.testing.assert_close(judged[name], expected, equal_nan=True)


def test_regression_with_a_single_output():
    model, stack, x, y, weights = case("relu", REGRESSION)
    model[-1] = nn.Linear(4, 1).double()
    stack["4.weight"], stack["4.bias"] = stack["4.weight"][:, :1].clone(), stack["4.bias"][:, :1].clone()
    program = program_of(model, REGRESSION, x[:1])
    gradients = program.gradients(stack, x[None], y[None], weights)
    for i in range(M):
        for key, gradient in gradient_alone(model, REGRESSION, one(stack, i), x, y, weights[i]).items():
            torch.testing.assert_close(gradients[key][i], gradient, rtol=1e-10, atol=1e-12)


def test_a_model_with_a_weight_that_is_not_finite_has_no_utility_even_if_its_outputs_are_finite():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    split = Split(torch.randn(B, 6), torch.arange(B) % 3)
    stack = stack_of(model, 3)
    stack["0.bias"][1, 2] = -torch.inf  # a unit that is never active
    stack["2.bias"][2, 0] = torch.nan
    program = program_of(model, CLASSIFICATION, split.x[:1])
    assert program.outputs(stack, split.x[None])[1].isfinite().all()
    for utilities in judge(program, stack, CLASSIFICATION, split, 2).values():
        assert utilities.isfinite().tolist() == [True, False, False]


def test_a_model_with_a_utility_that_is_not_finite_has_none_even_if_its_weights_and_outputs_are_finite():
    model = nn.Linear(2, 1).double()
    split = Split(torch.ones(B, 2, dtype=torch.float64), torch.zeros(B, dtype=torch.float64))
    stack = stack_of(model, 2)
    stack["bias"][1] = 1e200  # its square is too large
    program = program_of(model, REGRESSION, split.x[:1])
    assert program.outputs(stack, split.x[None]).isfinite().all()
    assert judge(program, stack, REGRESSION, split, 2)["loss"].isnan().tolist() == [False, True]
