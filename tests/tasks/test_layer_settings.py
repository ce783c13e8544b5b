"""Whatever changes what a model computes or learns changes the identity of its game and the content of its task."""

import importlib
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from tasks import Recipe, Split, Task, TaskSpec
from tasks.code_identity import CodeIdentityError
from tasks.content import content_identity
from tasks.layer_settings import layer_settings

SGD = Recipe("sgd", learning_rate=0.1, batch_size=4, epochs=1)
X = np.random.default_rng(0).normal(size=(12, 4))
Y = (X[:, 0] > 0).astype(np.int64)


def identity_of(architecture):
    part = Split(torch.from_numpy(X).float(), torch.from_numpy(Y))
    parts = {"train": part, "validation": part, "test": part}
    task = Task("mine", "sgd", 0, **parts, n_classes=2, flipped=Y[:0], recipe=SGD, architecture=architecture)
    return task.trajectory_game().identity()


def content_of(architecture):
    sizes = {"n_train": 4, "n_validation": 4, "n_test": 4}
    return content_identity(
        TaskSpec(lambda: (X, Y), architecture, {"sgd": SGD}, 2, **sizes, scaling=None, summary=""), 0, ""
    )


BOTH = pytest.mark.parametrize("digest", [identity_of, content_of])


def perceptron(change=lambda model: None):
    """Return an architecture that is changed in place once it is made."""

    def build():
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        with torch.no_grad():
            change(model)
        return model

    return build


def encoder(activation):
    return lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, activation=activation, batch_first=True)


def another_forward(function):
    def change(model):
        model.forward = types.MethodType(function, model)

    return perceptron(change)


def with_mask(value):
    return perceptron(lambda model: model.register_buffer("mask", torch.tensor([1.0, value]), persistent=False))


def hooked(hook):
    return perceptron(lambda model: model[0].register_forward_hook(hook))


def set_to(weight, numbers):
    weight.copy_(numbers.clone())


ARCHITECTURES = {
    "as it is": perceptron(),
    "a frozen layer": perceptron(lambda model: model[0].requires_grad_(False)),
    "another frozen layer": perceptron(lambda model: model[2].requires_grad_(False)),
    "negated weights": perceptron(lambda model: model[0].weight.neg_()),
    "flipped weights": perceptron(lambda model: set_to(model[0].weight, model[0].weight.flip(0))),
    "permuted weights": perceptron(lambda model: set_to(model[0].weight, model[0].weight.roll(1, 1))),
    "two weights exchanged": perceptron(lambda model: set_to(model[2].bias, model[2].bias.flip(0))),
    "orthogonal weights": perceptron(lambda model: nn.init.orthogonal_(model[0].weight)),
    "another draw of them": perceptron(lambda model: (torch.rand(1), nn.init.orthogonal_(model[0].weight))),
    "zeros": perceptron(lambda model: model[0].weight.zero_()),
    "ones": perceptron(lambda model: model[0].weight.fill_(1)),
    "minus ones": perceptron(lambda model: model[0].weight.fill_(-1)),
    "torch.tanh": encoder(torch.tanh),
    "silu": encoder(nn.functional.silu),
    "a lambda": encoder(lambda x: x),
    "another lambda": encoder(lambda x: 2 * x),
    "a forward of its own": another_forward(lambda self, x: self[0](x)),
    "another one": another_forward(lambda self, x: self[2](self[0](x))),
    "a hook": hooked(lambda layer, x, output: output),
    "another hook": hooked(lambda layer, x, output: -output),
    "a private attribute": perceptron(lambda model: setattr(model[0], "_scale", 1.0)),
    "another value of it": perceptron(lambda model: setattr(model[0], "_scale", 2.0)),
    "a tensor that is no buffer": perceptron(lambda model: setattr(model[0], "scale", torch.ones(2))),
    "another of its values": perceptron(lambda model: setattr(model[0], "scale", torch.zeros(2))),
    "a buffer that is not saved": with_mask(1.0),
    "another value of that buffer": with_mask(0.0),
}


@BOTH
def test_no_two_of_these_are_taken_for_each_other(digest):
    digests = {name: digest(architecture) for name, architecture in ARCHITECTURES.items()}
    assert len(set(digests.values())) == len(digests)
    assert digests == {name: digest(architecture) for name, architecture in ARCHITECTURES.items()}  # made anew


@BOTH
def test_the_code_of_a_layer_counts(digest, monkeypatch, tmp_path):
    source = "from torch import nn\nclass Layer(nn.Linear):\n    def forward(self, x):\n        return {} * x\n"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    digests = []
    for constant in (1, 2, 1):
        (tmp_path / "acme_layers.py").write_text(source.format(constant))
        importlib.invalidate_caches()
        sys.modules.pop("acme_layers", None)
        layers = importlib.import_module("acme_layers")
        digests.append(digest(lambda layers=layers: layers.Layer(4, 2)))
    sys.modules.pop("acme_layers")
    assert digests[0] == digests[2] != digests[1]


@BOTH
def test_a_layer_whose_code_cannot_be_seen_is_refused(digest):
    class Layer(nn.Linear):
        pass

    with pytest.raises(CodeIdentityError, match="define classes at the head of a module"):
        digest(lambda: Layer(4, 2))


@pytest.mark.parametrize("architecture", [perceptron(), lambda: nn.Linear(4, 1000), lambda: nn.LayerNorm(4)])
def test_the_content_is_the_same_where_weights_are_rounded_otherwise(architecture):
    def rounded_otherwise():
        model = architecture()
        with torch.no_grad():
            for weight in model.parameters():
                away = torch.where(torch.rand(weight.shape) < 0.5, torch.inf, -torch.inf)
                weight.copy_(torch.where(weight == weight.round(), weight, torch.nextafter(weight, away)))
        return model

    assert content_of(rounded_otherwise) == content_of(architecture)
    assert identity_of(perceptron()) == identity_of(perceptron())


class Mine(nn.Module):
    def __init__(self, setting=0, private=0):
        super().__init__()
        self.setting, self._private = setting, private


def told(model):
    return repr(list(layer_settings(model)))


SETTINGS = [0, 0.5, 0.25, True, "0", (1, 2), None, [1, 2], {"a": 1}, torch.float32, torch.relu, torch.tanh]
SETTINGS += [torch.zeros(2), torch.zeros(3), torch.ones(2), nn.functional.relu, nn.functional.gelu]


def test_settings_of_all_kinds_are_told_apart_and_told_alike_each_time():
    models = [Mine(setting) for setting in SETTINGS] + [Mine(private=setting) for setting in SETTINGS[1:]]
    assert len({told(model) for model in models}) == len(models)
    assert [told(Mine(setting)) for setting in SETTINGS] == [told(Mine(setting)) for setting in SETTINGS]
