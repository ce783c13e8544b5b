"""Models that compute something else have other settings, whatever kind of attribute makes the difference."""

import importlib
import sys

import pytest
import torch
from torch import nn

import tasks
from tasks.layer_settings import layer_settings

LAYER = """
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self, setting=0, private=0):
        super().__init__()
        self.setting, self._private = setting, private

    def forward(self, x):
        return {value}
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Return a class of layers whose forward function returns a given expression."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def load(value="x"):
        (tmp_path / "my_layers.py").write_text(LAYER.format(value=value))
        importlib.invalidate_caches()
        sys.modules.pop("my_layers", None)
        return importlib.import_module("my_layers").Mine

    yield load
    sys.modules.pop("my_layers", None)


def told(model):
    return repr(list(layer_settings(model)))


SETTINGS = [0, 0.5, 0.25, True, "0", (1, 2), None, [1, 2], {"a": 1}, torch.float32, torch.relu, torch.tanh]
SETTINGS += [torch.zeros(2), torch.zeros(3), torch.ones(2), nn.functional.relu, nn.functional.gelu]


def test_settings_of_all_kinds_are_told_apart_and_told_alike_each_time(mine):
    layer = mine()
    models = [layer(setting) for setting in SETTINGS] + [layer(private=setting) for setting in SETTINGS[1:]]
    assert len({told(model) for model in models}) == len(models)
    assert [told(layer(setting)) for setting in SETTINGS] == [told(layer(setting)) for setting in SETTINGS]


def test_layers_of_one_s_own_are_told_apart_by_their_code(mine):
    before = told(nn.Sequential(nn.Linear(2, 2), mine("x")()))
    assert told(nn.Sequential(nn.Linear(2, 2), mine("x")())) == before
    assert told(nn.Sequential(nn.Linear(2, 2), mine("2 * x")())) != before


@pytest.mark.parametrize("name", tasks.names())
def test_models_of_the_catalogue_are_told_by_names_and_public_settings(name):
    """Identities of published references are made of them: they depend neither on versions nor on processes."""
    for key, value in layer_settings(tasks.CATALOG[name].architecture()):
        assert not key.rpartition(".")[2].startswith("_")
        assert key != "code"
        assert isinstance(value, bool | int | float | str | tuple | None)


def test_code_that_cannot_be_seen_is_refused():
    class Local(nn.Module):
        pass

    with pytest.raises(ValueError, match="define classes at the head of a module"):
        told(Local())
